"""Which single weights become 0, and what the others become to make up for it.

A layer is weight W [out, in] with the second moments H = E[x x^T] [in, in] of what reaches it;
all of these make tr((W - V) H (W - V)^T) small over V with zeros: a share of all, or all but n of
every m neighbours along the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace, device

from packlight.maths.compensate import INNER, Waiting, compensate_inputs
from packlight.maths.factor import damp_moments
from packlight.maths.grids import Array, Grid
from packlight.maths.layer import (
    LARGE,
    Precision,
    block_shape_of,
    by_input,
    check_moments,
    row_slices,
    working_type,
)

_CHUNK = 1 << 23  # elements of a temporary array


@dataclass(frozen=True)
class Pattern:
    """Where zeros are.

    share: of weights that become 0, or None. keep, of: so many of so many neighbouring inputs stay
    (2 of 4), or None. within: whether `share` holds for each row or for the layer.
    Raises ValueError for what is neither, or both.
    """

    share: float | None = None
    keep: int | None = None
    of: int | None = None
    within: Literal["layer", "row"] = "layer"

    def __post_init__(self) -> None:
        if (self.share is None) == (self.keep is None) or (self.keep is None) != (self.of is None):
            raise ValueError("a pattern is a share of zeros, or so many kept of so many")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"the share of zeros lies from 0 to 1, not at {self.share}")
        if self.keep is not None and self.of is not None and not 0 < self.keep <= self.of:
            raise ValueError(f"1 to {self.of} of {self.of} weights can be kept, not {self.keep}")


@dataclass(frozen=True)
class Pruned:
    """A weight with zeros.

    weight: float64 [out, in]. kept: bool [out, in]. codes: [out, in] where it is on a grid.
    damping: the share that worked. error: tr((W - V) H (W - V)^T) with the damped H, inputs that
    never came left out. dead_inputs: how many those are.
    """

    weight: Array
    kept: Array
    codes: Array | None
    damping: float
    error: float
    dead_inputs: int


def keep_highest(scores: Array, pattern: Pattern) -> Array:
    """Give which weights a pattern keeps, bool [out, in]: those of the highest scores.

    scores: [out, in]. Of equal ones the later go first. Of an incomplete last group of inputs as
    many stay as of a whole one, at most.
    """
    xp = array_namespace(scores)
    outputs, inputs = scores.shape
    if pattern.keep is not None and pattern.of is not None:
        missing = -inputs % pattern.of
        low = xp.min(scores) - 1 if outputs * inputs else 0.0
        fill = xp.ones((outputs, missing), dtype=scores.dtype, device=device(scores)) * low
        groups = xp.reshape(xp.concat([scores, fill], axis=1), (-1, pattern.of))
        kept = xp.reshape(_highest(xp, groups, pattern.keep), (outputs, inputs + missing))
        return xp.asarray(kept[:, :inputs], copy=True)
    share = pattern.share or 0.0
    if pattern.within == "row":
        return _highest(xp, scores, inputs - round(share * inputs))
    flat = xp.reshape(scores, (1, -1))
    count = outputs * inputs
    return xp.reshape(_highest(xp, flat, count - round(share * count)), (outputs, inputs))


def prune_with_compensation(
    weight: Array,
    second_moments: Array,
    pattern: Pattern,
    *,
    damping: float = 0.01,
    block: int = 128,
    grid: Grid | None = None,
    scale: Array | None = None,
    zero_point: Array | float = 0,
    group_size: int | None = None,
    kept: Array | None = None,
    precision: Precision | None = None,
) -> Pruned:
    """Prune one input after another, and let those still free make up for it.

    Before each block of inputs (each m, where n of m are kept) the weights of least
    t_i^2 R_ii^2 = t_i^2 / U_ii^2 are chosen, t what compensation has made of them by then
    (SparseGPT, Frantar and Alistarh 2023; R, U as in `compensate_inputs`). With a grid those that
    stay are rounded in the same sweep.

    weight: [out, in]. second_moments: [in, in]. A `share` of the layer holds in each block.
    grid, scale, zero_point, group_size: as in `round_with_compensation`; 0 must lie on the grid.
    kept: bool [out, in], where it is known what is kept; the pattern is then not used.
    damping, block, precision: as in `round_with_compensation`.
    Returns Pruned. Raises ValueError for second moments that are not finite or of another size, or
    a grid without 0.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    dtype = working_type(weight, precision)
    check_moments(second_moments, inputs)
    if grid is not None and scale is None:
        raise ValueError("rounding to a grid needs a scale")
    if grid is not None:
        shape = block_shape_of(weight, scale, group_size)
        zeros = xp.asarray(zero_point) + 0.0 * xp.asarray(scale)
        s, z = (by_input(xp, values, weight.shape, shape) for values in (scale, zeros))
        nothing = grid.codes_of(0.0 * z.rows, z.rows)
        if bool(xp.any(grid.steps_of(nothing, z.rows) != 0)):
            raise ValueError(f"weights become 0, which is not on {grid}")
    inner, stretch = INNER, block
    if pattern.of is not None:
        stretch = pattern.of
        inner = max(pattern.of, INNER // pattern.of * pattern.of)
        block = max(block // inner, 1) * inner
    stays = xp.zeros((inputs, outputs), dtype=xp.bool, device=device(weight))
    if kept is not None:
        stays[...] = kept.T
    place = device(weight)
    values = xp.zeros((inputs, outputs), dtype=xp.float64, device=place)
    codes = None
    if grid is not None:
        codes = xp.zeros((inputs, outputs), dtype=getattr(xp, grid.dtype_name), device=place)
    seen = 0

    def look(places: Sequence[int], targets: Array, prices: Sequence[float]) -> None:
        nonlocal seen
        weights = xp.asarray(list(prices), dtype=xp.float64, device=place)
        scores = (xp.astype(targets, xp.float64) ** 2 * weights[:, None]).T
        # What never comes weighs nothing, whatever its weight: it goes first.
        scores = xp.where((weights > 0)[None, :], scores, xp.full_like(scores, -1.0))
        part = pattern
        if pattern.share is not None:
            # Shares of blocks are rounded so that their sum is right.
            size = outputs if pattern.within == "layer" else 1
            before, after = seen * size, (seen + len(places)) * size
            gone = round(pattern.share * after) - round(pattern.share * before)
            part = Pattern(share=gone / max(after - before, 1), within=pattern.within)
            seen += len(places)
        chosen = keep_highest(scores, part)
        for number, i in enumerate(places):
            stays[i, :] = chosen[:, number]

    def pick(i: int, target: Array, waiting: Waiting) -> Array:
        value = xp.astype(target, xp.float64)
        if grid is not None and codes is not None:
            scale_i, zero_i = s.at(i), z.at(i)
            none = xp.zeros_like(value)
            code = grid.codes_of(xp.where(stays[i, :], value / scale_i, none), zero_i)
            codes[i, :] = xp.astype(code, codes.dtype)
            value = grid.steps_of(code, zero_i) * scale_i
        value = xp.where(stays[i, :], value, xp.zeros_like(value))
        values[i, :] = value
        return value

    found = compensate_inputs(
        weight, second_moments, pick, damping=damping, dtype=dtype, block=block, inner=inner,
        look=look if kept is None else None, stretch=stretch,
    )  # fmt: skip
    return Pruned(
        weight=xp.asarray(values.T, copy=True),
        kept=xp.asarray(stays.T, copy=True),
        codes=None if codes is None else xp.asarray(codes.T, copy=True),
        damping=found.factor.damping,
        error=found.error,
        dead_inputs=sum(found.factor.dead),
    )


def refit_masked(
    weight: Array,
    kept: Array,
    second_moments: Array,
    *,
    start: Array | None = None,
    damping: float = 0.01,
    steps: int = 50,
) -> Array:
    """Give the weights of least tr((W - V) H (W - V)^T) among those with given zeros.

    A row r with the kept inputs K is V_rK = (W H)_rK (H_KK)^-1: solved as it stands up to 1024
    inputs, otherwise by conjugate gradients from `start`, which lower the error with each step.
    weight: [out, in]. kept: bool [out, in]. second_moments: [in, in]. start: [out, in], with zeros
    where nothing is kept; without it the kept weights as they are.
    damping: share of the mean diagonal added to H. steps: of conjugate gradients, at most.
    Returns float64 [out, in]. No row is worse than at `start` under the damped H.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    check_moments(second_moments, inputs)
    h = damp_moments(second_moments, damping=damping)
    mask = xp.astype(kept, xp.float64)
    w = xp.astype(weight, xp.float64)
    begin = (w if start is None else xp.astype(start, xp.float64)) * mask
    if inputs > LARGE:
        return _conjugate_gradients(xp, w, begin, mask, h, steps)
    counts = [int(count) for count in xp.count_nonzero(kept, axis=1)]
    order = sorted(range(outputs), key=lambda row: counts[row])
    found = xp.asarray(begin, copy=True)
    at = 0
    while at < outputs:
        # Rows of as many kept inputs stand together, so that little has to be filled up.
        size = max(1, _CHUNK // max(counts[order[at]], 1) ** 2)
        most = max(counts[order[min(at + size, outputs) - 1]], 1)
        size = max(1, min(size, _CHUNK // most**2))
        chosen = order[at : at + size]
        at += size
        rows = xp.asarray(chosen, dtype=xp.int64, device=device(w))
        part = _solve_rows(xp, w[rows, :], kept[rows, :], h, max(counts[chosen[-1]], 1))
        before, after = (_row_errors(xp, w[rows, :] - v, h) for v in (begin[rows, :], part))
        found[rows, :] = xp.where((after < before)[:, None], part, begin[rows, :])
    return found


def _highest(xp: Any, scores: Array, count: int) -> Array:
    """Which entries of each row are its `count` highest, the earlier of equal ones first."""
    order = xp.argsort(scores, axis=1, descending=True, stable=True)
    rank = xp.argsort(order, axis=1, stable=True)
    return rank < count


def _solve_rows(xp: Any, w: Array, kept: Array, h: Array, most: int) -> Array:
    """Least squares of rows that keep at most `most` inputs each."""
    # The kept inputs of each row come first, in order; those that fill up are cut off again.
    wide = xp.astype(kept, xp.int64)
    index = xp.argsort(wide, axis=1, descending=True, stable=True)[:, :most]
    row = xp.arange(w.shape[0], device=device(w))[:, None]
    real = xp.astype(kept, xp.float64)[row, index]
    both = real[:, :, None] * real[:, None, :]
    eye = xp.eye(most, dtype=xp.float64, device=device(w))
    square = h[index[:, :, None], index[:, None, :]] * both + (1 - real)[:, :, None] * eye
    right = xp.matmul(w, h)[row, index] * real
    out = xp.zeros_like(w)
    out[row, index] = xp.linalg.solve(square, right[:, :, None])[:, :, 0] * real
    return out


def _conjugate_gradients(
    xp: Any, w: Array, begin: Array, mask: Array, h: Array, steps: int
) -> Array:
    """All rows at once, in the inputs that each keeps, scaled by the diagonal (Jacobi)."""
    diagonal = xp.linalg.diagonal(h)[None, :]
    found = xp.asarray(begin, copy=True)
    rest = xp.matmul(w - found, h) * mask
    scaled = rest / diagonal
    along = scaled
    size = xp.sum(rest * scaled, axis=1)
    first = size
    for _ in range(steps):
        reach = xp.matmul(along, h) * mask
        bend = xp.sum(along * reach, axis=1)
        usable = (bend > 0) & (size > 1e-16 * first)
        if not bool(xp.any(usable)):
            break
        step = xp.where(usable, size / xp.where(usable, bend, 1.0 + 0 * bend), 0 * size)
        found = found + step[:, None] * along
        rest = rest - step[:, None] * reach
        scaled = rest / diagonal
        new = xp.sum(rest * scaled, axis=1)
        turn = xp.where(usable, new / xp.where(size > 0, size, 1.0 + 0 * size), 0 * new)
        along = scaled + turn[:, None] * along
        size = new
    return found


def _row_errors(xp: Any, off: Array, h: Array) -> Array:
    found = xp.empty((off.shape[0],), dtype=xp.float64, device=device(off))
    for rows in row_slices(off.shape[0]):
        found[rows] = xp.sum(xp.matmul(off[rows, :], h) * off[rows, :], axis=1)
    return found
