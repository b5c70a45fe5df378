"""Scales and codes of super-blocks by weighted squared error, many of them at once.

Every sub-block tries some steps; for each the codes are rounded and the scale (and offset) that
fit them best is solved for. The small whole numbers follow, then the codes again for what those
can say, and the super-block's own scale by least squares.

Arrays are [sub_size, sub_blocks, blocks]: sums over a sub-block then add whole rows of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from packlight.maths.codewords import nearest_words
from packlight.maths.grids import Array
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks, to_half

OFFSET_TRIES = (-0.9, -0.6, -0.3, 0.0, 0.35, 0.8)
"""Added to the number of steps between the least and the greatest value of a sub-block."""

PLAIN_TRIES = (-0.7, -0.45, -0.2, 0.0, 0.2, 0.45, 0.7)
"""Added to the size of the level where a sub-block's value of largest size goes."""


@dataclass(frozen=True)
class BlockScales:
    """Scales of super-blocks, in float32.

    scale, offset: [blocks], as half precision holds them. sub_scale, sub_offset:
    [sub_blocks, blocks], whole numbers within the grid's limits. No offsets: None.
    """

    scale: Array
    sub_scale: Array
    offset: Array | None = None
    sub_offset: Array | None = None

    def steps(self) -> Array:
        """What a level is multiplied by, [sub_blocks, blocks]."""
        return self.scale * self.sub_scale

    def shifts(self) -> Array | None:
        """What is subtracted then, [sub_blocks, blocks]."""
        return None if self.offset is None else self.offset * self.sub_offset


FEW_LEVELS = 6
"""Where so few levels must do, large weights get more of them than the squared error gives."""


