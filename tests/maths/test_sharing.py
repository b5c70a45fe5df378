from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from packlight.maths.rounding import output_error
from packlight.maths.sharing import (
    improve_codes,
    lloyd,
    nearest_codes,
    refit_codebook,
    share_weights,
)


def problem(seed: int, outputs: int = 6, inputs: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A weight and correlated second moments, none of them quite dead."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    return rng.standard_normal((outputs, inputs)), rows.T @ rows / len(rows) + 0.1 * np.eye(inputs)


def least_error(values: np.ndarray, importance: np.ndarray, count: int) -> float:
    """The optimal 1-D k-means error, by dynamic programming over where clusters end."""
    order = np.argsort(values)
    x, p = values[order], importance[order]
    n = len(x)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            own, share = x[i:j], p[i:j]
            cost[i, j] = share @ (own - share @ own / share.sum()) ** 2
    best = np.full((count + 1, n + 1), np.inf)
    best[0, 0] = 0
    for k in range(1, count + 1):
        for j in range(1, n + 1):
            best[k, j] = min(best[k - 1, i] + cost[i, j] for i in range(j))
    return float(best[:, n].min())


@pytest.mark.parametrize("count", [2, 4, 8])
def test_it_comes_near_the_best_there_is(count: int) -> None:
    ratios = []
    for seed in range(8):
        weight, h = problem(seed, outputs=5, inputs=8)
        diagonal = np.diag(h)
        shared = share_weights(weight, count=count, second_moments=diagonal)
        importance = np.broadcast_to(diagonal, weight.shape).ravel()
        best = least_error(weight.ravel(), importance, count)
        assert shared.error >= best * (1 - 1e-5)
        ratios.append(shared.error / best)
    assert np.mean(ratios) < 1.15


def test_no_step_raises_the_error() -> None:
    for seed in range(10):
        weight, h = problem(seed)
        book = np.sort(np.random.default_rng(seed).standard_normal(5))
        codes = nearest_codes(weight, book)
        errors = [output_error(weight, book[codes], h)]
        for _ in range(5):
            codes = improve_codes(weight, codes, book, h)
            errors.append(output_error(weight, book[codes], h))
            fitted = refit_codebook(weight, codes, book, h)
            order = np.argsort(fitted)
            book, codes = fitted[order], np.argsort(order)[codes]
            errors.append(output_error(weight, book[codes], h))
        assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
        assert errors[-1] < 0.9 * errors[0]


def test_lloyd_never_raises_the_error() -> None:
    rng = np.random.default_rng(0)
    values, importance = np.sort(rng.standard_normal(200)), rng.random(200)
    for count in (2, 5, 16):
        start = np.sort(rng.standard_normal(count))
        book = lloyd(values, importance, start)
        errors = [
            np.sum(importance * (values - one[nearest_codes(values, one)]) ** 2)
            for one in (start, book)
        ]
        assert errors[1] < errors[0]


def test_the_codebook_solves_the_least_squares_problem() -> None:
    weight, h = problem(3)
    codes = np.random.default_rng(3).integers(0, 4, weight.shape)
    found = refit_codebook(weight, codes, np.arange(4.0), h)
    # |(W - sum_k c_k Z_k) R|^2 as one long regression.
    root = np.linalg.cholesky(h)
    columns = np.stack([((codes == k) @ root).ravel() for k in range(4)], axis=1)
    slow = np.linalg.lstsq(columns, (weight @ root).ravel(), rcond=None)[0]
    np.testing.assert_allclose(found, slow, rtol=1e-6)
    # A value that no weight takes stays where it was.
    kept = refit_codebook(weight, codes, np.array([0.0, 1.0, 2.0, 3.0, 77.0]), h)
    assert kept[4] == 77


def test_after_many_sweeps_no_single_code_gains() -> None:
    weight, h = problem(5)
    shared = share_weights(weight, count=4, second_moments=h, sweeps=200)
    book = shared.codebook.astype(np.float64)
    least = output_error(weight, book[shared.codes], h)
    assert shared.error == pytest.approx(least)
    for place in np.ndindex(weight.shape):
        for code in range(4):
            other = shared.codes.copy()
            other[place] = code
            assert output_error(weight, book[other], h) >= least * (1 - 1e-5)


def test_seeing_all_moments_beats_the_diagonal_and_rows_of_their_own_beat_one_for_all() -> None:
    for seed in range(5):
        weight, h = problem(seed)
        weight = weight * np.arange(1, 7)[:, None]
        plain = share_weights(weight, count=4)
        diagonal = share_weights(weight, count=4, second_moments=np.diag(h))
        full = share_weights(weight, count=4, second_moments=h)
        rows = share_weights(weight, count=4, second_moments=h, group=1)
        errors = [output_error(weight, one.codebook[one.codes], h) for one in (plain, diagonal)]
        assert rows.error < full.error < min(errors)
        assert rows.codebook.shape == (6, 4)


def test_these_numbers() -> None:
    weight = np.array([[0.0, 0.1, 1.0, 1.2], [0.1, 5.0, 5.2, 1.0]])
    shared = share_weights(weight, count=3)
    np.testing.assert_array_equal(shared.codes, [[0, 0, 1, 1], [0, 2, 2, 1]])
    np.testing.assert_allclose(shared.codebook, [0.2 / 3, 3.2 / 3, 5.1], rtol=1e-6)
    assert shared.codes.dtype == np.uint8 and shared.codebook.dtype == np.float32
    heavy = share_weights(weight, count=2, second_moments=np.array([100.0, 1, 1, 1]))
    assert abs(heavy.codebook[0] - 0.05) < abs(shared.codebook[0] - 0.05) + 0.5


def test_few_distinct_values_are_kept_exactly() -> None:
    weight = np.array([[2.0, -1.0, 2.0], [0.0, 0.0, -1.0]])
    for moments in (None, np.eye(3)):
        shared = share_weights(weight, count=8, second_moments=moments)
        np.testing.assert_array_equal(shared.codebook[shared.codes], weight)
    dead = share_weights(weight, count=2, second_moments=np.zeros((3, 3)))
    assert np.isfinite(dead.codebook).all() and dead.error == 0


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="from 2 to 256 values, not 1"):
        share_weights(np.ones((2, 2)), count=1)
    with pytest.raises(ValueError, match="do not fit 2 inputs"):
        share_weights(np.ones((2, 2)), count=2, second_moments=np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        share_weights(np.ones((2, 2)), count=2, second_moments=np.full((2, 2), np.nan))


@pytest.mark.parametrize("group", [None, 2])
def test_pytorch_gives_the_same(group: int | None) -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem(1)
    for moments in (None, np.diag(h).copy(), h):
        given = None if moments is None else torch.asarray(moments)
        one = share_weights(weight, count=4, second_moments=moments, group=group)
        other = share_weights(torch.asarray(weight), count=4, second_moments=given, group=group)
        np.testing.assert_array_equal(other.codes.numpy(), one.codes)
        np.testing.assert_allclose(other.codebook.numpy(), one.codebook, rtol=1e-5)
