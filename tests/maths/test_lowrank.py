from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from packlight.maths.grids import IntegerGrid, dequantize, scale_and_zero_point
from packlight.maths.lowrank import (
    correct_low_rank,
    errors_by_rank,
    low_rank_of,
    rank_for_error,
    spatial_factors_of,
)
from packlight.maths.rounding import output_error, round_to_nearest

INT3 = IntegerGrid(3, signed=True, symmetric=True)


def problem(seed: int, outputs: int = 10, inputs: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) * np.linspace(0.1, 3, inputs)[:, None]
    rows = rng.standard_normal((30 * inputs, inputs)) @ mix
    return rng.standard_normal((outputs, inputs)), rows.T @ rows / len(rows)


@pytest.mark.parametrize("shape", [(10, 14), (14, 9), (8, 8)])
def test_the_error_is_the_sum_of_the_discarded_squared_singular_values(
    shape: tuple[int, int],
) -> None:
    weight, h = problem(0, *shape)
    # Another root of H than the one in use: the symmetric one.
    singular = np.linalg.svd(weight @ np.real(sqrtm(h)), compute_uv=False)
    errors = errors_by_rank(weight, h, damping=0)
    assert errors.shape == (min(shape) + 1,)
    for rank in range(min(shape) + 1):
        left, right = low_rank_of(weight, h, rank, damping=0)
        assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
        discarded = np.sum(singular[rank:] ** 2)
        error = output_error(weight, left @ right, h)
        assert error == pytest.approx(discarded, rel=1e-9, abs=1e-9)
        assert errors[rank] == pytest.approx(discarded, rel=1e-9, abs=1e-9)
    damped = h + 0.05 * np.mean(np.diag(h)) * np.eye(shape[1])
    left, right = low_rank_of(weight, h, 3, damping=0.05)
    singular = np.linalg.svd(weight @ np.linalg.cholesky(damped), compute_uv=False)
    assert output_error(weight, left @ right, damped) == pytest.approx(np.sum(singular[3:] ** 2))


def test_no_step_away_from_it_is_better_and_alternating_least_squares_gets_there() -> None:
    weight, h = problem(1)
    left, right = low_rank_of(weight, h, 4, damping=0)
    least = output_error(weight, left @ right, h)
    rng = np.random.default_rng(0)
    for _ in range(30):
        other = left + 1e-3 * rng.standard_normal(left.shape)
        assert output_error(weight, other @ right, h) > least
        other = right + 1e-3 * rng.standard_normal(right.shape)
        assert output_error(weight, left @ other, h) > least
    # An independent slow reference, from a random start.
    b = rng.standard_normal(right.shape)
    for _ in range(3000):
        a = weight @ h @ b.T @ np.linalg.inv(b @ h @ b.T)
        b = np.linalg.solve(a.T @ a, a.T @ weight)
    assert output_error(weight, a @ b, h) == pytest.approx(least, rel=1e-3)


def test_it_beats_the_factors_of_the_weight_alone() -> None:
    for seed in range(8):
        weight, h = problem(seed, 16, 24)
        left, right = low_rank_of(weight, h, 6)
        u, d, v = np.linalg.svd(weight)
        plain = (u[:, :6] * d[:6]) @ v[:6]
        assert output_error(weight, left @ right, h) < 0.9 * output_error(weight, plain, h)


def test_the_singular_values_are_shared_evenly_between_the_factors() -> None:
    weight, h = problem(2)
    left, right = low_rank_of(weight, h, 5, damping=0)
    singular = np.linalg.svd(weight @ np.linalg.cholesky(h), compute_uv=False)[:5]
    np.testing.assert_allclose(left.T @ left, np.diag(singular), atol=1e-10)
    np.testing.assert_allclose(right @ h @ right.T, np.diag(singular), atol=1e-10)


