"""The state of a layer's super-blocks while it is worked on, and other scales to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from array_api_compat import array_namespace

from packlight.maths.grids import Array
from packlight.maths.superblocks import SuperBlockGrid, to_half

MOVES = (-0.5, -0.25, -0.1, 0.1, 0.25, 0.5)
"""By which part of a step an offset is tried higher and lower."""


@dataclass(frozen=True)
class Columns:
    """Super-blocks of n outputs, all in float32; the arrays are changed in place.

    levels: [in, n]. sub_scale, sub_offset: [in / sub_size, n]. scale, offset: [in / size, n].
    """

    levels: Array
    sub_scale: Array
    scale: Array
    sub_offset: Array | None = None
    offset: Array | None = None

    def part(self, place: int, grid: SuperBlockGrid) -> Scales:
        """The scales of the sub-block with this number."""
        block = place // grid.sub_blocks
        if self.offset is None or self.sub_offset is None:
            return Scales(self.sub_scale[place, :], self.scale[block, :])
        return Scales(
            self.sub_scale[place, :],
            self.scale[block, :],
            self.sub_offset[place, :],
            self.offset[block, :],
        )

    def write(self, place: int, grid: SuperBlockGrid, scales: Scales) -> None:
        """Set the scales of a sub-block; the super-block's own where it has no other."""
        block = place // grid.sub_blocks
        self.sub_scale[place, :] = scales.sub_scale
        if grid.sub_blocks == 1:
            self.scale[block, :] = scales.scale
        if self.offset is not None and self.sub_offset is not None:
            self.sub_offset[place, :] = scales.sub_offset
            if grid.sub_blocks == 1:
                self.offset[block, :] = scales.offset

    def best_of(self, starts: int, best: Array) -> Columns:
        """Of states side by side, the one with the number best[k] for each output k."""

        def pick(values: Array | None) -> Array | None:
            if values is None:
                return None
            xp = array_namespace(values)
            return pick_rows(xp.reshape(values, (values.shape[0], starts, -1)), best)

        return Columns(*(pick(values) for values in vars(self).values()))


@dataclass(frozen=True)
class Scales:
    """Scales of one sub-block, [n] or [tries, n]."""

    sub_scale: Array
    scale: Array
    sub_offset: Array | None = None
    offset: Array | None = None

    @property
    def step(self) -> Array:
        """What levels are multiplied by."""
        return self.scale * self.sub_scale

    @property
    def shift(self) -> Array | None:
        """What is subtracted then."""
        if self.offset is None or self.sub_offset is None:
            return None
        return self.offset * self.sub_offset

    def values(self, levels: Array) -> Array:
        """The weights that levels stand for."""
        shift = self.shift
        return levels * self.step if shift is None else levels * self.step - shift


def empty_columns(w: Array, grid: SuperBlockGrid) -> Columns:
    """Room for the super-blocks of w [in, n]."""
    xp = array_namespace(w)
    inputs = w.shape[0]

    def room(size: int) -> Array:
        return xp.zeros_like(w[: inputs // size, :])

    if grid.offset_limits is None:
        return Columns(room(1), room(grid.sub_size), room(grid.size))
    return Columns(
        room(1), room(grid.sub_size), room(grid.size), room(grid.sub_size), room(grid.size)
    )


def try_scales(now: Scales, grid: SuperBlockGrid, spread: Sequence[float]) -> Scales:
    """Give the scales of a sub-block and others around them, [tries, n], the given ones first.

    spread: by which share the step grows and shrinks. With an offset, the lowest value, the middle
    or the highest stays where it is as the step changes; and the whole grid moves a part of a step.
    """
    xp = array_namespace(now.scale)
    table = xp.asarray(_list_tries(grid, tuple(spread)), dtype=now.scale.dtype)
    factor, anchor, move = (table[:, place, None] for place in range(3))
    every = xp.zeros_like(factor)
    sub, scale = now.sub_scale + every, now.scale + every
    if grid.scale_limits[0] == grid.scale_limits[1]:
        scale = to_half(scale * factor)
    else:
        away = xp.where(factor > 1, every + 1, every - 1) * (1 if grid.codebook is None else 2)
        least = sub + xp.where(sub < 0, -away, away)
        other = grid.nearest_scales(sub * factor)
        other = xp.where(other == sub, least, other)
        other = other.clip(float(grid.scale_limits[0]), float(grid.scale_limits[1]))
        sub = xp.where(factor == 1, sub, other)
    if now.offset is None or now.sub_offset is None:
        return Scales(sub, scale)
    shift = (scale * sub - now.step) * anchor * float(grid.levels[-1]) + move * now.step
    if grid.scale_limits[0] == grid.scale_limits[1]:
        return Scales(sub, scale, now.sub_offset + every, to_half(now.offset + shift))
    usable = now.offset != 0
    wanted = xp.round(shift / xp.where(usable, now.offset, xp.ones_like(now.offset)))
    wanted = xp.where((wanted == 0) & (move != 0), xp.sign(move), wanted)
    limits = grid.offset_limits or (0, 0)
    whole = (now.sub_offset + wanted).clip(float(limits[0]), float(limits[1]))
    return Scales(sub, scale, xp.where(usable, whole, now.sub_offset), now.offset + every)


@cache
def _list_tries(grid: SuperBlockGrid, spread: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Of each try: what the step is multiplied by, which level's value stays, how far all moves."""
    tries: list[tuple[float, ...]] = [(1.0, 0.0, 0.0)]
    if grid.offset_limits is None:
        tries += [(1 + share, 0.0, 0.0) for share in spread]
        if grid.scale_limits[0] < 0 or grid.scale_limits == (1, 1):
            tries.append((-1.0, 0.0, 0.0))
        return tries
    tries += [(1 + share, anchor, 0.0) for share in spread for anchor in (0.0, 0.5, 1.0)]
    return tries + [(1.0, 0.0, move) for move in MOVES]


def choose(tried: Scales, best: Array) -> Scales:
    """Give for each output the scales of the try with this number. best: [n]."""
    parts: list[Any] = [tried.sub_scale, tried.scale, tried.sub_offset, tried.offset]
    return Scales(*(None if part is None else pick_rows(part, best) for part in parts))


def pick_rows(values: Array, best: Array) -> Array:
    """Give values[..., best[k], k] of values [..., tries, n]."""
    xp = array_namespace(values)
    *lead, tries, count = values.shape
    place = best * count + xp.arange(count, dtype=best.dtype)
    flat = xp.reshape(values, (*lead, tries * count))
    return xp.take(flat, place, axis=len(lead))


def side_by_side(states: Sequence[Columns]) -> Columns:
    """Several states of the same inputs as one of all their outputs."""
    if len(states) == 1:
        return states[0]
    xp = array_namespace(states[0].levels)
    parts: Any = zip(*(vars(state).values() for state in states), strict=True)
    return Columns(*(None if some[0] is None else xp.concat(some, axis=1) for some in parts))
