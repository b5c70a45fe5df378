from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packlight.maths.balance import equalize_channels, equalizing_scales

RANGES = hnp.arrays(np.float64, 8, elements=st.floats(1e-6, 1e6))


@given(RANGES, RANGES)
def test_both_layers_get_the_geometric_mean_of_their_ranges(
    first: np.ndarray, second: np.ndarray
) -> None:
    scales = equalize_channels(first, second)
    np.testing.assert_allclose(first / scales, np.sqrt(first * second))
    np.testing.assert_allclose(second * scales, np.sqrt(first * second))


def test_the_function_of_two_layers_stays_the_same() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((9, 5)) * np.logspace(-3, 3, 9)[:, None]
    bias, second, x = rng.standard_normal(9), rng.standard_normal((4, 9)), rng.standard_normal(5)
    s = equalize_channels(np.abs(first).max(axis=1), np.abs(second).max(axis=0))
    before = second @ np.maximum(first @ x + bias, 0)
    after = (second * s) @ np.maximum(first / s[:, None] @ x + bias / s, 0)
    np.testing.assert_allclose(after, before)


@given(RANGES, RANGES, st.floats(0, 1))
def test_strength_moves_range_from_one_side_to_the_other(
    activations: np.ndarray, weights: np.ndarray, strength: float
) -> None:
    scales = equalizing_scales(activations, weights, strength=strength)
    plain = activations**strength / weights ** (1 - strength)
    np.testing.assert_allclose(scales / scales[0], plain / plain[0], rtol=1e-9)
    assert np.mean(np.log(scales)) == pytest.approx(0, abs=1e-9)
    even = activations / equalizing_scales(activations, weights, strength=1.0)
    np.testing.assert_allclose(even, even[0])


def test_dead_channels_are_left_alone() -> None:
    first, second = np.array([0.0, 2, 3, 8]), np.array([1.0, 0, 3, 2])
    np.testing.assert_allclose(equalize_channels(first, second), [1, 1, 1, 2])
    np.testing.assert_allclose(equalizing_scales(0 * first, second), 1)


def test_ranges_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        equalizing_scales(np.ones(2), np.ones(2), strength=1.5)
    with pytest.raises(ValueError, match="finite"):
        equalize_channels(np.array([np.nan, 1]), np.ones(2))


def test_pytorch_gives_the_same_scales() -> None:
    torch = pytest.importorskip("torch")
    a, w = np.array([0.0, 2, 3, 8]), np.array([1.0, 1, 0.3, 2])
    found = equalizing_scales(torch.asarray(a), torch.asarray(w), strength=0.8)
    np.testing.assert_allclose(found.numpy(), equalizing_scales(a, w, strength=0.8))