def search_super_blocks(
    weight: Array, importance: Array | None, grid: SuperBlockGrid
) -> SuperBlocks:
    """Give super-blocks of small squared error, each input weighted by its importance.

    weight: [out, in], the inputs whole super-blocks. importance: [in], such as the second
    moments of each input; None: all alike. With `FEW_LEVELS` or fewer an error is also weighted by
    sqrt(mean square of its super-block + w^2), as llama.cpp does everywhere: large weights are
    more often those that matter to what nobody measured.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    supers = inputs // grid.size
    shape = (outputs * supers, grid.sub_blocks, grid.sub_size)
    target = xp.permute_dims(xp.reshape(weight, shape), (2, 1, 0))
    target = xp.asarray(xp.astype(target, xp.float32), copy=True)
    target = target.clip(-GREATEST, GREATEST)
    matters = _weigh(xp, target, importance, outputs, grid)
    scales = search_scales(target, matters, grid)
    levels = nearest_levels(target, scales.steps(), scales.shifts(), grid, matters)
    codes = xp.permute_dims(codes_of_levels(levels, grid), (2, 1, 0))

    def whole(values: Array) -> Array:
        return xp.reshape(xp.astype(values, xp.int8).T, (outputs, -1))

    parts = [
        xp.reshape(codes, (outputs, inputs)),
        whole(scales.sub_scale),
        xp.reshape(scales.scale, (outputs, supers)),
    ]
    if scales.offset is not None and scales.sub_offset is not None:
        parts += [whole(scales.sub_offset), xp.reshape(scales.offset, (outputs, supers))]
    return SuperBlocks(*parts)


def _weigh(
    xp: Any, target: Array, importance: Array | None, outputs: int, grid: SuperBlockGrid
) -> Array:
    """What an error costs, broadcasting against targets [sub_size, sub_blocks, blocks]."""
    if importance is None and len(grid.levels) > FEW_LEVELS:
        return xp.ones_like(target[:, :1, :1])
    size = xp.ones_like(target)
    if len(grid.levels) <= FEW_LEVELS:
        size = xp.sqrt(xp.mean(target * target, axis=(0, 1)) + target * target)
    if importance is not None:
        shape = (-1, grid.sub_blocks, grid.sub_size)
        one = xp.permute_dims(xp.reshape(importance, shape), (2, 1, 0))
        size = size * xp.tile(xp.astype(one, xp.float32), (1, 1, outputs))
    return size + _LEAST


_LEAST = 1e-30  # weights of 0 would leave sub-blocks without any scale

GREATEST = 1e9
"""No format reaches further, and squares of what is larger would overflow."""


def search_scales(
    target: Array, weight: Array, grid: SuperBlockGrid, *, rounds: int = 1
) -> BlockScales:
    """Find scales so that sum weight * (target - value)^2 of the nearest values is small.

    target: [sub_size, sub_blocks, blocks] float32. weight: broadcasts against it, above 0.
    rounds: of codes and least squares in turn after the best of the first steps.
    """
    if grid.offset_limits is None:
        step, bend = _search_plain(target, weight, grid, rounds)
        scale, sub_scale = _whole(
            step, bend, grid.scale_limits, grid.nearest_scales, upright=grid.upright
        )
        scales = BlockScales(scale, sub_scale)
    else:
        step, shift, bend, mass = _search_offset(target, weight, grid, rounds)
        scale, sub_scale = _whole(step, bend, grid.scale_limits)
        offset, sub_offset = _whole(shift, mass, grid.offset_limits)
        scales = BlockScales(scale, sub_scale, offset, sub_offset)
    levels = nearest_levels(target, scales.steps(), scales.shifts(), grid, weight)
    return refit_super(target, weight, levels, scales, upright=grid.upright)


def nearest_levels(
    target: Array, step: Array, shift: Array | None, grid: SuperBlockGrid, weight: Array
) -> Array:
    """Give the levels, as floats, whose values are nearest.

    step, shift: [sub_blocks, blocks]. weight: of the squared errors, where that matters.
    """
    xp = array_namespace(target)
    usable = step != 0
    inverse = xp.where(usable, 1 / xp.where(usable, step, xp.ones_like(step)), xp.zeros_like(step))
    if grid.codebook is not None:
        return nearest_words(target * inverse, weight, grid.codebook, inverse < 0)
    if shift is None:
        return round_to_levels(target * inverse, grid)
    ratio = target + shift
    ratio *= inverse
    return round_to_levels(ratio, grid)


def round_to_levels(ratio: Array, grid: SuperBlockGrid) -> Array:
    """Give the nearest level of each number; may work in place."""
    if grid.even:  # methods that NumPy and PyTorch share: this is called for every single input
        low, high = float(grid.levels[0]), float(grid.levels[-1])
        if isinstance(ratio, np.ndarray):
            return ratio.round(out=ratio).clip(low, high, out=ratio)
        return ratio.round().clip(low, high)
    xp = array_namespace(ratio)
    low, high = grid.levels[0], grid.levels[-1]
    table = xp.asarray(_half_steps(grid.levels), dtype=xp.float32, device=device(ratio))
    place = xp.floor(ratio.clip(float(low), float(high)) * 2) - 2 * low
    flat = xp.take(table, xp.reshape(xp.astype(place, xp.int64), (-1,)), axis=0)
    return xp.reshape(flat, ratio.shape)


def refit_super(
    target: Array, weight: Array, levels: Array, scales: BlockScales, *, upright: bool = False
) -> BlockScales:
    """Solve for the scale (and offset) of each super-block, given its levels and sub-scales.

    upright: as in `SuperBlockGrid`; without offsets only.
    """
    xp = array_namespace(target)
    weighted = weight * levels
    ql = xp.sum(weighted * levels, axis=0)
    tl = xp.sum(weighted * target, axis=0)
    s = scales.sub_scale
    a, c = xp.sum(s * s * ql, axis=0), xp.sum(s * tl, axis=0)
    if scales.offset is None or scales.sub_offset is None:
        fine = (a > 0) & (c > 0) if upright else a > 0
        fitted = xp.where(fine, c / xp.where(fine, a, xp.ones_like(a)), scales.scale)
        return BlockScales(to_half(fitted), s)
    m = scales.sub_offset
    mass = xp.sum(weight * xp.ones_like(target), axis=0)
    b = xp.sum(s * m * xp.sum(weighted, axis=0), axis=0)
    e, f = xp.sum(m * m * mass, axis=0), xp.sum(m * xp.sum(weight * target, axis=0), axis=0)
    # minimise over (d, n): values d s l - n m
    det = a * e - b * b
    fine = det > 1e-6 * a * e
    safe = xp.where(fine, det, xp.ones_like(det))
    scale = xp.where(fine, (c * e - b * f) / safe, scales.scale)
    offset = xp.where(fine, (b * c - a * f) / safe, scales.offset)
    only = (e <= 0) & (a > 0)
    scale = xp.where(only, c / xp.where(only, a, xp.ones_like(a)), scale)
    return BlockScales(to_half(scale), s, to_half(offset), m)


def _search_plain(x: Array, w: Array, grid: SuperBlockGrid, rounds: int) -> tuple[Array, Array]:
    """The step of each sub-block without offset, and sum w level^2."""
    xp = array_namespace(x)
    # A copy whose rows of memory are inputs: sums over them then go through whole rows.
    quick = isinstance(x, np.ndarray) and x.strides[0] == x.itemsize and x.shape[0] % 8 == 0
    alike = w.shape[1:] == (1, 1) and bool(xp.all(w == 1))
    quick = quick and alike and grid.even
    x = np.ascontiguousarray(x) if quick else x
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    extreme = xp.where(high > -low, high, low if grid.codebook is None else -low)
    alive = xp.abs(extreme) > _LEAST
    inverse = 1 / xp.where(alive, extreme, xp.ones_like(extreme))
    best, least = xp.zeros_like(extreme), xp.zeros_like(extreme)
    bend = xp.zeros_like(extreme)
    wx = x if alike else w * x
    room = np.empty_like(x) if quick else None

    def consider(ratio: Array) -> None:
        nonlocal best, least, bend
        if grid.codebook is None:
            level = round_to_levels(
                x * ratio if room is None else np.multiply(x, ratio, room), grid
            )
        else:
            level = nearest_words(x * ratio, w, grid.codebook, ratio < 0)
        reach = _add_up(xp, wx * level, quick)
        level *= level
        if not alike:
            level *= w
        own = _add_up(xp, level, quick)
        fine = own > 0
        step = reach / xp.where(fine, own, xp.ones_like(own))
        gain = step * reach
        better = gain > least
        best, least = xp.where(better, step, best), xp.where(better, gain, least)
        bend = xp.where(better, own, bend)

    # The level of larger size is on one side only: each try says at which number of steps the
    # value of largest size lies, on that side, and the last ones on the other.
    unit = max(abs(grid.levels[0]), 1) / len(grid.levels) * 2
    if grid.codebook is not None:
        shares = [share * grid.levels[-1] for share in grid.codebook.shares]
        for share in (*shares, grid.levels[len(grid.levels) // 2]):  # the last: all may be alike
            consider(share * inverse)
            if grid.scale_limits[0] < 0:
                consider(-share * inverse)
    else:
        for extra in PLAIN_TRIES:
            consider((grid.levels[0] - extra * unit) * inverse)
        for extra in (-0.25, 0.2):
            consider((grid.levels[-1] + extra * unit) * inverse)
    for _ in range(rounds):
        fine = best != 0
        consider(xp.where(fine, 1 / xp.where(fine, best, xp.ones_like(best)), 0 * best))
    return (np.asfortranarray(best), np.asfortranarray(bend)) if quick else (best, bend)


def _add_up(xp: Any, values: Array, quick: bool) -> Array:
    """Sum over the first axis; quick: over rows of memory, in the order of NumPy's own sum.

    That adds up eight sums of each eighth number, two and two.
    """
    if not quick:
        return xp.sum(values, axis=0)
    one, two, three, four, five, six, seven, eight = np.add.reduce(
        values.reshape(-1, 8, *values.shape[1:]), axis=0
    )
    one += two
    three += four
    five += six
    seven += eight
    one += three
    five += seven
    one += five
    return one


def _search_offset(
    x: Array, w: Array, grid: SuperBlockGrid, rounds: int
) -> tuple[Array, Array, Array, Array]:
    """The step and shift of each sub-block, sum w level^2 and sum w."""
    xp = array_namespace(x)
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    signed = grid.offset_limits == (1, 1)  # an offset of its own may have either sign
    if not signed:
        low = xp.minimum(low, xp.zeros_like(low))
        high = xp.maximum(high, xp.zeros_like(high))
    span = high - low
    alive = span > _LEAST
    inverse = xp.where(alive, 1 / xp.where(alive, span, xp.ones_like(span)), 0 * span)
    full = w * xp.ones_like(x) if w.shape != x.shape else w
    mass, wx = xp.sum(full, axis=0), w * x
    first, power = xp.sum(wx, axis=0), xp.sum(wx * x, axis=0)
    # To begin with, one value for all.
    step, bend, shift = 0 * span, 0 * span, -first / mass
    if not signed:
        shift = xp.maximum(shift, 0 * shift)
    least = power + shift * (2 * first + shift * mass)
    top = float(grid.levels[-1])

    def consider(ratio: Array, base: Array) -> None:
        nonlocal step, shift, least, bend
        level = x - base
        level *= ratio
        level = xp.round(level)
        level = level.clip(0.0, top)
        cross = xp.sum(wx * level, axis=0)
        weighted = w * level
        q = xp.sum(weighted, axis=0)
        weighted *= level
        qq = xp.sum(weighted, axis=0)
        det = mass * qq - q * q
        fine = det > 1e-6 * mass * qq
        safe = xp.where(fine, det, xp.ones_like(det))
        s = xp.where(fine, (mass * cross - q * first) / safe, 0 * det)
        m = xp.where(fine, (q * cross - qq * first) / safe, 0 * det)
        if not signed:
            lone = (m < 0) | ~fine
            some = xp.where(qq > 0, qq, xp.ones_like(qq))
            s, m = xp.where(lone, cross / some, s), xp.where(lone, 0 * m, m)
            s = xp.maximum(s, 0 * s)
        error = power - s * cross + m * first
        if not signed:
            fine = s > 0
        better = fine & (error < least)
        step, shift = xp.where(better, s, step), xp.where(better, m, shift)
        least, bend = xp.where(better, error, least), xp.where(better, qq, bend)

    for extra in OFFSET_TRIES:
        consider((top + extra) * inverse, low)
    for _ in range(rounds):
        fine = step != 0
        ratio = xp.where(fine, 1 / xp.where(fine, step, xp.ones_like(step)), 0 * step)
        consider(ratio, -shift)
    return step, shift, bend, mass


def _whole(
    values: Array,
    bend: Array,
    limits: tuple[int, int],
    nearest: Callable[[Array], Array] | None = None,
    *,
    upright: bool = False,
) -> tuple[Array, Array]:
    """Write values [sub_blocks, blocks] as a scale [blocks] times whole numbers.

    The scale is tried so that the value of largest size falls on the limit, or a little inside;
    what matters is sum bend * (value - scale * whole)^2. nearest: gives whole numbers within the
    limits; None: any are. upright: scales are not below 0.
    """
    xp = array_namespace(values)
    low, high = limits
    if low == high:  # one sub-block, and nothing to choose
        return to_half(values[0, :] / low), xp.ones_like(values) * low
    top, bottom = xp.max(values, axis=0), xp.min(values, axis=0)
    extreme = xp.where(top > -bottom, top, bottom)
    extreme = xp.abs(extreme) if upright else extreme
    edge = low if -low > high else high
    best_scale, best_whole, least = None, None, None
    inward = 1 if edge > 0 else -1
    for number in range(6 if high <= 15 else 3):
        scale = to_half(extreme / (edge - inward * number * (0.5 if high <= 15 else 1.0)))
        fine = scale != 0
        ratio = values / xp.where(fine, scale, xp.ones_like(scale))
        ratio = xp.where(fine, ratio, xp.zeros_like(ratio))
        whole = nearest(ratio) if nearest else xp.round(ratio).clip(float(low), float(high))
        off = values - scale * whole
        error = xp.sum(bend * off * off, axis=0)
        if least is None:
            best_scale, best_whole, least = scale, whole, error
            continue
        better = error < least
        least = xp.where(better, error, least)
        best_scale = xp.where(better, scale, best_scale)
        best_whole = xp.where(better, whole, best_whole)
    return best_scale, best_whole


@cache
def _half_steps(levels: tuple[float, ...]) -> list[float]:
    """The nearest level of all numbers from n / 2 up to (n + 1) / 2: none lies across a middle."""
    return [
        float(min(levels, key=lambda level: abs(4 * level - 2 * place - 1)))
        for place in range(int(2 * levels[0]), int(2 * levels[-1]) + 1)
    ]


def codes_of_levels(levels: Array, grid: SuperBlockGrid) -> Any:
    """Give codes, uint8, of levels that are floats."""
    xp = array_namespace(levels)
    if grid.even:
        return xp.astype(levels - grid.levels[0], xp.uint8)
    fine = 1 if grid.codebook is None else 8  # magnitudes are whole numbers of eighths
    table = [0] * (int((grid.levels[-1] - grid.levels[0]) * fine) + 1)
    for code, level in enumerate(grid.levels):
        table[int((level - grid.levels[0]) * fine)] = code
    lookup = xp.asarray(table, dtype=xp.uint8, device=device(levels))
    place = xp.astype((levels - grid.levels[0]) * fine, xp.int64)
    return xp.reshape(xp.take(lookup, xp.reshape(place, (-1,)), axis=0), levels.shape)
