from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.maths.grids import IntegerGrid, dequantize, quantize, scale_and_zero_point
from packlight.maths.histograms import add_to_histogram, empty_histogram
from packlight.maths.ranges import (
    expected_squared_error,
    range_min_max,
    range_percentile,
    range_squared_error,
    range_squared_error_of_array,
    range_weighted,
)
from packlight.maths.rounding import limit_pairs, round_to_nearest

RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.standard_normal(20_000),
    "rectified": np.maximum(RNG.standard_normal(20_000), 0),
    "bounded": np.clip(4 * RNG.standard_normal(20_000), 0, 6),
    "heavy": RNG.standard_t(3, 20_000),
    "negative": -RNG.exponential(size=20_000),
    "shifted": RNG.laplace(size=20_000) + 0.4,
}
DATA = {name: values.astype(np.float32) for name, values in DATA.items()}
GRIDS = [
    IntegerGrid(bits, signed=symmetric, symmetric=symmetric)
    for bits, symmetric in product((2, 3, 4, 8), (False, True))
]


def histogram_of(values: np.ndarray, bins: int = 2048):
    return add_to_histogram(empty_histogram(bins), values)


def true_error(values: np.ndarray, low: float, high: float, grid: IntegerGrid) -> float:
    scale, zero = scale_and_zero_point(low, high, grid)
    codes = quantize(values, scale, zero, grid, block_shape=(-1,))
    off = values.astype(np.float64) - dequantize(codes, scale, zero, block_shape=(-1,))
    return float(np.mean(off**2))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.bits}{'s' if g.symmetric else ''}")
def test_the_expected_error_is_the_one_that_comes(name: str, grid: IntegerGrid) -> None:
    values = DATA[name]
    histogram = histogram_of(values)
    for a, b in [(1.0, 1.0), (0.7, 0.5), (0.2, 0.9)]:
        low, high = a * min(values.min(), 0.0), b * max(values.max(), 0.0)
        expected = expected_squared_error(histogram, low, high, grid)
        assert expected == pytest.approx(true_error(values, low, high, grid), rel=0.02)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.bits}{'s' if g.symmetric else ''}")
def test_the_range_found_is_as_good_as_brute_force(name: str, grid: IntegerGrid) -> None:
    histogram = histogram_of(DATA[name], bins=256)
    low, high = range_min_max(histogram)
    fractions = np.linspace(0, 1, 41)
    lows, highs = (axis.ravel() for axis in np.meshgrid(low * fractions, high * fractions))
    keep = highs > lows
    if grid.symmetric:
        reach = max(-low, high) * np.linspace(0.001, 1, 1500)
        lows, highs, keep = -reach, reach, reach > 0
    best = expected_squared_error(histogram, lows[keep], highs[keep], grid).min()
    found = range_squared_error(histogram, grid)
    assert low <= found[0] <= 0 <= found[1] <= high
    assert expected_squared_error(histogram, *found, grid) <= best * 1.003


def test_clipping_pays_at_few_bits_and_hardly_at_many() -> None:
    histogram = histogram_of(DATA["normal"])
    reach = [range_squared_error(histogram, grid)[1] for grid in GRIDS if grid.symmetric]
    assert reach == sorted(reach)
    # Optimal clipping of a unit normal on a uniform grid of 2^4 levels: 2.55 (Banner et al. 2019).
    assert reach[2] == pytest.approx(2.5, abs=0.12)


def test_an_outlier_that_would_cost_the_rest_is_clipped() -> None:
    values = np.append(np.tile(DATA["normal"], 20), np.float32(60))
    low, high = range_squared_error(histogram_of(values), GRIDS[4])
    assert high < 30
    assert true_error(values, low, high, GRIDS[4]) < 0.8 * true_error(
        values, values.min(), values.max(), GRIDS[4]
    )


@pytest.mark.parametrize("values", [np.zeros(4), np.full(4, 3.3), np.full(4, -2.0), [0, 1, 1, 0]])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_few_values_are_held_exactly(values: object, grid: IntegerGrid) -> None:
    array = np.asarray(values, np.float32)
    low, high = range_squared_error(histogram_of(array), grid)
    assert true_error(array, low, high, grid) < 1e-10


