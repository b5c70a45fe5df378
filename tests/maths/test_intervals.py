from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.intervals import (
    bootstrap_interval,
    paired_difference_interval,
    samples_for_proof,
    wilson_interval,
)


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def test_wilson_of_newcombes_table() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)


def test_paired_interval_by_hand() -> None:
    # Where no sample differs the ends are z^2 / (n + z^2): not 0, as by plain standard errors.
    low, high = paired_difference_interval(0, 0, 100)
    assert (low, high) == pytest.approx((-0.03699, 0.03699), abs=1e-5)
    low, high = paired_difference_interval(5, 0, 30)
    assert low > 0
    assert high < 0.4


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 500))
def test_the_paired_interval_is_where_the_score_test_accepts(b: int, c: int, more: int) -> None:
    n = b + c + more
    low, high = paired_difference_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    mirrored = paired_difference_interval(c, b, n)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)

    def accepts(difference: float) -> bool:
        # The constrained likelihood, maximised by brute force over the free share.
        grid = np.linspace(1e-9, 1, 200_001)
        first = grid + difference
        rest = 1 - grid - first
        fits = (first > 0) & (rest > 0)
        logs = b * np.log(first[fits]) + c * np.log(grid[fits])
        best = grid[fits][np.argmax(logs + (n - b - c) * np.log(rest[fits]))]
        variance = n * (2 * best + difference * (1 - difference))
        return (b - c - n * difference) ** 2 <= 3.8414588 * variance * 1.0001

    width = high - low
    assert accepts(high - 0.01 * width) and accepts(low + 0.01 * width)
    assert high > 0.97 or not accepts(high + 0.01 * width)
    assert low < -0.97 or not accepts(low - 0.01 * width)


@pytest.mark.parametrize(
    ("n", "lost", "won"), [(40, 0.1, 0.1), (100, 0.05, 0.02), (100, 0.03, 0.03), (60, 0.2, 0.05)]
)
def test_the_paired_interval_covers_at_its_confidence(n: int, lost: float, won: float) -> None:
    """Coverage summed over all outcomes, not simulated."""
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = (
                comb(n, b) * comb(n - b, c) * lost**b * won**c * (1 - lost - won) ** (n - b - c)
            )
            if chance < 1e-7:
                continue
            low, high = paired_difference_interval(b, c, n)
            covered += chance * (low <= lost - won <= high)
    assert 0.93 < covered < 0.985


@pytest.mark.parametrize(("n", "expected"), [(8, 0.9), (30, 0.92), (200, 0.93)])
def test_the_bootstrap_covers_at_its_confidence_on_skewed_data(n: int, expected: float) -> None:
    rng = np.random.default_rng(n)
    covered = 0
    for trial in range(200):
        values = rng.exponential(size=n)
        sums = np.stack([values, np.ones(n)], axis=1)
        low, high = bootstrap_interval(sums, mean, resamples=400, seed=trial)
        covered += low <= 1 <= high
    assert covered / 200 > expected - 0.03


def test_the_bootstrap_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap_interval(np.stack([values, np.ones(400)], axis=1), mean)
    half = 1.966 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_refuses_one_sample() -> None:
    sums = np.random.default_rng(0).random((50, 2)) + 1
    assert bootstrap_interval(sums, mean, seed=3) == bootstrap_interval(sums, mean, seed=3)
    assert bootstrap_interval(sums, mean, seed=3) != bootstrap_interval(sums, mean, seed=4)
    with pytest.raises(ValueError, match="two samples"):
        bootstrap_interval(sums[:1], mean)
    same = np.ones((9, 2))
    assert bootstrap_interval(same, mean) == (1, 1)


@given(st.floats(0, 0.009), st.floats(0, 0.05))
def test_as_many_samples_as_said_are_a_proof_and_half_are_none(drop: float, rate: float) -> None:
    n = samples_for_proof(drop, rate, 0.01)
    assert n is not None
    rate = max(rate, drop)
    for count, proven in ((n, True), (n // 2, False)):
        b, c = count * (rate + drop) / 2, count * (rate - drop) / 2
        assert (paired_difference_interval(b, c, count)[1] <= 0.01) == proven


def test_no_number_of_samples_proves_what_is_not_so() -> None:
    assert samples_for_proof(0.02, 0.03, 0.01) is None
    assert samples_for_proof(0.01, 0.03, 0.01) is None
    # No sample differs: z^2 / (n + z^2) <= 0.01.
    assert samples_for_proof(0.0, 0.0, 0.01) == 381
