"""What an error is held against: variance position by position, in one pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.variation import FEWEST, LEAST, variations_of


@given(st.integers(FEWEST, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_it_is_the_mean_variance_of_the_positions(samples: int, batch: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    y = 3 * random.standard_normal((1, 2, 5)) + random.standard_normal((samples, 2, 5))
    runs = [{"y": y[start : start + batch]} for start in range(0, samples, batch)]
    assert variations_of(runs)["y"] == pytest.approx(y.var(axis=0).mean(), rel=1e-6)


@given(st.integers(1, 30), st.floats(-5, 5), st.integers(0, 2**31))
def test_an_offset_changes_nothing_and_a_factor_its_square(n: int, shift: float, seed: int) -> None:
    y = np.random.default_rng(seed).standard_normal((n, 4))
    (plain, moved, scaled) = (variations_of([{"y": a}])["y"] for a in (y, y + shift, 2 * y))
    assert moved == pytest.approx(plain, rel=1e-5)
    assert scaled == pytest.approx(4 * plain, rel=1e-9)


def test_golden_numbers() -> None:
    # Positions 0 and 1: always 1 and 0 but for one sample in ten, which has them the other way.
    y = np.tile([1.0, 0.0], (10, 1))
    y[3] = [0.0, 1.0]
    assert variations_of([{"y": y}])["y"] == pytest.approx(0.09)  # about one mean: 0.25


def test_few_samples_and_open_lengths_are_taken_about_one_mean() -> None:
    random = np.random.default_rng(1)
    few = random.standard_normal((FEWEST - 1, 3)) + np.array([0.0, 4.0, 9.0])
    assert variations_of([{"y": few}])["y"] == pytest.approx(few.var())
    runs = [{"y": random.standard_normal((4, n)) + 2} for n in (3, 5, 7)]
    every = np.concatenate([run["y"].ravel() for run in runs])
    assert variations_of(runs)["y"] == pytest.approx(every.var())


def test_what_never_changes_counts_a_little_and_integers_not_at_all() -> None:
    y = np.tile([1.0, 0.0], (20, 1))
    found = variations_of([{"y": y, "ids": np.arange(20), "zero": np.zeros((20, 2))}])
    assert found == {"y": pytest.approx(LEAST * 0.25), "zero": 1e-12}