def test_percentiles_are_those_of_the_values() -> None:
    values = DATA["normal"]
    histogram = histogram_of(values)
    for percent in (50.0, 90.0, 99.0, 99.9):
        expected = np.percentile(values, [50 - percent / 2, 50 + percent / 2])
        np.testing.assert_allclose(range_percentile(histogram, percent), expected, atol=0.02)
    low, high = range_percentile(histogram_of(DATA["rectified"]), 99.0)
    assert low == 0
    assert high == pytest.approx(np.percentile(DATA["rectified"], 99.0), abs=0.01)
    low, high = range_percentile(histogram_of(DATA["negative"]), 99.0)
    assert high == 0
    assert low == pytest.approx(np.percentile(DATA["negative"], 1.0), abs=0.01)


@given(st.floats(1, 100), st.sampled_from(sorted(DATA)))
def test_percentiles_never_leave_min_max(percent: float, name: str) -> None:
    histogram = histogram_of(DATA[name])
    low, high = range_min_max(histogram)
    a, b = range_percentile(histogram, percent)
    assert low <= a <= 0 <= b <= high
    assert range_percentile(histogram, 100) == (low, high)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("block_shape", [(-1, -1), (1, -1), (1, 16)])
def test_ranges_of_weights_beat_min_max_and_come_near_brute_force(
    grid: IntegerGrid, block_shape: tuple[int, int]
) -> None:
    weight = (np.random.default_rng(3).standard_normal((4, 48)) * [[1], [9], [0.1], [0]]).astype(
        np.float32
    )
    low, high = range_squared_error_of_array(weight, grid, block_shape=block_shape)
    size = weight.shape[1] if block_shape[1] == -1 else block_shape[1]
    rows = weight.reshape(1, -1) if block_shape[0] == -1 else weight.reshape(-1, size)
    assert low.size == high.size == len(rows)
    for row, a, b in zip(rows, low.ravel(), high.ravel(), strict=True):
        fractions = np.linspace(0.2, 1, 20)
        pairs = product(fractions, fractions)
        if grid.symmetric:
            pairs = ((f, f) for f in np.linspace(0.2, 1, 200))
        ends = (min(row.min(), 0), max(row.max(), 0))
        best = min(true_error(row, ends[0] * f, ends[1] * g, grid) for f, g in pairs)
        found = true_error(row, a, b, grid)
        assert found <= true_error(row, *ends, grid) * (1 + 1e-6)
        assert found <= best * (1.08 if grid.symmetric else 1.15)


def test_importance_moves_the_range() -> None:
    weight = np.append(np.linspace(-1, 1, 40), 3.0).astype(np.float32)[None]
    importance = np.append(np.ones(40), 1e-6)[None]
    grid = IntegerGrid(4, signed=True, symmetric=True)
    _, kept = range_squared_error_of_array(weight, grid, block_shape=(1, -1))
    _, cut = range_squared_error_of_array(weight, grid, block_shape=(1, -1), importance=importance)
    assert cut < 1.2 < kept


def test_a_pair_limit_widens_the_range_where_that_is_better() -> None:
    weight = np.random.default_rng(4).standard_normal((8, 64)).astype(np.float32)
    grid = IntegerGrid(8, signed=True, symmetric=True)
    errors = []
    for limit in (None, 128):
        low, high = range_squared_error_of_array(
            weight, grid, block_shape=(1, -1), pair_limit=limit
        )
        scale, zero = scale_and_zero_point(low, high, grid)
        codes = round_to_nearest(weight, scale, zero, grid)
        codes = limit_pairs(codes, weight / scale, grid, pair_limit=128)
        off = weight - dequantize(codes, scale, zero, block_shape=(1, -1))
        errors.append(np.sum(off**2))
    assert errors[1] < 0.5 * errors[0]


def test_pytorch_gives_the_same_ranges() -> None:
    torch = pytest.importorskip("torch")
    weight = np.random.default_rng(4).standard_normal((6, 40)).astype(np.float32)
    for grid, limit in product(GRIDS, (None, 100)):
        if limit and not grid.symmetric:
            continue
        expected = range_squared_error_of_array(weight, grid, block_shape=(1, 10), pair_limit=limit)
        found = range_squared_error_of_array(
            torch.asarray(weight), grid, block_shape=(1, 10), pair_limit=limit
        )
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b.numpy(), a, rtol=1e-6)


def test_without_values_the_range_is_zero_and_costs_nothing() -> None:
    histogram = empty_histogram()
    for found in (range_squared_error(histogram, GRIDS[0]), range_percentile(histogram, 99.0)):
        assert found == (0, 0)
    assert expected_squared_error(histogram, -1.0, 1.0, GRIDS[0]) == 0


