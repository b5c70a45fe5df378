"""Scales and zero points without data, for errors that forgive a few outliers.

Half-quadratic quantization (Badri and Shaji 2023) minimises |W - Q|_p^p with p < 1, under
which a large error here and there costs less than many middling ones, so that a few
far-away weights don't pull the grid apart. The trick is a second set of unknowns E, the
errors to be put up with: min |E|_p^p + beta / 2 |E - (W - Q)|^2 is solved for E by
shrinkage and for the zero point (and the scale) in closed form, in turn, beta growing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from array_api_compat import array_namespace

from packlight.maths.grids import (
    Array,
    IntegerGrid,
    block_counts,
    expand_blocks,
    scale_and_zero_point,
    split_blocks,
)

_ELEMENTS_AT_A_TIME = 1 << 16  # the iterations stay in the processor's cache


def range_half_quadratic(
    weight: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
    power: float = 0.7,
    beta: float = 10.0,
    growth: float = 1.01,
    iterations: int = 20,
    starts: Sequence[float] = (1.0,),
    fit_scale: bool = True,
    whole_zero: bool = False,
) -> tuple[Array, Array]:
    """Find scale and zero point of each block by half-quadratic splitting.

    With codes c = clip(round(w / s + z)), q = (c - z) s and r = (w - q) / s, in turn
        e = sign(r) max(|r| - |r|^(p - 1) / beta, 0)       generalized soft-threshold
        z = mean(c - (w / s - e))                          closed form
        s = sum((w - s e) (c - z)) / sum((c - z)^2)        closed form, where `fit_scale`
    and beta grows by `growth`. Errors count in steps of the grid, so that `beta` means the
    same for weights of any size. The ranges begin at min-max (max scaling) times `starts`;
    for each block the best of all iterates under sum |w - q|^p is returned, which is
    therefore never above max scaling's.

    weight: any shape, finite. power: p, above 0 and at most 1. iterations: of each start.
    starts: more of them, (1.0, 0.7), find less of the p-error, but by clipping: the squared
    error, which from min-max alone mostly falls as well, may then be a multiple.
    whole_zero: the zero point is rounded (and kept in the grid) at each iteration, before the
    error is measured and the scale fitted to it, so that the best *integer* zero point is
    kept; rounding a float one afterwards would move every value by up to half a step.
    Without, zero points are floats and 0 itself may fall between two levels. On a symmetric
    grid the zero point stays in the middle, and only scales move.
    Returns scale and zero point, float32, one entry a block, of the rank of the weight.
    Raises ValueError for a weight that is not finite, or a power or beta out of bounds.
    """
    xp = array_namespace(weight)
    if not 0 < power <= 1:
        raise ValueError(f"the power of the error lies above 0 and at most at 1, not at {power}")
    if beta <= 0 or growth < 1:
        raise ValueError(f"beta is above 0 and does not shrink, not {beta} growing by {growth}")
    if not bool(xp.all(xp.isfinite(weight))):
        raise ValueError("the weight is not finite: it holds NaN or infinity")
    blocks = split_blocks(weight, block_shape)
    here = split_blocks(xp.ones_like(weight), block_shape)  # 0 in the padding
    scales, zeros = [], []
    stride = max(1, _ELEMENTS_AT_A_TIME // max(1, blocks.shape[1]))
    for start in range(0, blocks.shape[0], stride):
        rows = xp.astype(blocks[start : start + stride, :], xp.float64)
        mask = xp.astype(here[start : start + stride, :], xp.float64)
        scale = zero = least = None
        for factor in starts:
            first = _max_scaling(xp, rows, grid, factor)
            for s, z in _iterates(
                xp, rows, mask, grid, first, power, beta, growth, iterations, fit_scale, whole_zero
            ):
                errors = _power_errors(xp, rows, mask, grid, s, z, power)
                if least is None:
                    scale, zero, least = s, z, errors
                better = errors < least
                scale, zero = xp.where(better, s, scale), xp.where(better, z, zero)
                least = xp.where(better, errors, least)
        scales.append(scale)
        zeros.append(zero)
    counts = block_counts(weight.shape, block_shape)
    return (
        xp.astype(xp.reshape(xp.concat(scales), counts), xp.float32),
        xp.astype(xp.reshape(xp.concat(zeros), counts), xp.float32),
    )


def quantize_half_quadratic(
    weight: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
) -> tuple[Array, Array]:
    """Round to the nearest code with zero points that need not be whole.

    codes = clip(round(weight / scale + zero_point)), values = (codes - zero_point) * scale.
    Returns codes in the grid's integer type and values in float32, shaped as the weight.
    """
    xp = array_namespace(weight)
    s, z = (
        expand_blocks(xp.astype(x, xp.float64), weight.shape, block_shape)
        for x in (scale, zero_point)
    )
    codes = grid.codes_of(xp.astype(weight, xp.float64) / s + z)
    values = xp.astype(grid.steps_of(codes, z) * s, xp.float32)
    return xp.astype(codes, getattr(xp, grid.dtype_name)), values


def half_quadratic_errors(
    weight: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
    power: float = 0.7,
) -> tuple[float, float]:
    """Give sum |w - q|^power, which is minimised, and sum (w - q)^2, which is not."""
    xp = array_namespace(weight)
    _, values = quantize_half_quadratic(weight, scale, zero_point, grid, block_shape=block_shape)
    off = abs(xp.astype(weight, xp.float64) - xp.astype(values, xp.float64))
    return float(xp.sum(off**power)), float(xp.sum(off * off))


def shrink(residual: Array, power: float, beta: float) -> Array:
    """Generalized soft-threshold: sign(x) max(|x| - |x|^(power - 1) / beta, 0).

    It stands for the proximal operator of |x|^power (Badri and Shaji 2023, equation 4), and
    is the ordinary soft-threshold for a power of 1.
    """
    xp = array_namespace(residual)
    size = abs(residual)
    tiny = xp.where(size > 0, size, 1.0)
    return xp.sign(residual) * xp.clip(size - tiny ** (power - 1) / beta, 0.0, None)


def _iterates(
    xp: Any,
    rows: Array,
    mask: Array,
    grid: IntegerGrid,
    first: tuple[Array, Array],
    power: float,
    beta: float,
    growth: float,
    iterations: int,
    fit_scale: bool,
    whole_zero: bool,
) -> Iterator[tuple[Array, Array]]:
    """Yield scales and zero points [blocks], the start first."""
    s, z = first
    yield s, z
    count = xp.sum(mask, axis=1)
    for _ in range(iterations):
        codes = grid.codes_of(rows / s[:, None] + z[:, None])
        steps = rows / s[:, None]
        aim = steps - shrink(steps - grid.steps_of(codes, z[:, None]), power, beta)
        if not grid.symmetric:
            z = xp.sum(mask * (codes - aim), axis=1) / count
        if whole_zero:
            z = xp.clip(xp.round(z), grid.minimum, grid.maximum)
        if fit_scale:
            levels = mask * grid.steps_of(codes, z[:, None])
            size = xp.sum(levels * levels, axis=1)
            ratio = xp.sum(levels * aim, axis=1) / xp.where(size > 0, size, 1.0)
            s = xp.where(ratio > 0, s * ratio, s)
        s, z = _as_stored(xp, s), _as_stored(xp, z)
        beta *= growth
        yield s, z


def _max_scaling(xp: Any, rows: Array, grid: IntegerGrid, factor: float) -> tuple[Array, Array]:
    nothing = xp.zeros_like(rows[:, 0])
    low = xp.minimum(xp.min(rows, axis=1), nothing) * factor
    high = xp.maximum(xp.max(rows, axis=1), nothing) * factor
    scale, zero = scale_and_zero_point(low, high, grid)
    return xp.astype(scale, xp.float64), xp.astype(zero, xp.float64)


def _power_errors(
    xp: Any, rows: Array, mask: Array, grid: IntegerGrid, scale: Array, zero: Array, power: float
) -> Array:
    s, z = scale[:, None], zero[:, None]
    off = abs(rows - grid.steps_of(grid.codes_of(rows / s + z), z) * s)
    return xp.sum(mask * off**power, axis=1)


def _as_stored(xp: Any, values: Array) -> Array:
    return xp.astype(xp.astype(values, xp.float32), xp.float64)
