from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.grids import Grid, IntegerGrid, LevelGrid, block_counts, expand_blocks
from packlight.maths.refit import refit_scales, round_and_refit
from packlight.maths.rounding import (
    coordinate_descent,
    output_error,
    round_to_nearest,
    round_with_compensation,
)

INT3 = IntegerGrid(3, signed=True, symmetric=True)
UINT4 = IntegerGrid(4, signed=False, symmetric=False)
QUANTILES = LevelGrid("quantiles", (-1.0, -0.6, -0.35, -0.15, 0.0, 0.12, 0.3, 0.55, 1.0))
SHAPES = [(1, -1), (-1, -1), (1, 4), (1, 5), (2, 4), (4, 12), (5, 7)]


def problem(
    seed: int, grid: Grid, block_shape: tuple[int, int], outputs: int = 6, inputs: int = 12
) -> tuple[np.ndarray, ...]:
    """A weight, correlated second moments, and a scale and zero point for each block."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    weight = rng.standard_normal((outputs, inputs))
    counts = block_counts(weight.shape, block_shape)
    reach = 2.5 / max(abs(grid.steps_of(np.array([grid.minimum, grid.maximum]))))
    scale = (reach * rng.uniform(0.8, 1.3, counts)).astype(np.float32)
    zero = rng.integers(6, 9, counts) if grid is UINT4 else np.zeros(counts, int)
    return weight, rows.T @ rows / len(rows), scale, zero


def nearest(
    weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid, shape: tuple[int, int]
) -> np.ndarray:
    wide_s, wide_z = (expand_blocks(part, weight.shape, shape) for part in (scale, zero))
    return grid.codes_of(weight / wide_s, wide_z).astype(grid.dtype_name)


def error(
    weight: np.ndarray,
    codes: np.ndarray,
    h: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    grid: Grid,
    shape: tuple[int, int],
) -> float:
    wide_s, wide_z = (expand_blocks(part, weight.shape, shape) for part in (scale, zero))
    return output_error(weight, grid.steps_of(codes, wide_z) * wide_s.astype(np.float64), h)


def fit_slowly(
    weight: np.ndarray,
    codes: np.ndarray,
    h: np.ndarray,
    zero: np.ndarray,
    grid: Grid,
    shape: tuple[int, int],
) -> np.ndarray:
    """All scales at once by least squares: each one's block of steps, seen through a root of H."""
    steps = grid.steps_of(codes, expand_blocks(zero, weight.shape, shape))
    root = np.linalg.cholesky(h)
    counts = block_counts(weight.shape, shape)
    columns = []
    for number in range(int(np.prod(counts))):
        chosen = np.zeros(counts)
        chosen.flat[number] = 1
        columns.append(((steps * expand_blocks(chosen, weight.shape, shape)) @ root).ravel())
    found = np.linalg.lstsq(np.array(columns).T, (weight @ root).ravel(), rcond=None)[0]
    return found.reshape(counts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", [INT3, UINT4, QUANTILES], ids=["int3", "uint4", "quantiles"])
def test_scales_are_those_of_least_squares(grid: Grid, shape: tuple[int, int]) -> None:
    for seed in range(4):
        weight, h, scale, zero = problem(seed, grid, shape)
        codes = nearest(weight, scale, zero, grid, shape)
        expected = fit_slowly(weight, codes, h, zero, grid, shape)
        found = refit_scales(weight, codes, h, zero, grid, block_shape=shape, scale=scale)
        assert found.dtype == np.float32
        assert found.shape == block_counts(weight.shape, shape)
        assert np.all(found > 0)
        tiles = np.all(expected > 1e-6, axis=1)
        assert np.any(tiles)
        np.testing.assert_allclose(found[tiles], expected[tiles], rtol=1e-5)
        without = refit_scales(weight, codes, h, zero, grid, block_shape=shape)
        np.testing.assert_allclose(without[tiles], expected[tiles], rtol=1e-5)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES), spoil=st.booleans())
