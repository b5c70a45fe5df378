from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.maths.grids import (
    IntegerGrid,
    block_counts,
    quantize,
    scale_and_zero_point,
    split_blocks,
)
from packlight.maths.half_quadratic import (
    half_quadratic_errors,
    quantize_half_quadratic,
    range_half_quadratic,
    shrink,
)

GRIDS = [
    IntegerGrid(bits, signed=symmetric, symmetric=symmetric)
    for bits in (2, 3, 4, 8)
    for symmetric in (False, True)
]
IDS = [f"{grid.bits}{'s' if grid.symmetric else ''}" for grid in GRIDS]


def heavy(seed: int, shape: tuple[int, int] = (6, 50)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.03 * rng.standard_t(3, shape) + 0.01).astype(np.float32)


def max_scaling(weight: np.ndarray, grid: IntegerGrid, block_shape: tuple[int, int]) -> tuple:
    blocks = split_blocks(weight, block_shape)
    counts = block_counts(weight.shape, block_shape)
    ends = (blocks.min(axis=1).reshape(counts), blocks.max(axis=1).reshape(counts))
    return scale_and_zero_point(*ends, grid)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(GRIDS),
    st.sampled_from([(1, -1), (1, 16), (-1, -1), (2, 25)]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_its_error_is_not_above_max_scalings(
    seed: int, grid: IntegerGrid, block_shape: tuple[int, int], fit_scale: bool, whole: bool
) -> None:
    weight = heavy(seed)
    scale, zero = range_half_quadratic(
        weight, grid, block_shape=block_shape, fit_scale=fit_scale, whole_zero=whole
    )
    assert scale.shape == zero.shape == block_counts(weight.shape, block_shape)
    assert scale.dtype == zero.dtype == np.float32
    assert np.all(scale > 0)
    found, plain = (
        half_quadratic_errors(weight, *pair, grid, block_shape=block_shape)
        for pair in ((scale, zero), max_scaling(weight, grid, block_shape))
    )
    assert found[0] <= plain[0] * (1 + 1e-6)
    if grid.symmetric:
        np.testing.assert_array_equal(zero, grid.middle)
    if whole:
        np.testing.assert_array_equal(zero, np.round(zero))
        assert grid.minimum <= zero.min() <= zero.max() <= grid.maximum


@pytest.mark.parametrize("grid", GRIDS[:6], ids=IDS[:6])
def test_on_heavy_tails_it_gains_in_both_errors_at_few_bits(grid: IntegerGrid) -> None:
    weight = heavy(0, (32, 512))
    block = (1, 64)
    found = half_quadratic_errors(
        weight, *range_half_quadratic(weight, grid, block_shape=block), grid, block_shape=block
    )
    plain = half_quadratic_errors(
        weight, *max_scaling(weight, grid, block), grid, block_shape=block
    )
    assert found[0] < 0.97 * plain[0]
    assert found[1] < plain[1]


def test_one_iteration_by_hand() -> None:
    # min-max: s = 1, z = 0, c = 0 1 1 1 3, r = 0 0.3 0.3 0.3 0. A tiny beta shrinks all of r
    # away: z = mean(c - w / s) = -0.18, and sum |w - q| falls from 0.9 to 0.72. A huge one
    # puts up with all of it: e = r, and z stays.
    grid = IntegerGrid(2, signed=False, symmetric=False)
    weight = np.array([[0.0, 1.3, 1.3, 1.3, 3.0]], np.float32)
    for beta, expected, error in ((1e-9, -0.18, 0.72), (1e9, 0.0, 0.9)):
        scale, zero = range_half_quadratic(
            weight, grid, block_shape=(1, -1), power=1.0, beta=beta, iterations=1, fit_scale=False
        )
        assert scale[0, 0] == 1
        assert zero[0, 0] == pytest.approx(expected, abs=1e-6)
        found = half_quadratic_errors(weight, scale, zero, grid, block_shape=(1, -1), power=1.0)
        assert found[0] == pytest.approx(error, abs=1e-5)


def test_a_zero_point_between_two_codes_is_found() -> None:
    # Levels at 0.25, 1.25, 2.25, 3.25 hold the weights but for one outlier at 0.
    grid = IntegerGrid(2, signed=False, symmetric=False)
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 4, (1, 200)) + 0.25
    weight[0, 0] = 0.0
    weight = weight.astype(np.float32)
    scale, zero = range_half_quadratic(weight, grid, block_shape=(1, -1), iterations=60)
    assert scale[0, 0] == pytest.approx(1.0, abs=0.02)
    assert zero[0, 0] == pytest.approx(-0.25, abs=0.03)
    whole = range_half_quadratic(weight, grid, block_shape=(1, -1), whole_zero=True)
    errors = [
        half_quadratic_errors(weight, *pair, grid, block_shape=(1, -1))
        for pair in ((scale, zero), whole)
    ]
    assert errors[0][0] < 0.5 * errors[1][0]
    assert errors[0][1] < 0.5 * errors[1][1]


