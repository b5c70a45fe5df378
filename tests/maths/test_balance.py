from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packlight.maths.balance import (
    equalize_channels,
    equalizing_scales,
    search_smoothing,
    search_token_smoothing,
)
from packlight.maths.grids import IntegerGrid, scale_and_zero_point

INT4 = IntegerGrid(4, signed=True, symmetric=True)
INT8 = IntegerGrid(8, signed=True, symmetric=True)
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


def layer(
    seed: int, inputs: int = 24, rows: int = 600
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two weights that read the same activations, some channels of which are far larger."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)) @ (np.eye(inputs) + 0.2 * rng.random((inputs, inputs)))
    x[:, rng.choice(inputs, 3, replace=False)] *= 30
    weights = [rng.standard_normal((outputs, inputs)) for outputs in (8, 12)]
    return weights, x, x.T @ x / rows


def round_min_max(array: np.ndarray, grid: IntegerGrid) -> np.ndarray:
    scale, _ = scale_and_zero_point(array.min(axis=1), array.max(axis=1), grid)
    step = scale.astype(np.float64)[:, None]
    return np.clip(np.round(array / step), grid.minimum, grid.maximum) * step


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_smoothing_finds_the_best_that_trying_each_strength_slowly_finds(
    activation_bits: int | None,
) -> None:
    weights, x, h = layer(0)
    ranges = np.stack([x.min(axis=0), x.max(axis=0)])
    largest, columns = np.abs(x).max(axis=0), np.abs(np.concatenate(weights)).max(axis=0)
    candidates = [np.ones(24)]
    for strength in (0.25, 0.5, 0.75):
        candidates.append(largest**strength / columns ** (1 - strength))
        candidates.append(np.sqrt(np.diag(h)) ** strength)
    errors = []
    for scales in candidates:
        scales = scales / np.exp(np.mean(np.log(scales)))
        error = 0.0
        for weight in weights:
            rounded = round_min_max(weight * scales, INT4)
            # The error over the samples themselves, not over their moments.
            error += float(np.sum((x @ (weight - rounded / scales).T) ** 2)) / len(x)
            if activation_bits:
                step = ((x / scales).max() - (x / scales).min()) / 255
                error += step**2 / 12 * float(np.sum(rounded**2))
        errors.append(error)
    found = search_smoothing(
        weights, h, ranges, INT4, strengths=(0.25, 0.5, 0.75), activation_bits=activation_bits
    )
    assert found.error == pytest.approx(min(errors), rel=1e-6)
    assert found.error_without == pytest.approx(errors[0], rel=1e-6)
    best = candidates[int(np.argmin(errors))]
    np.testing.assert_allclose(found.scales / found.scales[0], best / best[0], rtol=1e-9)


@pytest.mark.parametrize(("grid", "bits"), [(INT4, None), (INT8, 8)])
def test_smoothing_helps_where_some_channels_are_far_larger(
    grid: IntegerGrid, bits: int | None
) -> None:
    for seed in range(5):
        weights, x, h = layer(seed)
        found = search_smoothing(weights, h, np.abs(x).max(axis=0), grid, activation_bits=bits)
        assert found.error < 0.6 * found.error_without
        assert found.rule in ("ranges", "moments") and 0 < found.strength <= 1


def test_the_noise_of_rounded_activations_is_what_rounding_them_costs() -> None:
    weights, x, h = layer(1, rows=4000)
    ranges = np.stack([x.min(axis=0), x.max(axis=0)])
    found = search_smoothing(weights, h, ranges, INT8, activation_bits=8)
    for scales, predicted in (
        (np.asarray(found.scales), found.error),
        (np.ones(24), found.error_without),
    ):
        smooth = x / scales
        scale, zero = scale_and_zero_point(
            smooth.min(), smooth.max(), IntegerGrid(8, signed=False, symmetric=False)
        )
        codes = np.clip(np.round(smooth / scale) + zero, 0, 255)
        error = 0.0
        for weight in weights:
            rounded = round_min_max(weight * scales, INT8)
            off = (codes - zero) * float(scale) @ rounded.T - x @ weight.T
            error += float(np.sum(off**2)) / len(x)
        assert predicted == pytest.approx(error, rel=0.1)


def test_the_function_stays_the_same_and_weights_are_judged_together() -> None:
    weights, x, h = layer(2)
    found = search_smoothing(weights, h, np.abs(x).max(axis=0), INT4)
    np.testing.assert_allclose((x / found.scales) @ (weights[0] * found.scales).T, x @ weights[0].T)
    # Rows have scales of their own: several weights are one with the rows of all.
    stacked = search_smoothing([np.concatenate(weights)], h, np.abs(x).max(axis=0), INT4)
    np.testing.assert_allclose(found.scales, stacked.scales)
    assert found.error == pytest.approx(stacked.error)
    assert found.error_without == pytest.approx(stacked.error_without)


@given(st.integers(0, 10_000), st.sampled_from([None, 4, 8]), st.sampled_from([(1, -1), (1, 4)]))
def test_smoothing_never_makes_it_worse(
    seed: int, bits: int | None, block_shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 8)) * rng.choice([0.0, 1.0, 50.0], 8)
    weight = rng.standard_normal((5, 8)) * rng.choice([0.0, 1.0, 50.0], 8)
    found = search_smoothing(
        [weight],
        x.T @ x / 20,
        np.abs(x).max(axis=0),
        INT4,
        block_shape=block_shape,
        activation_bits=bits,
        strengths=(0.5, 1.0),
    )
    assert found.error <= found.error_without
    assert np.all(np.isfinite(found.scales)) and np.all(found.scales > 0)
    if found.rule == "none":
        np.testing.assert_array_equal(found.scales, 1)
        assert found.error == found.error_without


