from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.grids import IntegerGrid, dequantize, scale_and_zero_point
from packlight.maths.rotation import (
    Rotation,
    hadamard,
    incoherence,
    largest_order,
    random_rotation,
    rotate,
    rotate_back,
    rotate_inputs,
)
from packlight.maths.rounding import output_error, round_to_nearest

INT4 = IntegerGrid(4, signed=True, symmetric=True)

# Powers of two; Paley I for 11, 19, 23, 43, 59; Paley II for 13 and 17; products of those.
ORDERS = [1, 2, 4, 8, 16, 128, 12, 20, 24, 28, 36, 44, 60, 40, 56, 144, 192, 240, 768, 896]


@pytest.mark.parametrize("order", ORDERS)
def test_rows_of_a_hadamard_matrix_are_orthogonal_and_all_entries_one_in_size(order: int) -> None:
    matrix = hadamard(order)
    np.testing.assert_array_equal(np.abs(matrix), np.ones((order, order)))
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


def test_golden() -> None:
    np.testing.assert_array_equal(
        hadamard(4), [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    )
    # Paley I for 11, whose squares are 1, 3, 4, 5 and 9.
    twelve = hadamard(12)
    np.testing.assert_array_equal(twelve[0], np.ones(12))
    np.testing.assert_array_equal(twelve[1], [-1, 1, -1, 1, -1, -1, -1, 1, 1, 1, -1, 1])


@pytest.mark.parametrize(("order", "best"), [(3, 1), (6, 2), (10, 2), (52, 4), (92, 4), (100, 20)])
def test_orders_that_are_not_known_are_refused_with_the_best_that_divides(
    order: int, best: int
) -> None:
    with pytest.raises(ValueError, match=f"of order {order} is known here.* {best} is the largest"):
        hadamard(order)
    assert largest_order(order) == best
    with pytest.raises(ValueError, match="order 0 is known"):
        hadamard(0)
    with pytest.raises(ValueError, match="at least one input"):
        random_rotation(0)


@given(st.integers(1, 200), st.integers(0, 9))
def test_a_rotation_is_orthogonal_and_exactly_undone(size: int, seed: int) -> None:
    rotation = random_rotation(size, seed=seed)
    q = rotate(np.eye(size), rotation)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    x = np.random.default_rng(seed).standard_normal((3, size))
    np.testing.assert_allclose(rotate(x, rotation), x @ q, atol=1e-12)
    np.testing.assert_allclose(rotate_back(rotate(x, rotation), rotation), x, atol=1e-12)
    assert size % rotation.block == 0
    assert rotation.is_whole == (rotation.block == size)


@pytest.mark.parametrize("size", [48, 64, 144, 256, 30])
def test_it_is_signs_times_blocks_of_the_matrix(size: int) -> None:
    rotation = random_rotation(size, seed=3)
    block = hadamard(rotation.block) / np.sqrt(rotation.block)
    whole = np.kron(np.eye(size // rotation.block), block)
    q = np.diag(rotation.signs) @ whole
    np.testing.assert_allclose(rotate(np.eye(size), rotation), q, atol=1e-12)
    np.testing.assert_allclose(rotate_back(np.eye(size), rotation), q.T, atol=1e-12)
    assert set(rotation.signs) == {-1.0, 1.0}
    assert np.any(random_rotation(size, seed=4).signs != rotation.signs)


def outliers(seed: int, inputs: int, outputs: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A weight with some columns and single entries far larger than the rest."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs))
    weight[:, rng.choice(inputs, 2, replace=False)] *= 12
    weight[rng.random(weight.shape) < 0.01] *= 15
    rows = rng.standard_normal((8 * inputs, inputs)) @ rng.standard_normal((inputs, inputs))
    return weight, rows.T @ rows / len(rows)


@pytest.mark.parametrize("inputs", [64, 48, 28, 72, 90])
def test_the_function_and_the_error_stay_the_same(inputs: int) -> None:
    weight, h = outliers(0, inputs)
    turned, moments, rotation = rotate_inputs(weight, h, seed=5)
    x = np.random.default_rng(1).standard_normal(inputs)
    np.testing.assert_allclose(turned @ rotate(x, rotation), weight @ x, rtol=1e-10, atol=1e-10)
    q = rotate(np.eye(inputs), rotation)
    np.testing.assert_allclose(moments, q.T @ h @ q, atol=1e-10 * np.abs(h).max())
    np.testing.assert_array_equal(moments, moments.T)
    rounded = np.round(turned)
    assert output_error(turned, rounded, moments) == pytest.approx(
        output_error(weight, rotate_back(rounded, rotation), h)
    )


@pytest.mark.parametrize("inputs", [64, 96, 112])
def test_outliers_spread_and_four_bits_lose_less(inputs: int) -> None:
    for seed in range(5):
        weight, h = outliers(seed, inputs)
        turned, moments, rotation = rotate_inputs(weight, h, seed=seed)
        assert rotation.is_whole
        assert incoherence(turned) < 0.6 * incoherence(weight)
        errors = []
        for w, m in ((weight, h), (turned, moments)):
            scale, zero = scale_and_zero_point(
                w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True), INT4
            )
            codes = round_to_nearest(w, scale, zero, INT4)
            values = dequantize(codes, scale.astype(np.float64), zero, block_shape=(1, -1))
            errors.append(output_error(w, values, m))
        assert errors[1] < 0.6 * errors[0]


def test_incoherence_is_the_largest_over_the_mean_size() -> None:
    assert incoherence(np.array([[1.0, -1.0], [-1.0, 1.0]])) == pytest.approx(1)
    one = np.zeros((4, 4))
    assert incoherence(one) == 0
    one[1, 2] = -3
    assert incoherence(one) == pytest.approx(4)
    # One entry spreads over its row: largest over mean size falls from 4 to 2.
    assert incoherence(rotate(one, Rotation(np.ones(4), 4))) == pytest.approx(2)


def test_same_seed_same_rotation_and_nothing_is_written_to() -> None:
    weight, h = outliers(2, 40)
    copies = weight.copy(), h.copy()
    first, second = (rotate_inputs(weight, h, seed=9) for _ in range(2))
    for one, two in zip(first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(weight, copies[0])
    np.testing.assert_array_equal(h, copies[1])
    with pytest.raises(ValueError, match="do not fit 40 inputs"):
        rotate_inputs(weight, h[:3, :3])


def test_pytorch_gives_the_same_numbers() -> None:
    torch = pytest.importorskip("torch")
    for inputs in (48, 90):
        weight, h = outliers(4, inputs)
        turned, moments, rotation = rotate_inputs(weight, h)
        same, moments_t, rotation_t = rotate_inputs(torch.asarray(weight), torch.asarray(h))
        np.testing.assert_allclose(same.numpy(), turned, atol=1e-12)
        np.testing.assert_allclose(moments_t.numpy(), moments, atol=1e-9)
        np.testing.assert_allclose(rotate_back(same, rotation_t).numpy(), weight, atol=1e-12)
        assert incoherence(same) == pytest.approx(incoherence(turned))
        assert rotation_t.block == rotation.block