def test_shrinkage_is_the_soft_threshold_for_a_power_of_one() -> None:
    x = np.array([-2.0, -0.4, 0.0, 0.3, 1.0])
    np.testing.assert_allclose(shrink(x, 1.0, 2.0), [-1.5, 0, 0, 0, 0.5])
    # |x| - |x|^-0.3 / 2 at 2 and at 1.
    np.testing.assert_allclose(shrink(x, 0.7, 2.0), [-(2 - 2**-0.3 / 2), 0, 0, 0, 0.5])
    np.testing.assert_array_equal(shrink(x, 0.7, 1e12), np.where(x == 0, 0, shrink(x, 0.7, 1e12)))


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_with_whole_zero_points_the_codes_are_the_ordinary_ones(grid: IntegerGrid) -> None:
    weight = heavy(3)
    scale, zero = range_half_quadratic(weight, grid, block_shape=(1, 16), whole_zero=True)
    codes, values = quantize_half_quadratic(weight, scale, zero, grid, block_shape=(1, 16))
    expected = quantize(
        weight.astype(np.float64), scale, zero.astype(np.int32), grid, block_shape=(1, 16)
    )
    # round(x + z) and round(x) + z part at exact halves only.
    assert np.mean(codes == expected) > 0.99
    assert codes.dtype == getattr(np, grid.dtype_name)
    assert values.dtype == np.float32


def test_errors_do_not_depend_on_the_size_of_the_weights() -> None:
    weight = heavy(4)
    grid = GRIDS[2]
    scale, zero = range_half_quadratic(weight, grid, block_shape=(1, -1))
    larger, same = range_half_quadratic(weight * np.float32(1024), grid, block_shape=(1, -1))
    np.testing.assert_allclose(larger, scale * 1024, rtol=1e-6)
    np.testing.assert_allclose(same, zero, rtol=1e-6)


def test_padding_of_incomplete_blocks_counts_for_nothing() -> None:
    weight = heavy(5, (3, 20))
    grid = GRIDS[0]
    scale, zero = range_half_quadratic(weight, grid, block_shape=(1, 16))
    alone_scale, alone_zero = range_half_quadratic(weight[:, 16:], grid, block_shape=(1, -1))
    np.testing.assert_allclose(scale[:, 1:], alone_scale, rtol=1e-6)
    np.testing.assert_allclose(zero[:, 1:], alone_zero, rtol=1e-6)


def test_zeros_cost_nothing_and_bad_input_is_one_sentence() -> None:
    zeros = np.zeros((2, 8), np.float32)
    for grid in GRIDS:
        pair = range_half_quadratic(zeros, grid, block_shape=(1, -1))
        assert half_quadratic_errors(zeros, *pair, grid, block_shape=(1, -1)) == (0, 0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        range_half_quadratic(zeros * np.nan, GRIDS[0], block_shape=(1, -1))
    with pytest.raises(ValueError, match="power of the error"):
        range_half_quadratic(zeros, GRIDS[0], block_shape=(1, -1), power=0.0)
    with pytest.raises(ValueError, match="beta"):
        range_half_quadratic(zeros, GRIDS[0], block_shape=(1, -1), beta=0.0)


def test_pytorch_gives_the_same_ranges() -> None:
    torch = pytest.importorskip("torch")
    weight = heavy(6)
    for grid in GRIDS:
        expected = range_half_quadratic(weight, grid, block_shape=(1, 16))
        found = range_half_quadratic(torch.asarray(weight), grid, block_shape=(1, 16))
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b.numpy(), a, rtol=1e-5, atol=1e-6)