def test_the_error_is_never_raised(
    precision: str, seed: int, shape: tuple[int, int], spoil: bool
) -> None:
    weight, h, scale, zero = problem(seed % 50, QUANTILES, shape)
    codes = nearest(weight, scale, zero, QUANTILES, shape)
    if spoil:  # codes that have nothing to do with the weight, where scales would turn negative
        codes = np.random.default_rng(seed).permuted(codes, axis=1)
    found = refit_scales(
        weight, codes, h, zero, QUANTILES, block_shape=shape, scale=scale, precision=precision
    )
    assert np.all(np.isfinite(found)) and np.all(found > 0)
    before, after = (error(weight, codes, h, s, zero, QUANTILES, shape) for s in (scale, found))
    assert after <= before * (1 + 1e-6)


def test_negative_ones_are_left_and_the_others_still_gain() -> None:
    weight, h, scale, zero = problem(3, INT3, (1, 4))
    codes = nearest(weight, scale, zero, INT3, (1, 4))
    codes[:, 4:8] *= -1
    assert np.all(fit_slowly(weight, codes, h, zero, INT3, (1, 4)).min(axis=1) < 0)
    found = refit_scales(weight, codes, h, zero, INT3, block_shape=(1, 4), scale=scale)
    assert np.all(found > 0)
    before, after = (error(weight, codes, h, s, zero, INT3, (1, 4)) for s in (scale, found))
    assert after < 0.95 * before


def test_scales_written_out() -> None:
    h = np.array([[2.0, 1.0], [1.0, 3.0]])
    weight = np.array([[1.0, 2.0], [0.0, -1.0]])
    codes = np.array([[2, 3], [1, -2]], np.int8)
    zero = np.zeros((2, 1))
    # q H = (7, 11) and (0, -5): s = 29 / 47 and 5 / 10.
    found = refit_scales(weight, codes, h, zero, INT3, block_shape=(1, -1))
    np.testing.assert_allclose(found, [[29 / 47], [0.5]], rtol=1e-6)
    # One scale a weight: every weight is met exactly, and that of a code 0 stays.
    codes = np.array([[2, 3], [0, -2]], np.int8)
    start = np.full((2, 2), 0.7, np.float32)
    zero = np.zeros((2, 2))
    found = refit_scales(weight, codes, h, zero, INT3, block_shape=(1, 1), scale=start)
    np.testing.assert_allclose(found[0], [1 / 2, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0.7, 0.5], rtol=1e-6)


def test_what_does_not_matter_keeps_its_scale() -> None:
    weight, h, scale, zero = problem(5, INT3, (1, 4))
    h[4:8] = 0
    h[:, 4:8] = 0
    codes = nearest(weight, scale, zero, INT3, (1, 4))
    found = refit_scales(weight, codes, h, zero, INT3, block_shape=(1, 4), scale=scale)
    np.testing.assert_array_equal(found[:, 1], scale[:, 1])
    assert np.all(found[:, 0] != scale[:, 0])
    same = refit_scales(weight, codes, 0 * h, zero, INT3, block_shape=(1, 4), scale=scale)
    np.testing.assert_array_equal(same, scale)
    nothing = refit_scales(weight, 0 * codes, h, zero, INT3, block_shape=(1, 4), scale=scale)
    np.testing.assert_array_equal(nothing, scale)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_singular_moments_give_finite_scales(precision: str) -> None:
    for seed in range(5):
        weight, _, scale, zero = problem(seed, INT3, (1, 4))
        x = np.random.default_rng(seed).standard_normal((2, 12))
        h = x.T @ x
        codes = nearest(weight, scale, zero, INT3, (1, 4))
        found = refit_scales(
            weight, codes, h, zero, INT3, block_shape=(1, 4), scale=scale, precision=precision
        )
        before, after = (error(weight, codes, h, s, zero, INT3, (1, 4)) for s in (scale, found))
        assert np.all(np.isfinite(found))
        assert after < before


