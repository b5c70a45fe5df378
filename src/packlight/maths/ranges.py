"""Where to put the grid: min-max, percentile, least squared error, plain or weighted.

Every range contains 0, since padding and rectified activations must stay exact.
The searches weigh what clipping loses at the ends against what a coarser step
loses everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from packlight.maths.grids import (
    Array,
    IntegerGrid,
    block_counts,
    dequantize,
    quantize,
    scale_and_zero_point,
    split_blocks,
)
from packlight.maths.histograms import Histogram
from packlight.maths.rounding import limit_pairs
from packlight.maths.scales import importance_of

Range: TypeAlias = tuple[float, float]
_Floats: TypeAlias = NDArray[np.float64]


def range_min_max(histogram: Histogram) -> Range:
    """Give the smallest and the largest value seen, widened to contain 0."""
    return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)


def range_percentile(histogram: Histogram, percent: float) -> Range:
    """Give the range that keeps the central `percent` of the values, and 0.

    What is cut off is shared evenly by both ends; data on one side of 0 loses all of it
    at the far end. Inside a bin the values are taken to lie evenly.
    percent: above 0, at most 100 (which is min-max).
    """
    if not 0 < percent <= 100:
        raise ValueError(f"a percentile lies above 0 and at most at 100, not {percent}")
    low, high = range_min_max(histogram)
    if not histogram.count:
        return low, high
    cut = 1 - percent / 100
    two_sided = low < 0 < high
    cumulated = np.concatenate([[0], np.cumsum(histogram.counts)]) / histogram.count
    edges = np.clip(histogram.edges, histogram.minimum, histogram.maximum)
    if low < 0 and cut:
        place = np.searchsorted(cumulated, cut / 2 if two_sided else cut, side="right")
        low = _between(cut / 2 if two_sided else cut, cumulated, edges, int(place))
    if high > 0 and cut:
        share = 1 - (cut / 2 if two_sided else cut)
        place = np.searchsorted(cumulated, share, side="left")
        high = _between(share, cumulated, edges, int(place))
    return min(low, 0.0), max(high, 0.0)


def range_squared_error(histogram: Histogram, grid: IntegerGrid, *, candidates: int = 64) -> Range:
    """Find the range of least expected squared error, clipping and rounding together.

    Both ends move by themselves where the grid is not symmetric. The ends are first placed
    by an estimate that takes rounding as step^2 / 12, for all pairs of bin edges at once;
    the `candidates` best are measured exactly, and the best of those is refined.
    Never worse than min-max under `expected_squared_error`.
    """
    low, high = range_min_max(histogram)
    if not histogram.count or low == high:
        return low, high
    lows, highs = _ends(histogram, grid, candidates)
    lows, highs = np.append(lows, low), np.append(highs, high)
    errors = expected_squared_error(histogram, lows, highs, grid)
    best = int(np.argmin(errors))
    found, least = (float(lows[best]), float(highs[best])), float(errors[best])
    stride = (high - low) / 64
    a: _Floats
    b: _Floats
    for _ in range(6):
        moves = np.linspace(-stride, stride, 5)
        if not grid.symmetric:
            a, b = np.meshgrid(found[0] + moves, found[1] + moves)
        else:
            reach = np.maximum(max(-found[0], found[1]) + np.linspace(-stride, stride, 13), 0)
            a, b = -reach, reach
        a, b = np.clip(a, low, 0).ravel(), np.clip(b, 0, high).ravel()
        keep = b > a
        if not keep.any():
            break
        errors = expected_squared_error(histogram, a[keep], b[keep], grid)
        best = int(np.argmin(errors))
        if errors[best] < least:
            found, least = (float(a[keep][best]), float(b[keep][best])), float(errors[best])
        stride /= 2
    return max(found[0], low), min(found[1], high)


def expected_squared_error(histogram: Histogram, low: Array, high: Array, grid: IntegerGrid) -> Any:
    """Expected squared error of one value when the grid spans [low, high].

    E = sum_i counts_i / count * s^3 / width_i * (G(right_i / s) - G(left_i / s)), where
    G(t) = n / 12 + (t - n)^3 / 3 with n = clip(round(t), minimum - zero_point, maximum -
    zero_point) is the antiderivative of a value's squared distance from the grid, in steps:
    the integral over a bin is exact for values that lie evenly in it. Values of exactly 0
    cost nothing, and the outer bins end at the exact minimum and maximum.
    low, high: floats, or arrays of one shape. Returns a float, or an array of that shape.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not histogram.count:
        return np.zeros_like(low) if low.shape else 0.0
    scale, zero = scale_and_zero_point(low.reshape(-1, 1), high.reshape(-1, 1), grid)
    step = scale.astype(np.float64)
    below, above = grid.minimum - zero.astype(np.float64), grid.maximum - zero.astype(np.float64)
    edges, density, points, shares = _density(histogram)
    places = edges / step
    nearest = np.rint(places)
    np.clip(nearest, below, above, out=nearest)
    places -= nearest
    rest = places * places
    rest *= places
    rest /= 3
    nearest /= 12
    rest += nearest
    errors = np.diff(rest, axis=1) @ density * step[:, 0] ** 3
    places = points / step
    places -= np.clip(np.rint(places), below, above)
    errors += (places * step) ** 2 @ shares
    errors = np.maximum(errors, 0).reshape(low.shape)
    return errors if low.shape else float(errors)


