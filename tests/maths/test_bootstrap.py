from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from packlight.maths.bootstrap import _rank_of_median, bootstrap_ratio


def _correlated(generator: np.random.Generator, count: int, memory: float) -> NDArray[np.float64]:
    """Noise of variance 1 that remembers `memory` of its last value."""
    values = generator.normal(size=count)
    for k in range(1, count):
        values[k] = memory * values[k - 1] + math.sqrt(1 - memory**2) * values[k]
    return values


def _coverage(memory: float, count: int = 100, tries: int = 200) -> float:
    """How often the interval holds the true ratio, 0.5."""
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(tries):
        denominator = np.exp(generator.normal(0, 1, count))
        numerator = 0.5 * denominator * np.exp(0.1 * _correlated(generator, count, memory))
        found = bootstrap_ratio(numerator, denominator, resamples=200, seed=trial)
        hits += found.low <= 0.5 <= found.high
    return hits / tries


def test_a_constant_ratio_is_known_exactly() -> None:
    denominator = np.random.default_rng(0).uniform(1, 9, 50)
    found = bootstrap_ratio(denominator / 4, denominator)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    assert _coverage(memory=0.0) >= 0.92
    assert _coverage(memory=0.7) >= 0.87, "even where noise has a memory"


def test_noise_with_a_memory_does_not_fake_precision() -> None:
    generator = np.random.default_rng(3)
    ratios = np.exp(0.1 * _correlated(generator, 400, memory=0.9))
    ones = np.ones(400)
    shuffled = generator.permutation(ratios)
    slow, quick = bootstrap_ratio(ratios, ones), bootstrap_ratio(shuffled, ones)
    assert slow.ratio == quick.ratio
    assert slow.high - slow.low > 2 * (quick.high - quick.low)


def test_pairs_cancel_what_both_share() -> None:
    generator = np.random.default_rng(1)
    phases = np.repeat(generator.uniform(1, 10, 10), 20)
    numerator = 0.8 * phases * generator.normal(1, 0.01, 200)
    found = bootstrap_ratio(numerator, phases * generator.normal(1, 0.01, 200))
    assert 0.79 < found.low <= found.ratio <= found.high < 0.81


def test_few_pairs_allow_no_statement() -> None:
    found = bootstrap_ratio([1.0] * 5, [2.0] * 5)
    assert (found.ratio, found.low, found.high) == (0.5, 0.0, math.inf)
    found = bootstrap_ratio([1, 2, 3, 4, 5, 6], [1.0] * 6)
    assert (found.low, found.high) == (1, 6), "six pairs: from the smallest to the largest"


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 1), (9, 2), (10, 2), (20, 6), (100, 40)])
def test_ranks_are_those_of_the_sign_test_tables(count: int, rank: int) -> None:
    assert _rank_of_median(count, 0.95) == rank


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_the_interval_holds_the_ratio_and_repeats(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    numerator, denominator = np.array(pairs).T
    found = bootstrap_ratio(numerator, denominator, seed=seed, resamples=50)
    assert found.low <= found.ratio <= found.high
    assert found == bootstrap_ratio(numerator, denominator, seed=seed, resamples=50)
    scaled = bootstrap_ratio(numerator * 4, denominator, seed=seed, resamples=50)
    assert scaled.ratio == pytest.approx(4 * found.ratio)
    assert scaled.low == pytest.approx(4 * found.low)


@pytest.mark.parametrize(
    ("numerator", "denominator"),
    [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([0.0], [1.0]), ([1.0], [math.nan])],
)
def test_what_is_no_ratio_is_refused(numerator: list[float], denominator: list[float]) -> None:
    with pytest.raises(ValueError, match="paired ratio"):
        bootstrap_ratio(numerator, denominator)