def weighted_errors(
    weight: np.ndarray, low: np.ndarray, high: np.ndarray, grid: IntegerGrid, weights: np.ndarray
) -> np.ndarray:
    """sum_j H_jj (w_j - q_j)^2 of each block of 10 inputs."""
    scale, zero = scale_and_zero_point(low, high, grid)
    codes = quantize(weight, scale, zero, grid, block_shape=(1, 10))
    off = weight - dequantize(codes, scale, zero, block_shape=(1, 10)).astype(np.float64)
    return (weights * off**2).reshape(len(weight), -1, 10).sum(axis=2)


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.integers(-30, 30))
@settings(max_examples=30, deadline=None)
def test_weighted_ranges_are_never_worse_than_plain_ones(
    seed: int, grid: IntegerGrid, power: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (5, 30)) * 2.0**power).astype(np.float32)
    weights = rng.lognormal(0, 3, 30) * 2.0**power
    weights[10:20] = 0  # a block that nothing ever reaches
    h = np.diag(weights)
    low, high = range_weighted(weight, grid, block_shape=(1, 10), second_moments=h)
    assert low.shape == high.shape == (5, 3)
    ours = weighted_errors(weight, low, high, grid, weights)
    plain = range_squared_error_of_array(weight, grid, block_shape=(1, 10))
    parts = weight.reshape(5, 3, 10)
    for other in (plain, (parts.min(axis=2), parts.max(axis=2))):
        theirs = weighted_errors(weight, *other, grid, weights)
        assert np.all(ours <= theirs * (1 + 1e-5))
    np.testing.assert_allclose(high[:, 1], plain[1][:, 1])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weighted_ranges_come_near_brute_force(grid: IntegerGrid) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((6, 10)).astype(np.float32)
    weights = rng.lognormal(0, 1.5, 10)
    found = range_weighted(weight, grid, block_shape=(1, 10), second_moments=weights)
    ours = weighted_errors(weight, *found, grid, weights)
    fractions = np.linspace(0.05, 1, 40)
    pairs = list(product(fractions, fractions))
    if grid.symmetric:
        pairs = [(f, f) for f in np.linspace(0.05, 1, 400)]
    ends = (np.minimum(weight.min(axis=1), 0), np.maximum(weight.max(axis=1), 0))
    best = np.min(
        [
            weighted_errors(weight, (ends[0] * a)[:, None], (ends[1] * b)[:, None], grid, weights)
            for a, b in pairs
        ],
        axis=0,
    )
    assert ours.sum() <= 1.25 * best.sum()
    plain = range_squared_error_of_array(weight, grid, block_shape=(1, 10))
    assert ours.sum() < weighted_errors(weight, *plain, grid, weights).sum()


def test_weighted_ranges_take_moments_or_their_diagonal() -> None:
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((3, 10)).astype(np.float32)
    x = rng.standard_normal((40, 10))
    h = x.T @ x
    full, diagonal = (
        range_weighted(weight, GRIDS[0], block_shape=(1, -1), second_moments=m)
        for m in (h, np.diag(h).copy())
    )
    np.testing.assert_array_equal(full, diagonal)
    none = range_weighted(weight, GRIDS[0], block_shape=(1, -1))
    plain = range_squared_error_of_array(weight, GRIDS[0], block_shape=(1, -1))
    np.testing.assert_array_equal(none, plain)
    with pytest.raises(ValueError, match="do not fit 10 inputs"):
        range_weighted(weight, GRIDS[0], block_shape=(1, -1), second_moments=h[:3, :3])
    with pytest.raises(ValueError, match="negative or not finite"):
        range_weighted(weight, GRIDS[0], block_shape=(1, -1), second_moments=-np.diag(h))


def test_pytorch_gives_the_same_weighted_ranges() -> None:
    torch = pytest.importorskip("torch")
    weight = np.random.default_rng(8).standard_normal((6, 40)).astype(np.float32)
    weights = np.random.default_rng(9).lognormal(0, 1, 40)
    for grid in GRIDS:
        expected = range_weighted(weight, grid, block_shape=(1, 10), second_moments=weights)
        found = range_weighted(
            torch.asarray(weight), grid, block_shape=(1, 10), second_moments=torch.asarray(weights)
        )
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b.numpy(), a, rtol=1e-6)
