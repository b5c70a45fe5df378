from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.maths.grids import Array, Grid, IntegerGrid, LevelGrid, expand_blocks
from packlight.maths.rounding import output_error
from packlight.maths.scales import (
    block_errors,
    importance_of,
    largest_scale,
    refit_scales,
    scale_by_search,
    scale_of_binary,
    scale_of_ternary,
    scaled_error,
)

TERNARY = LevelGrid("ternary", (-1.0, 0.0, 1.0))
BINARY = LevelGrid("binary", (-1.0, 1.0))
FP4ISH = LevelGrid("some", (-3.0, -1.5, -1.0, 0.0, 1.0, 1.5, 3.0))
INT2 = IntegerGrid(2, signed=True, symmetric=True, low=-2)


def as_it_is(scale: Array) -> Array:
    return scale


def powers(scale: Array) -> Array:
    return 2.0 ** np.round(np.log2(scale))


def best_of_all_codes(row: np.ndarray, importance: np.ndarray, grid: Grid) -> float:
    """The least error over every assignment of codes, each with its own best scale above 0."""
    levels = grid.steps_of(np.arange(grid.minimum, grid.maximum + 1))
    least = np.inf
    for picked in product(levels, repeat=len(row)):
        steps = np.asarray(picked)
        size = np.sum(importance * steps * steps)
        scale = max(np.sum(importance * steps * row) / size, 0.0) if size else 0.0
        least = min(least, float(np.sum(importance * (row - scale * steps) ** 2)))
    return least


@pytest.mark.parametrize("seed", range(4))
def test_ternary_and_binary_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, 7)) ** 3
    importance = rng.lognormal(0, 1, (5, 7))
    importance[:, seed] = 0.0
    for fit, grid in ((scale_of_ternary, TERNARY), (scale_of_binary, BINARY)):
        found = scaled_error(rows, importance, grid, fit(rows, importance, grid, as_it_is))
        expected = [best_of_all_codes(*pair, grid) for pair in zip(rows, importance, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("grid", [INT2, FP4ISH, TERNARY], ids=["int2", "levels", "ternary"])
def test_the_search_comes_near_the_best_of_all_codes(grid: Grid) -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((12, 4))
    importance = rng.lognormal(0, 1, (12, 4))
    # Three times absmax scaling: the largest weight at the level 1, the highest ones idle.
    factors = np.geomspace(3.1, 0.1, 80)
    scale = scale_by_search(rows, importance, grid, as_it_is, factors=factors)
    found = scaled_error(rows, importance, grid, scale)
    expected = np.asarray(
        [best_of_all_codes(*pair, grid) for pair in zip(rows, importance, strict=True)]
    )
    assert np.all(found >= expected - 1e-12)
    assert found.sum() <= 1.005 * expected.sum() + 1e-12


@given(st.integers(0, 2**32 - 1), st.sampled_from([as_it_is, powers]), st.integers(-40, 40))
@settings(max_examples=40, deadline=None)
def test_the_search_is_never_worse_than_absmax_and_keeps_to_what_is_stored(
    seed: int, store: object, power: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (6, 11)) * 2.0**power
    rows[0] = 0.0
    importance = rng.lognormal(0, 2, (6, 11))
    for grid in (INT2, FP4ISH):
        scale = scale_by_search(rows, importance, grid, store, factors=(1.0, 0.7, 0.5, 0.3))
        absmax = scaled_error(rows, importance, grid, store(largest_scale(rows, grid)))
        assert np.all(scaled_error(rows, importance, grid, scale) <= absmax)
        np.testing.assert_array_equal(store(scale), scale)
        assert np.all(scale > 0)


@pytest.mark.parametrize("block_shape", [(1, -1), (1, 4), (-1, -1), (3, 5), (-1, 1)])
@pytest.mark.parametrize("store", [as_it_is, powers])
def test_fitting_scales_again_lowers_the_error(block_shape: tuple[int, int], store: object) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 10)) @ rng.standard_normal((10, 10))
    weight, h = rng.standard_normal((7, 10)), x.T @ x
    steps = np.round(weight / 0.4)
    shape = tuple(
        1 if b == -1 else -(-n // b) for n, b in zip(weight.shape, block_shape, strict=True)
    )
    scale = store(np.full(shape, 0.3))
    fitted = refit_scales(weight, steps, h, scale, block_shape=block_shape, store=store)
    np.testing.assert_array_equal(store(fitted), fitted)

    def value(s: np.ndarray) -> np.ndarray:
        return steps * expand_blocks(s, weight.shape, block_shape)

    before, after = (output_error(weight, value(s), h) for s in (scale, fitted))
    assert after < before
    by_block = block_errors(weight, steps, h, fitted, block_shape=block_shape)
    assert by_block.shape == (shape[0], 1)
    assert by_block.sum() == pytest.approx(after)
    if shape[1] == 1 and store is as_it_is:
        # One block along the inputs: the best scale there is, by least squares on the outputs.
        rows = [slice(r, r + 1 if shape[0] == 7 else r + 7) for r in range(0, 7, 7 // shape[0])]
        for row, s in zip(rows, fitted.ravel(), strict=True):
            a, b = (steps[row] @ x.T).ravel(), (weight[row] @ x.T).ravel()
            assert s == pytest.approx(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0])


def test_importance_is_checked() -> None:
    h = np.array([[2.0, 1.0], [1.0, 3.0]])
    np.testing.assert_array_equal(importance_of(h, 2), [2, 3])
    np.testing.assert_array_equal(importance_of(np.array([4.0, 5.0]), 2), [4, 5])
    with pytest.raises(ValueError, match=r"\(2, 2\) do not fit 3 inputs"):
        importance_of(h, 3)
    with pytest.raises(ValueError, match="negative or not finite"):
        importance_of(np.array([1.0, np.nan]), 2)