def test_golden_smoothing() -> None:
    # Two levels beside 0: one step is the row's largest weight. s = (1, 4) makes both (8, 8).
    ternary = IntegerGrid(2, signed=True, symmetric=True)
    found = search_smoothing(
        [np.array([[8.0, 2.0]])],
        np.diag([1.0, 16.0]),
        np.array([1.0, 4.0]),
        ternary,
        strengths=(1.0,),
    )
    assert found.error_without == 16 * 2**2
    assert (found.rule, found.strength, found.error) == ("ranges", 1.0, 0.0)
    np.testing.assert_allclose(found.scales, [0.5, 2.0])


def test_smoothing_refuses_what_does_not_fit() -> None:
    weights, x, h = layer(0)
    ranges = np.abs(x).max(axis=0)
    with pytest.raises(ValueError, match="at least one weight"):
        search_smoothing([], h, ranges, INT4)
    with pytest.raises(ValueError, match="as many inputs"):
        search_smoothing([weights[0], weights[1][:, :5]], h, ranges, INT4)
    with pytest.raises(ValueError, match="do not fit 24 inputs"):
        search_smoothing(weights, h, ranges[:5], INT4)
    with pytest.raises(ValueError, match="low <= high"):
        search_smoothing(weights, h, np.stack([ranges, -ranges]), INT4)


def test_pytorch_finds_the_same_smoothing() -> None:
    torch = pytest.importorskip("torch")
    weights, x, h = layer(3)
    ranges = np.abs(x).max(axis=0)
    found = search_smoothing(weights, h, ranges, INT4, activation_bits=8)
    same = search_smoothing(
        [torch.asarray(w) for w in weights],
        torch.asarray(h),
        torch.asarray(ranges),
        INT4,
        activation_bits=8,
    )
    np.testing.assert_allclose(same.scales.numpy(), found.scales)
    assert (same.rule, same.strength) == (found.rule, found.strength)
    assert same.error == pytest.approx(found.error)


def round_by_rows(array: np.ndarray, bits: int = 8) -> np.ndarray:
    """Symmetric integers, each row on its own largest magnitude."""
    step = np.abs(array).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(array / step) * step


@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_by_tokens_and_outputs_costs(seed: int) -> None:
    """The error is about what rounding both sides leaves, with the scales and without any."""
    weights, x, _ = layer(seed, inputs=64, rows=2000)
    found = search_token_smoothing(weights, x)
    for scales, said in (
        (np.ones(64), found.error_without),
        (np.asarray(found.scales), found.error),
    ):
        cost = 0.0
        for weight in weights:
            exact = x @ weight.T
            near = round_by_rows(x / scales) @ round_by_rows(weight * scales).T
            cost += float(((near - exact) ** 2).sum()) / len(x)
        assert said == pytest.approx(cost, rel=0.4)
    assert found.error < 0.5 * found.error_without


@given(st.integers(0, 1000))
def test_powers_of_two_that_never_make_it_worse(seed: int) -> None:
    weights, x, _ = layer(seed, inputs=8, rows=50)
    found = search_token_smoothing(weights, x, strengths=(0.5, 1.0))
    logs = np.log2(np.asarray(found.scales))
    np.testing.assert_array_equal(logs, np.round(logs))
    assert 0 < found.error <= found.error_without
    assert (found.rule == "none") == (found.error == found.error_without)


def test_golden_token_smoothing() -> None:
    """By hand: one token (1, 16) and weights (1, 1): by ranges at 1/2, 1 and 4 over their mean."""
    x, weight = np.array([[1.0, 16.0]]), np.array([[1.0, 1.0]])
    found = search_token_smoothing([weight], x, strengths=(0.5,))
    np.testing.assert_array_equal(found.scales, [0.5, 2.0])
    assert found.rule in ("ranges", "moments")  # of one token they are the same
    steps = (8 / 127) ** 2 * 4.25 + (2 / 127) ** 2 * (4 + 64)
    assert found.error == pytest.approx(steps / 12)
    assert found.error_without == pytest.approx(((16 / 127) ** 2 * 2 + (1 / 127) ** 2 * 257) / 12)


def test_token_smoothing_refuses_what_does_not_fit() -> None:
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match="weights that read the activations"):
        search_token_smoothing([np.ones((2, 5))], x)
    with pytest.raises(ValueError, match="weights that read the activations"):
        search_token_smoothing([], x)
    with pytest.raises(ValueError, match="finite"):
        search_token_smoothing([np.full((2, 4), np.nan)], x)


def test_pytorch_finds_the_same_token_smoothing() -> None:
    torch = pytest.importorskip("torch")
    weights, x, _ = layer(0)
    ours = search_token_smoothing(weights, x)
    theirs = search_token_smoothing([torch.asarray(one) for one in weights], torch.asarray(x))
    np.testing.assert_array_equal(theirs.scales.numpy(), ours.scales)
    assert theirs.error == pytest.approx(ours.error)
