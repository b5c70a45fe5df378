"""Streaming histograms: what a tensor's values are, in memory that never grows.

Bins are a power of two wide and their edges are whole multiples of the width. A
wider range than the bins reach is made room for by summing neighbours, which is
exact: the result doesn't depend on how the values were cut into batches, nor on
their order. Values go in by `add_to_histogram`, which returns a new histogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any

_CHUNK = 1 << 16
# Below the smallest float32, so that an all-zero tensor gives way to any other value.
_NARROWEST = -160
# Bin numbers stay below 2^22, which float32 arithmetic holds exactly.
_PLACES = 22


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of one power-of-two width, with exact moments.

    counts: [bins] int64; bin i holds values in [(first + i) * width, (first + i + 1) * width).
    exponent: width = 2^exponent. first: number of the first bin.
    count, zeros: how many values, and how many of them are exactly 0.
    minimum, maximum: exact (inf and -inf while empty). sum, sum_of_squares: float64.
    """

    counts: NDArray[np.int64]
    exponent: int
    first: int
    count: int
    zeros: int
    minimum: float
    maximum: float
    sum: float
    sum_of_squares: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """[bins + 1] edges of the bins."""
        numbers = np.arange(len(self.counts) + 1, dtype=np.float64)
        return (self.first + numbers) * self.width

    @property
    def mean(self) -> float:
        """Mean of the values, 0 while empty."""
        return self.sum / max(self.count, 1)

    @property
    def mean_square(self) -> float:
        """Mean of the squared values, 0 while empty."""
        return self.sum_of_squares / max(self.count, 1)


def empty_histogram(bins: int = 2048) -> Histogram:
    """Give a histogram without values. `bins` is even and 4 at least, 2^20 at most."""
    if bins % 2 or not 4 <= bins <= 1 << 20:
        raise ValueError(f"a histogram has an even number of bins from 4 to 2^20, not {bins}")
    counts = np.zeros(bins, np.int64)
    return Histogram(counts, _NARROWEST, 0, 0, 0, math.inf, -math.inf, 0.0, 0.0)


def add_to_histogram(histogram: Histogram, array: Array) -> Histogram:
    """Count the values of an array of any shape; the bins widen where they must.

    Raises ValueError, saying how many, where values are NaN or infinite.
    """
    values = np.asarray(array).reshape(-1)
    if values.dtype != np.float32:
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if not values.size:
        return histogram
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        broken = values.size - int(np.count_nonzero(np.isfinite(values)))
        raise ValueError(f"{broken} of {values.size} values are NaN or infinite")
    wide = _widened(histogram, low, high)
    counts, zeros, total, squares = _counts_and_moments(values, wide)
    return replace(
        wide,
        counts=wide.counts + counts,
        count=wide.count + values.size,
        zeros=wide.zeros + zeros,
        sum=wide.sum + total,
        sum_of_squares=wide.sum_of_squares + squares,
    )


def merge_histograms(one: Histogram, other: Histogram) -> Histogram:
    """Sum two histograms of equally many bins, as if one had seen the values of both."""
    if len(one.counts) != len(other.counts):
        raise ValueError(f"{len(one.counts)} and {len(other.counts)} bins cannot be merged")
    if not other.count:
        return one
    wide = _widened(one, other.minimum, other.maximum)
    shift = wide.exponent - other.exponent
    if shift < 0:
        wide = _rebinned(wide, other.exponent, _bin(wide.minimum, other.exponent))
        shift = 0
    return replace(
        wide,
        counts=wide.counts + _moved(other, shift, wide.first),
        count=wide.count + other.count,
        zeros=wide.zeros + other.zeros,
        sum=wide.sum + other.sum,
        sum_of_squares=wide.sum_of_squares + other.sum_of_squares,
    )


def _counts_and_moments(
    values: NDArray[Any], histogram: Histogram
) -> tuple[NDArray[np.int64], int, float, float]:
    """Count in pieces that stay in the processor's cache, several times faster than at once."""
    bins = len(histogram.counts)
    counts = np.zeros(bins, np.int64)
    zeros, total, squares = 0, 0.0, 0.0
    # Where the product could leave float32's range, or round a tiny negative value to 0.
    extreme = not -120 <= histogram.exponent <= 0
    factor = values.dtype.type(1.0 if extreme else math.ldexp(1.0, -histogram.exponent))
    for start in range(0, values.size, _CHUNK):
        piece = values[start : start + _CHUNK]
        exact = piece.astype(np.float64)
        scaled = np.ldexp(exact, -histogram.exponent) if extreme else piece * factor
        np.floor(scaled, out=scaled)
        scaled -= histogram.first
        counts += np.bincount(scaled.astype(np.intp), minlength=bins)
        zeros += piece.size - int(np.count_nonzero(piece))
        total += float(exact.sum())
        squares += float(exact @ exact)
    return counts, zeros, total, squares


def _widened(histogram: Histogram, low: float, high: float) -> Histogram:
    """Make room for values from low to high, by the narrowest bins that have it."""
    low, high = min(low, histogram.minimum), max(high, histogram.maximum)
    largest = max(abs(low), abs(high))
    exponent = histogram.exponent
    if largest:
        exponent = max(exponent, math.frexp(largest)[1] - _PLACES)
    while _bin(high, exponent) - _bin(low, exponent) >= len(histogram.counts):
        exponent += 1
    wide = _rebinned(histogram, exponent, _bin(low, exponent))
    return replace(wide, minimum=low, maximum=high)


def _rebinned(histogram: Histogram, exponent: int, first: int) -> Histogram:
    """Give the same histogram in bins of 2^exponent, the first of which is `first`."""
    if (exponent, first) == (histogram.exponent, histogram.first):
        return histogram
    counts = _moved(histogram, exponent - histogram.exponent, first)
    return replace(histogram, counts=counts, exponent=exponent, first=first)


def _moved(histogram: Histogram, shift: int, first: int) -> NDArray[np.int64]:
    """Counts in bins 2^shift as wide, numbered from `first`."""
    counts = np.zeros_like(histogram.counts)
    filled = np.flatnonzero(histogram.counts)
    # Python's integers, since an all-zero tensor's bins may shift by more than 63 places.
    places = [((histogram.first + int(i)) >> shift) - first for i in filled]
    np.add.at(counts, places, histogram.counts[filled])
    return counts


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))