def test_a_correction_lowers_the_error_of_rounding_with_every_rank() -> None:
    weight, h = problem(3, 16, 24)
    scale, zero = scale_and_zero_point(
        weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True), INT3
    )
    codes = round_to_nearest(weight, scale, zero, INT3)
    rounded = dequantize(codes, scale.astype(np.float64), zero, block_shape=(1, -1))
    errors = []
    for rank in range(17):
        left, right = correct_low_rank(weight - rounded, h, rank)
        errors.append(output_error(weight, rounded + left @ right, h))
    assert np.all(np.diff(errors) < 0)
    assert errors[0] == pytest.approx(output_error(weight, rounded, h))
    assert errors[4] < 0.6 * errors[0]
    assert errors[16] < 1e-12 * errors[0]


def test_the_rank_for_an_error_is_the_smallest_that_keeps_it() -> None:
    weight, h = problem(4)
    errors = errors_by_rank(weight, h)
    assert np.all(np.diff(errors) < 0) and errors[-1] == 0
    for rank, error in enumerate(errors):
        assert rank_for_error(weight, h, float(error)) == rank
        assert rank_for_error(weight, h, float(error) * 1.0001) == rank
    assert rank_for_error(weight, h, 0.0) == 10
    limit = 0.3 * float(errors[0])
    rank = rank_for_error(weight, h, limit)
    left, right = low_rank_of(weight, h, rank)
    assert output_error(weight, left @ right, h) <= limit < errors[rank - 1]


@pytest.mark.parametrize("damping", [0.0, 0.001])
def test_singular_moments_are_fine(damping: float) -> None:
    weight, _ = problem(5, 8, 12)
    rows = np.random.default_rng(0).standard_normal((5, 12))
    rows[:, 3] = 0
    h = rows.T @ rows / 5
    left, right = low_rank_of(weight, h, 5, damping=damping)
    # Five samples span five directions: no more rank is needed to meet them.
    error, whole = output_error(weight, left @ right, h), output_error(weight, 0 * weight, h)
    assert error < (1e-9 if damping == 0 else 1e-2) * whole
    assert np.all(np.isfinite(left)) and np.all(np.isfinite(right))
    assert rank_for_error(weight, h, 1e-9 * whole, damping=0) == 5
    if damping:
        left, right = low_rank_of(weight, h, 8, damping=damping)
        np.testing.assert_allclose(left @ right, weight, atol=1e-9)
    else:
        np.testing.assert_allclose(right[:, 3], 0, atol=1e-12)
    # Float32 sums leave eigenvalues below 0; no samples at all leave zeros.
    broken = h - 1e-7 * np.eye(12)
    assert np.all(np.isfinite(low_rank_of(weight, broken, 3, damping=damping)[1]))
    for factor in low_rank_of(weight, 0 * h, 3, damping=damping):
        assert np.all(factor == 0)


