from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packlight.maths.histograms import (
    Histogram,
    add_to_histogram,
    empty_histogram,
    merge_histograms,
)

VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(st.floats(-1e3, 1e3, width=32), st.floats(-(2.0**100), 2.0**100, width=32)),
)


def of(*arrays: np.ndarray, bins: int = 64) -> Histogram:
    histogram = empty_histogram(bins)
    for array in arrays:
        histogram = add_to_histogram(histogram, array)
    return histogram


def same(one: Histogram, other: Histogram) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.exponent, one.first, one.count, one.zeros) == (
        other.exponent,
        other.first,
        other.count,
        other.zeros,
    )
    assert (one.minimum, one.maximum) == (other.minimum, other.maximum)
    assert one.sum == pytest.approx(other.sum, rel=1e-9, abs=1e-9 * 1e30)
    assert one.sum_of_squares == pytest.approx(other.sum_of_squares)


@given(VALUES)
def test_every_value_is_counted_in_its_own_bin(values: np.ndarray) -> None:
    histogram = of(values)
    edges = histogram.edges
    for index in np.flatnonzero(histogram.counts):
        inside = (values >= edges[index]) & (values < edges[index + 1])
        assert inside.sum() == histogram.counts[index]
    assert histogram.counts.sum() == histogram.count == values.size
    assert histogram.zeros == np.sum(values == 0)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    wide = values.astype(np.float64)
    np.testing.assert_allclose(histogram.sum_of_squares, np.sum(wide**2))
    np.testing.assert_allclose(histogram.mean, wide.mean(), atol=1e-9 * np.abs(wide).max())


@given(VALUES, st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_neither_batches_nor_their_order_matter(
    values: np.ndarray, cuts: list[int], random: object
) -> None:
    places = [0, *sorted(min(cut, values.size) for cut in cuts), values.size]
    batches = [values[a:b] for a, b in pairwise(places)]
    random.shuffle(batches)  # type: ignore[attr-defined]
    same(of(*batches), of(values))


@given(VALUES, VALUES)
def test_merging_is_as_if_one_had_seen_both(one: np.ndarray, other: np.ndarray) -> None:
    same(merge_histograms(of(one), of(other)), of(one, other))
    same(merge_histograms(of(one), empty_histogram(64)), of(one))
    same(merge_histograms(empty_histogram(64), of(one)), of(one))


def test_the_bins_are_the_narrowest_that_hold_the_range() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = of(values, bins=2048)
    used = np.ptp(np.flatnonzero(histogram.counts)) + 1
    assert 1024 <= used <= 2048
    assert len(histogram.counts) == 2048
    expected, _ = np.histogram(values, histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e-38, 1e38, 1e-45])
def test_constants(value: float) -> None:
    histogram = of(np.full(7, value, np.float32))
    assert histogram.counts.max() == 7
    assert histogram.minimum == histogram.maximum == np.float32(value)
    assert histogram.mean_square == pytest.approx(float(np.float32(value)) ** 2)


def test_zeros_give_way_to_any_range() -> None:
    values = np.array([1e-30, -1e-30], np.float32)
    same(of(np.zeros(5, np.float32), values), of(np.append(values, np.zeros(5, np.float32))))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_other_types_count_alike(dtype: type) -> None:
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)
    same(of(values), of(values.astype(np.float32)))


def test_broken_values_are_refused_and_counted() -> None:
    values = np.zeros((4, 5), np.float32)
    values[1, 2], values[3, 3], values[0, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match="3 of 20 values"):
        of(values)


def test_nothing_added_changes_nothing() -> None:
    histogram = of(np.ones(3))
    assert add_to_histogram(histogram, np.zeros((0, 4), np.float32)) is histogram


def test_the_old_value_stays_as_it_was() -> None:
    before = of(np.ones(3))
    counts = before.counts.copy()
    add_to_histogram(before, np.linspace(-100, 100, 50))
    np.testing.assert_array_equal(before.counts, counts)