def range_squared_error_of_array(
    array: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
    importance: Array | None = None,
    shrinks: int = 24,
    pair_limit: int | None = None,
) -> tuple[Array, Array]:
    """Find for each block the range of least squared error, by trying it on the values.

    Minimises sum(importance * (array - dequantize(quantize(array)))^2) over ranges
    [a * low, b * high] with factors from 0.2 to 1: first a = b, `shrinks` of them, where the
    grid is not symmetric also coarse pairs of a and b, then finer around the best so far.
    array: any shape. importance: broadcasts to it (the diagonal of the second moments makes
    this the error at the layer's output when inputs are uncorrelated).
    pair_limit: count the error after `rounding.limit_pairs` on neighbours within a block (which
    then has an even size along the last axis); ranges up to twice as wide are tried as well.
    Returns low and high, one entry a block, of the rank of the array.
    """
    xp = array_namespace(array)
    counts = block_counts(array.shape, block_shape)
    blocks = split_blocks(array, block_shape)
    low = xp.minimum(xp.min(blocks, axis=1), xp.zeros_like(blocks[:, 0]))
    high = xp.maximum(xp.max(blocks, axis=1), xp.zeros_like(blocks[:, 0]))
    weights = None
    if importance is not None:
        weights = split_blocks(xp.broadcast_to(importance, array.shape), block_shape)

    def error(a: Array, b: Array) -> Array:
        scale, zero = scale_and_zero_point(low * a, high * b, grid)
        codes = quantize(blocks, scale, zero, grid, block_shape=(1, -1))
        if pair_limit is not None:
            target = blocks / scale[:, None] + zero[:, None]
            codes = limit_pairs(codes, target, grid, pair_limit=pair_limit)
        off = blocks - dequantize(codes, scale, zero, block_shape=(1, -1))
        return xp.sum(off * off if weights is None else weights * off * off, axis=1)

    a = xp.ones_like(low)
    b = xp.ones_like(low)
    least = error(a, b)

    def attempt(new_a: Array, new_b: Array) -> None:
        nonlocal a, b, least
        new_a, new_b = new_a.clip(0.05, widest), new_b.clip(0.05, widest)
        errors = error(new_a, new_b)
        better = errors < least
        a, b = xp.where(better, new_a, a), xp.where(better, new_b, b)
        least = xp.where(better, errors, least)

    widest = 1.0 if pair_limit is None else 2.0
    stride = (widest - 0.2) / shrinks
    for number in range(shrinks + 1):
        factor = xp.full_like(a, widest - number * stride)
        attempt(factor, factor)
    if not grid.symmetric:
        for first, second in product((0.3, 0.44, 0.58, 0.72, 0.86, 1.0), repeat=2):
            attempt(first * xp.ones_like(a), second * xp.ones_like(b))
        stride = 0.14
    for _ in range(2 if grid.symmetric else 3):
        stride /= 3
        for move in (-2 * stride, -stride, stride, 2 * stride):
            middle_a, middle_b = a, b
            attempt(middle_a + move, middle_b + move)
        if grid.symmetric:
            continue
        for move in (-3 * stride, -stride, stride, 3 * stride):
            attempt(a + move, b)
            attempt(a, b + move)
    return xp.reshape(low * a, counts), xp.reshape(high * b, counts)