@pytest.mark.parametrize("order", ["given", "descending"])
@pytest.mark.parametrize("grid", [INT3, UINT4, QUANTILES], ids=["int3", "uint4", "quantiles"])
@pytest.mark.parametrize("groups", [1, 4])
def test_alternating_never_ends_above_rounding_alone(order: str, grid: Grid, groups: int) -> None:
    ratios = []
    for seed in range(5):
        shape = (1, 24 // groups)
        weight, h, scale, zero = problem(seed, grid, shape, outputs=10, inputs=24)
        codes, info = round_with_compensation(weight, h, scale, zero, grid, order=order)
        codes = coordinate_descent(weight, codes, h, scale, zero, grid, sweeps=4)
        alone = error(weight, codes, h, scale, zero, grid, shape)
        best, fitted, told = round_and_refit(weight, h, scale, zero, grid, order=order)
        together = error(weight, best, h, fitted, zero, grid, shape)
        assert told.rounding == info
        assert told.first_error == pytest.approx(alone)
        assert told.error == pytest.approx(together)
        assert best.dtype == codes.dtype
        assert fitted.shape == scale.shape
        assert together <= alone * (1 + 1e-9)
        ratios.append(together / alone)
    assert np.mean(ratios) < 0.95


def test_a_scale_for_all_rows_and_pairs_within_their_limit() -> None:
    weight, h, _, _ = problem(2, INT3, (-1, -1), outputs=8, inputs=16)
    scale, zero = np.float32(0.8), np.int32(0)
    best, fitted, told = round_and_refit(weight, h, scale, zero, INT3)
    assert fitted.shape == ()
    assert told.error < told.first_error
    assert told.error == pytest.approx(
        error(weight, best, h, np.array([[fitted]]), np.zeros((1, 1)), INT3, (-1, -1))
    )
    best, _, told = round_and_refit(weight, h, scale, zero, INT3, pair_limit=3)
    wide = best.astype(int)
    one, two = wide[:, ::2], wide[:, 1::2]
    assert np.all((one * two <= 0) | (np.abs(one + two) <= 3))
    assert told.rounding.limited > 0


def test_a_refit_repairs_scales_that_are_too_large() -> None:
    weight, h, scale, zero = problem(6, INT3, (1, -1))
    _, fitted, told = round_and_refit(weight, h, 2 * scale, zero, INT3, rounds=8)
    assert told.rounds > 1
    assert told.error < 0.7 * told.first_error
    assert np.all(fitted < 2 * scale)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    for shape in SHAPES:
        arrays = problem(1, QUANTILES, shape)
        weight, h, scale, zero = arrays
        tensors = [torch.asarray(array) for array in arrays]
        codes = nearest(weight, scale, zero, QUANTILES, shape)
        found = refit_scales(weight, codes, h, zero, QUANTILES, block_shape=shape, scale=scale)
        same = refit_scales(
            tensors[0], torch.asarray(codes), tensors[1], tensors[3], QUANTILES,
            block_shape=shape, scale=tensors[2],
        )  # fmt: skip
        np.testing.assert_allclose(same.numpy(), found, rtol=1e-6)
    weight, h, scale, zero = problem(1, INT3, (1, 4))
    tensors = [torch.asarray(array) for array in (weight, h, scale, zero)]
    best, fitted, told = round_and_refit(weight, h, scale, zero, INT3)
    same, fitted_t, told_t = round_and_refit(*tensors, INT3)
    np.testing.assert_array_equal(same.numpy(), best)
    np.testing.assert_allclose(fitted_t.numpy(), fitted, rtol=1e-6)
    assert told_t.error == pytest.approx(told.error)


def test_inputs_are_not_written_to() -> None:
    arrays = problem(1, INT3, (1, 4))
    copies = [array.copy() for array in arrays]
    weight, h, scale, zero = arrays
    codes = round_to_nearest(weight, scale, zero, INT3)
    kept = codes.copy()
    refit_scales(weight, codes, h, zero, INT3, block_shape=(1, 4), scale=scale)
    round_and_refit(weight, h, scale, zero, INT3)
    np.testing.assert_array_equal(codes, kept)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