def test_golden() -> None:
    weight = np.array([[3.0, 0.0], [0.0, 2.0]])
    # Inputs of mean square 1 and 9: the second row weighs 6 at the output, the first 3.
    h = np.diag([1.0, 9.0])
    left, right = low_rank_of(weight, h, 1, damping=0)
    np.testing.assert_allclose(left @ right, [[0, 0], [0, 2]], atol=1e-12)
    np.testing.assert_allclose(np.abs(left), [[0], [np.sqrt(6)]], atol=1e-12)
    np.testing.assert_allclose(np.abs(right), [[0, np.sqrt(6) / 3]], atol=1e-12)
    np.testing.assert_allclose(errors_by_rank(weight, h, damping=0), [45, 9, 0], atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    weight, h = problem(6)
    with pytest.raises(ValueError, match="from 0 to 10, not at 11"):
        low_rank_of(weight, h, 11)
    with pytest.raises(ValueError, match="do not fit 14 inputs"):
        correct_low_rank(weight, h[:3, :3], 2)
    with pytest.raises(ValueError, match="not negative"):
        rank_for_error(weight, h, -1.0)
    with pytest.raises(ValueError, match="damping is not negative"):
        low_rank_of(weight, h, 2, damping=-1)


def test_pytorch_gives_the_same_factors() -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem(7)
    left, right = low_rank_of(weight, h, 4)
    left_t, right_t = low_rank_of(torch.asarray(weight), torch.asarray(h), 4)
    np.testing.assert_allclose((left_t @ right_t).numpy(), left @ right, atol=1e-10)
    np.testing.assert_allclose(
        errors_by_rank(torch.asarray(weight), torch.asarray(h)).numpy(), errors_by_rank(weight, h)
    )
    assert rank_for_error(torch.asarray(weight), torch.asarray(h), 20.0) == rank_for_error(
        weight, h, 20.0
    )


KERNEL = (3, 2)


def composed(first: np.ndarray, second: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """The kernel that columns and then rows make together, [out, in]."""
    rank, outputs = len(first), len(second)
    high, wide = kernel
    a, b = first.reshape(rank, first.shape[1] // high, high), second.reshape(outputs, rank, wide)
    return np.einsum("orb,ria->oiab", b, a).reshape(outputs, -1)


def test_spatial_factors_are_two_thin_kernels() -> None:
    weight, h = problem(8, 7, 4 * 6)
    errors = []
    for rank in range(13):
        first, second = spatial_factors_of(weight, h, rank, kernel=KERNEL)
        assert first.shape == (rank, 12) and second.shape == (7, rank * 2)
        errors.append(output_error(weight, composed(first, second, KERNEL), h))
    assert np.all(np.diff(errors) < 1e-9 * errors[0]) and errors[12] < 1e-12 * errors[0]
    assert errors[0] == pytest.approx(output_error(weight, 0 * weight, h))


def test_a_separable_kernel_comes_back() -> None:
    rng = np.random.default_rng(9)
    weight = composed(rng.standard_normal((3, 12)), rng.standard_normal((7, 6)), KERNEL)
    _, h = problem(9, 7, 24)
    found = composed(*spatial_factors_of(weight, h, 3, kernel=KERNEL), KERNEL)
    np.testing.assert_allclose(found, weight, atol=1e-6)


def test_the_second_spatial_factor_is_least_squares_on_rows() -> None:
    weight, h = problem(10, 5, 24)
    first, second = spatial_factors_of(weight, h, 4, kernel=KERNEL, damping=0)
    root = np.linalg.cholesky(h).T
    through = np.stack(
        [
            composed(first, np.eye(8)[[k]], KERNEL)[0]  # one output that reads one value
            for k in range(8)
        ]
    )
    expected = np.linalg.lstsq(root @ through.T, root @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(second, expected, atol=1e-5)
    # Alternating over both, slowly, gets little further from there.
    unseen = spatial_factors_of(weight, np.eye(24), 4, kernel=KERNEL)
    assert output_error(weight, composed(first, second, KERNEL), h) < 0.8 * output_error(
        weight, composed(*unseen, KERNEL), h
    )


def test_spatial_golden() -> None:
    # One channel, 2 x 2: the outer product of (1, 2) down and (3, 4) across.
    weight = np.array([[3.0, 4.0, 6.0, 8.0]])
    first, second = spatial_factors_of(weight, np.eye(4), 1, kernel=(2, 2))
    np.testing.assert_allclose(first / first[0, 0], [[1, 2]], atol=1e-9)
    np.testing.assert_allclose(composed(first, second, (2, 2)), weight, atol=1e-7)
    with pytest.raises(ValueError, match="3 x 2 does not divide 4"):
        spatial_factors_of(weight, np.eye(4), 1, kernel=(3, 2))


def test_pytorch_gives_the_same_spatial_factors() -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem(11, 5, 24)
    expected = composed(*spatial_factors_of(weight, h, 4, kernel=KERNEL), KERNEL)
    found = spatial_factors_of(torch.asarray(weight), torch.asarray(h), 4, kernel=KERNEL)
    np.testing.assert_allclose(
        composed(found[0].numpy(), found[1].numpy(), KERNEL), expected, atol=1e-8
    )