def range_weighted(
    weight: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
    second_moments: Array | None = None,
    candidates: int = 24,
) -> tuple[Array, Array]:
    """Find for each block the range of least error at the layer's output.

    Minimises sum_j H_jj (w_j - q_j)^2, which is tr((W - Q) H (W - Q)^T) where inputs are not
    correlated, by the search of `range_squared_error_of_array` (`candidates` shrink factors,
    both ends by themselves where the grid is not symmetric, then finer). Under that error no
    block is worse off than by min-max or by plain squared error, and where the inputs of a
    block never carry anything it gets the latter.
    weight: [out, in]. second_moments: [in, in], or only its diagonal [in]; None counts all
    inputs alike. Returns low and high, one entry a block, as `block_counts` says.
    Raises ValueError for second moments of another size, or a diagonal that is negative or not
    finite.
    """
    plain = range_squared_error_of_array(weight, grid, block_shape=block_shape, shrinks=candidates)
    if second_moments is None:
        return plain
    xp = array_namespace(weight)
    diagonal = importance_of(second_moments, weight.shape[-1])
    wide = xp.astype(weight, xp.float64)
    # Divided by the largest: the search compares sums, which neither vanish nor overflow then.
    peak = xp.max(diagonal)
    diagonal = diagonal / xp.where(peak > 0, peak, xp.ones_like(peak))
    weighted = range_squared_error_of_array(
        wide, grid, block_shape=block_shape, importance=diagonal, shrinks=candidates
    )

    def error(low: Array, high: Array) -> Array:
        scale, zero = scale_and_zero_point(low, high, grid)
        codes = quantize(wide, scale, zero, grid, block_shape=block_shape)
        off = wide - dequantize(codes, scale, zero, block_shape=block_shape)
        return xp.sum(split_blocks(diagonal * off * off, block_shape), axis=1)

    # The search starts from min-max and never gets worse; what is left to compare is plain.
    better = xp.reshape(error(*weighted) < error(*plain), plain[0].shape)
    low, high = (
        xp.where(better, ours, xp.astype(other, xp.float64))
        for ours, other in zip(weighted, plain, strict=True)
    )
    return low, high


def _between(share: float, cumulated: _Floats, edges: _Floats, place: int) -> float:
    """Interpolate the value below which `share` of all lie, in the bin that ends at `place`."""
    place = min(max(place, 1), len(cumulated) - 1)
    inside = cumulated[place] - cumulated[place - 1]
    part = (share - cumulated[place - 1]) / inside if inside else 0.0
    return float(edges[place - 1] + min(max(part, 0.0), 1.0) * (edges[place] - edges[place - 1]))


def _density(histogram: Histogram) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Say how the values lie, but for those of exactly 0.

    Returns edges [n + 1] of the filled bins; density [n], the share of values by width; and
    values and shares of what is a point: an outer bin without width, as ReLU6 makes one.
    """
    filled = np.flatnonzero(histogram.counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    edges = np.clip(histogram.edges[first : last + 1], histogram.minimum, histogram.maximum)
    shares = histogram.counts[first:last].astype(np.float64)
    zero_bin = -histogram.first - first
    if histogram.zeros:
        shares[zero_bin] -= histogram.zeros
    shares /= histogram.count
    widths = np.diff(edges)
    spread = widths > histogram.width * 1e-3
    density = np.where(spread, shares, 0) / np.where(spread, widths, 1)
    return edges, density, edges[1:][~spread], shares[~spread]


def _ends(histogram: Histogram, grid: IntegerGrid, candidates: int) -> tuple[_Floats, _Floats]:
    """Pairs of ends that look best when rounding costs step^2 / 12 a value inside."""
    edges, density, points, point_shares = _density(histogram)
    centres = np.append((edges[1:] + edges[:-1]) / 2, points)
    shares = np.append(density * np.diff(edges), point_shares)
    inside = float(shares.sum()) / 12
    low, high = range_min_max(histogram)
    steps = grid.maximum - grid.minimum
    many = 128
    highs = high * np.arange(1, many + 1) / many if high > 0 else np.zeros(1)
    lows = low * np.arange(1, many + 1) / many if low < 0 else np.zeros(1)
    if grid.symmetric:
        reach = max(-low, high) * np.arange(1, 2 * many + 1) / (2 * many)
        cost = _clipped(np.abs(centres), shares, reach) + inside * (2 * reach / steps) ** 2
        pick = np.argsort(cost)[:candidates]
        return -reach[pick], reach[pick]
    cost = _clipped(centres, shares, highs)[None, :] + _clipped(-centres, shares, -lows)[:, None]
    cost += inside * ((highs[None, :] - lows[:, None]) / steps) ** 2
    pick = np.argsort(cost, axis=None)[:candidates]
    rows, columns = np.unravel_index(pick, cost.shape)
    return lows[rows], highs[columns]


def _clipped(values: _Floats, shares: _Floats, ends: _Floats) -> _Floats:
    """Expected squared distance of the values above each end: C2 - 2 end C1 + end^2 C0."""
    order = np.argsort(values)
    values, shares = values[order], shares[order]
    place = np.searchsorted(values, ends)
    sums = [
        np.concatenate([np.cumsum((shares * values**power)[::-1])[::-1], [0.0]])[place]
        for power in range(3)
    ]
    lost: _Floats = np.maximum(sums[2] - 2 * ends * sums[1] + ends * ends * sums[0], 0.0)
    return lost
