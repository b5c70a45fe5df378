from __future__ import annotations

import numpy as np
import pytest

from packlight.maths.importance import (
    score_by_activation,
    score_by_gradient,
    score_by_magnitude,
    score_by_removal,
    score_channels,
    score_rows,
)
from packlight.maths.readers import ChannelReader
from packlight.maths.rounding import output_error


def problem(inputs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, inputs)) @ rng.standard_normal((inputs, inputs))
    return rng.standard_normal((4, inputs)), rows.T @ rows / len(rows)


def test_scores_are_what_removing_one_weight_costs() -> None:
    weight, h = problem()
    np.testing.assert_array_equal(score_by_magnitude(weight), np.abs(weight))
    alone, refit = score_by_activation(weight, h), score_by_removal(weight, h, damping=0)
    np.testing.assert_allclose(score_by_activation(weight, np.diag(h)), alone)
    root = np.linalg.cholesky(h).T
    for i in range(4):
        for j in range(10):
            other = weight.copy()
            other[i, j] = 0
            assert alone[i, j] ** 2 == pytest.approx(output_error(weight, other, h))
            rest = [k for k in range(10) if k != j]
            target = root @ weight[i]
            found = np.linalg.lstsq(root[:, rest], target, rcond=None)[0]
            least = np.sum((target - root[:, rest] @ found) ** 2)
            assert refit[i, j] == pytest.approx(least)
    assert np.all(refit <= alone**2 * (1 + 1e-9))


def test_what_never_comes_scores_nothing() -> None:
    weight, h = problem()
    h[3, :] = h[:, 3] = 0
    assert not score_by_removal(weight, h)[:, 3].any()
    assert not score_by_activation(weight, h)[:, 3].any()


def test_channels_score_what_removing_them_alone_does() -> None:
    weight, h = problem()
    columns = ((0, 5), (1, 2), (), (9,))
    other = ChannelReader(weight[:2], h, ((1,), (), (2, 3), (4,)))
    scores = score_channels([ChannelReader(weight, h, columns), other])
    for channel in range(4):
        expected = 0.0
        for w, own in ((weight, columns[channel]), (weight[:2], other.columns[channel])):
            without = w.copy()
            without[:, list(own)] = 0
            expected += output_error(w, without, h)
        assert scores[channel] == pytest.approx(expected)


def test_rows_and_gradients() -> None:
    rng = np.random.default_rng(1)
    rows, gradients = rng.standard_normal((5, 3, 2)), rng.standard_normal((7, 5, 3, 2))
    np.testing.assert_allclose(score_rows(rows), np.abs(rows).sum(axis=(1, 2)))
    np.testing.assert_allclose(score_rows(rows, norm=2), np.linalg.norm(rows.reshape(5, 6), axis=1))
    expected = [
        np.mean([np.vdot(rows[c], gradients[b, c]) ** 2 for b in range(7)]) for c in range(5)
    ]
    np.testing.assert_allclose(score_by_gradient(rows, gradients), expected)
    # Golden: 2 * 3 - 1 * 4 = 2 in one batch, 0 in the other.
    golden = score_by_gradient(np.array([[2.0, 1.0]]), np.array([[[3.0, -4.0]], [[1.0, -2.0]]]))
    np.testing.assert_allclose(golden, [2.0])
    with pytest.raises(ValueError, match="no batches of"):
        score_by_gradient(rows, rows)
    with pytest.raises(ValueError, match="norm 1 or 2"):
        score_rows(rows, norm=3)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem()
    w, m = torch.asarray(weight), torch.asarray(h)
    np.testing.assert_allclose(score_by_removal(w, m).numpy(), score_by_removal(weight, h))
    np.testing.assert_allclose(score_by_activation(w, m).numpy(), score_by_activation(weight, h))
    np.testing.assert_allclose(score_rows(w, norm=2).numpy(), score_rows(weight, norm=2))
    columns = tuple((c,) for c in range(10))
    np.testing.assert_allclose(
        score_channels([ChannelReader(w, m, columns)]).numpy(),
        score_channels([ChannelReader(weight, h, columns)]),
    )
