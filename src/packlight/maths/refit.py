"""Scales that fit given codes best, and rounding that alternates with them.

For fixed codes a layer V = Q S is linear in its scales: the error tr((W - V) H (W - V)^T) is
a quadratic in them, least where a small linear system says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace, device

from packlight.maths.factor import keep_factors
from packlight.maths.grids import Array, Grid, block_counts, expand_blocks
from packlight.maths.layer import (
    Precision,
    block_shape_of,
    check_moments,
    one_a_block,
    row_slices,
    working_type,
)
from packlight.maths.rounding import RoundingInfo, coordinate_descent, round_with_compensation
from packlight.maths.scales import Store

_CHUNK = 1 << 19  # elements of a temporary array


@dataclass(frozen=True)
class RefitInfo:
    """What alternating between codes and scales did.

    rounding: of the first error-compensated rounding. rounds: how often the scales were
        refitted with a gain.
    first_error, error: tr((W - Q) H (W - Q)^T), undamped: after the first rounding with the
        scales as given, and of what is returned.
    """

    rounding: RoundingInfo
    rounds: int
    first_error: float
    error: float


def refit_scales(
    weight: Array,
    codes: Array,
    second_moments: Array,
    zero_point: Array,
    grid: Grid,
    *,
    block_shape: Sequence[int],
    scale: Array | None = None,
    precision: Precision | None = None,
) -> Array:
    """Give the scales that make the error of fixed codes least.

    With q = steps_of(codes), one scale for a row: s = (q H w^T) / (q H q^T). With groups g of a
    row: A s = b, A_gk = q_g H_gk q_k^T, b_g = q_g (H w^T)_g; where rows share scales their
    systems add up. Solved as a correction of `scale`, with the least ridge that keeps what does
    not matter (dead inputs, codes of 0) as it was.
    weight, codes: [out, in]. second_moments: [in, in], symmetric. zero_point: one a block.
    block_shape: of the scales. scale: the present ones; without them the squared error of the
    weights alone says where to start. precision: as in `round_with_compensation`.
    Returns float32 scales above 0, one a block in the shape of `block_counts`. Their error is
    not above that of `scale`: a block row that would not gain keeps what it has.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    check_moments(second_moments, inputs)
    counts = block_counts(weight.shape, block_shape)
    block = (int(block_shape[0]), int(block_shape[1]))
    high = outputs if block[0] == -1 else block[0]
    wide = inputs if block[1] == -1 else block[1]
    h = xp.astype(second_moments, working_type(weight, precision), copy=False)
    ridge = 1e-12 if h.dtype == xp.float64 else 1e-6
    zero = one_a_block(xp, zero_point, weight.shape, block)
    old = None if scale is None else one_a_block(xp, scale, weight.shape, block)
    new = xp.empty(counts, dtype=xp.float32, device=device(weight))
    size = max(1, _CHUNK // (high * max(inputs, counts[1] ** 2)))
    for tiles in row_slices(counts[0], size):
        rows = slice(tiles.start * high, min(tiles.stop * high, outputs))
        shape = (rows.stop - rows.start, inputs)

        def of_tiles(values: Array, tiles: slice = tiles) -> Array:
            wide_values = values[tiles, :] if values.shape[0] > 1 else values
            return xp.astype(wide_values, xp.float64)

        steps = grid.steps_of(codes[rows, :], expand_blocks(of_tiles(zero), shape, (high, wide)))
        w = xp.astype(weight[rows, :], xp.float64)
        if old is None:
            start = _least_squares(xp, w, steps, high, wide)
        else:
            start = xp.broadcast_to(of_tiles(old), (tiles.stop - tiles.start, counts[1]))
        off = w - steps * expand_blocks(start, shape, (high, wide))
        q = xp.astype(steps, h.dtype)
        slope = _block_sums(xp, xp.matmul(xp.astype(off, h.dtype), h) * q, high, wide)
        bend = xp.empty((*slope.shape, counts[1]), dtype=xp.float64, device=device(weight))
        for g in range(counts[1]):
            group = slice(g * wide, min((g + 1) * wide, inputs))
            reach = xp.matmul(q[:, group], h[group, :])
            bend[:, :, g] = _block_sums(xp, reach * q, high, wide)
        new[tiles, :] = _corrected(xp, start, slope, bend, ridge)
    return new


@keep_factors()
def round_and_refit(
    weight: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    rounds: int = 4,
    sweeps: int = 4,
    damping: float = 0.01,
    order: Literal["given", "descending"] = "given",
    pair_limit: int | None = None,
    group_size: int | None = None,
    precision: Precision | None = None,
    store: Store | None = None,
) -> tuple[Array, Array, RefitInfo]:
    """Round with compensation and descent, refit the scales, and again until nothing gains.

    In each round the scales are refitted to the codes; then the codes go on by coordinate
    descent from where they are, or afresh by compensation and descent, whichever is better.
    weight: [out, in]. second_moments: [in, in]. scale, zero_point: as in `round_to_nearest`.
    rounds: at most so many, until one gains less than a thousandth. sweeps: of a descent.
    store: gives the scales that a format holds in place of refitted ones; those given are held.
    The others are those of `round_with_compensation`.
    Returns codes [out, in], float32 scales in the shape of `scale`, and RefitInfo. The error
    is never above that of compensation and descent with the scales as given.
    """
    xp = array_namespace(weight)
    block_shape = block_shape_of(weight, scale, group_size)
    shared = block_shape[0] == -1
    h = xp.astype(second_moments, working_type(weight, precision), copy=False)

    def descend(codes: Array, scale: Array) -> Array:
        return coordinate_descent(
            weight, codes, second_moments, scale, zero_point, grid, sweeps=sweeps,
            pair_limit=pair_limit, group_size=group_size, precision=precision,
        )  # fmt: skip

    def compensate(scale: Array) -> tuple[Array, RoundingInfo]:
        return round_with_compensation(
            weight, second_moments, scale, zero_point, grid, damping=damping, order=order,
            pair_limit=pair_limit, group_size=group_size, precision=precision,
        )  # fmt: skip

    def errors(codes: Array, scale: Array) -> Array:
        """[out], or [1] where all rows share a scale and so cannot choose by themselves."""
        zero = one_a_block(xp, zero_point, weight.shape, block_shape)
        found = _row_errors(xp, weight, codes, h, scale, zero, grid, block_shape)
        return xp.reshape(xp.sum(found), (1,)) if shared else found

    best_scale = xp.asarray(
        xp.astype(one_a_block(xp, scale, weight.shape, block_shape), xp.float32), copy=True
    )
    codes, info = compensate(best_scale)
    best = descend(codes, best_scale)
    least = errors(best, best_scale)
    first, done = float(xp.sum(least)), 0
    for _ in range(rounds):
        before = float(xp.sum(least))
        trial = refit_scales(
            weight, best, second_moments, zero_point, grid,
            block_shape=block_shape, scale=best_scale, precision=precision,
        )  # fmt: skip
        if store is not None:
            trial = xp.astype(store(xp.astype(trial, xp.float64)), xp.float32)
        for codes in (descend(best, trial), descend(compensate(trial)[0], trial)):
            found = errors(codes, trial)
            better = found < least
            least = xp.where(better, found, least)
            best = xp.where(better[:, None], codes, best)
            best_scale = xp.where(better[:, None], trial, best_scale)
        gain = before - float(xp.sum(least))
        done += gain > 0
        if gain <= 1e-3 * before:
            break
    shape = tuple(getattr(scale, "shape", ()))
    return best, xp.reshape(best_scale, shape), RefitInfo(info, done, first, float(xp.sum(least)))


def _block_sums(xp: Any, values: Array, high: int, wide: int) -> Array:
    """Add up the blocks of [rows, in], the last ones of which may be incomplete."""
    for axis, block in ((0, high), (1, wide)):
        missing = -values.shape[axis] % block
        if missing:
            shape = list(values.shape)
            shape[axis] = missing
            filler = xp.zeros(tuple(shape), dtype=values.dtype, device=device(values))
            values = xp.concat([values, filler], axis=axis)
    rows, inputs = values.shape
    parts = xp.reshape(values, (rows // high, high, inputs // wide, wide))
    return xp.sum(xp.sum(parts, axis=3, dtype=xp.float64), axis=1)


def _least_squares(xp: Any, w: Array, steps: Array, high: int, wide: int) -> Array:
    """Give scales of least |w - s q|^2, or 1 where that is not above 0."""
    above, below = (_block_sums(xp, part * steps, high, wide) for part in (w, steps))
    usable = above > 0
    return xp.where(usable, above / xp.where(usable, below, xp.ones_like(below)), 1.0 + 0 * above)


def _corrected(xp: Any, start: Array, slope: Array, bend: Array, ridge: float) -> Array:
    """Lower -2 slope d + d bend d by d = scale - start, in float32 and with scales above 0.

    start, slope: [tiles, groups]. bend: [tiles, groups, groups]. ridge: share of its diagonal.
    """
    groups = slope.shape[1]
    curvature = xp.linalg.diagonal(bend)
    idle = curvature <= 0
    added = ridge * curvature + xp.astype(idle, xp.float64) * (1 - curvature)
    eye = xp.eye(groups, dtype=xp.float64, device=device(slope))
    step = xp.linalg.solve(bend + added[:, :, None] * eye, slope[:, :, None])[:, :, 0]
    positive = xp.all(start + step > 0, axis=1)
    if not bool(xp.all(positive)):
        step = xp.where(positive[:, None], step, _one_by_one(xp, start, slope, bend))
    scale = xp.astype(xp.astype(start + step, xp.float32), xp.float64)
    step = scale - start
    change = xp.sum((xp.matmul(bend, step[:, :, None])[:, :, 0] - 2 * slope) * step, axis=1)
    usable = (change < 0) & xp.all(xp.isfinite(scale) & (scale > 0), axis=1)
    return xp.astype(xp.where(usable[:, None], scale, start), xp.float32)


def _one_by_one(xp: Any, start: Array, slope: Array, bend: Array) -> Array:
    """Lower the quadratic one scale at a time, leaving alone those that would reach 0."""
    step = xp.zeros_like(start + slope)
    left = xp.asarray(slope, copy=True)
    for _ in range(20):
        for g in range(slope.shape[1]):
            curvature = bend[:, g, g]
            usable = curvature > 0
            by = left[:, g] / xp.where(usable, curvature, xp.ones_like(curvature))
            usable = usable & (start[:, g] + step[:, g] + by > 0)
            by = xp.where(usable, by, xp.zeros_like(by))
            step[:, g] += by
            left -= bend[:, :, g] * by[:, None]
    return step


def _row_errors(
    xp: Any,
    weight: Array,
    codes: Array,
    h: Array,
    scale: Array,
    zero: Array,
    grid: Grid,
    block_shape: tuple[int, int],
) -> Array:
    """Give each row's error, float64 [out]. scale, zero: [out or 1, groups]."""
    found = xp.empty((weight.shape[0],), dtype=xp.float64, device=device(weight))
    for rows in row_slices(weight.shape[0]):
        part = weight[rows, :]
        s, z = (
            expand_blocks(
                xp.astype(v[rows, :] if v.shape[0] > 1 else v, xp.float64), part.shape, block_shape
            )
            for v in (scale, zero)
        )
        off = xp.astype(part, xp.float64) - grid.steps_of(codes[rows, :], z) * s
        off = xp.astype(off, h.dtype)
        found[rows] = xp.sum(xp.matmul(off, h) * off, axis=1, dtype=xp.float64)
    return found
