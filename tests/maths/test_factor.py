from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packlight.maths.factor import (
    damp_moments,
    factor_moments,
    invert_moments,
    keep_factors,
)


def moments(inputs: int = 12, dead: int | None = 3) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((inputs // 2, inputs)) * 1e3
    if dead is not None:
        rows[:, dead] = 0
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("dead", [None, 3])
def test_damping_and_the_inverse_go_together(dead: int | None) -> None:
    h = moments(dead=dead)
    alive = np.diag(h)[np.diag(h) > 0]
    expected = h + 0.02 * alive.mean() * np.eye(12)
    if dead is not None:
        expected[dead, dead] += alive.mean()
    found = damp_moments(h, damping=0.02)
    np.testing.assert_allclose(found, expected)
    inverse = invert_moments(h, damping=0.02)
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(inverse @ expected, np.eye(12), atol=1e-9)


def test_an_inverse_larger_than_a_slice_of_rows() -> None:
    h = moments(600, dead=None)
    inverse = invert_moments(h, damping=0.1)
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(inverse @ damp_moments(h, damping=0.1), np.eye(600), atol=1e-9)


def test_nothing_seen_is_as_good_as_ones() -> None:
    np.testing.assert_allclose(damp_moments(np.zeros((3, 3)), damping=0.5), 1.5 * np.eye(3))
    np.testing.assert_allclose(invert_moments(np.zeros((3, 3)), damping=0.5), np.eye(3) / 1.5)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    h = moments()
    for function in (damp_moments, invert_moments):
        found = function(torch.asarray(h), damping=0.03)
        np.testing.assert_allclose(found.numpy(), function(h, damping=0.03), rtol=1e-9)


def test_factors_that_are_kept_are_those_of_the_same_question() -> None:
    h, other = moments(), moments(dead=2)
    order, turned = np.arange(12), np.arange(11, -1, -1)

    def ask(second: Any, order: Any = order, damping: float = 0.01, dtype: Any = np.float32) -> Any:
        return factor_moments(second, order, damping=damping, dtype=dtype)

    assert ask(h) is not ask(h)  # nothing is kept outside
    with keep_factors():
        first = ask(h)
        with keep_factors():
            assert ask(h) is first
        assert ask(h, np.arange(12)) is first
        for differs in (ask(h, turned), ask(h, damping=0.02), ask(h, dtype=np.float64), ask(other)):
            assert differs is not first
        again = ask(h)  # the last three are held
        assert again is not first
        np.testing.assert_array_equal(np.triu(again.upper), np.triu(first.upper))
        before = np.triu(again.upper)
        invert_moments(h, damping=0.01)  # which works in place
        np.testing.assert_array_equal(np.triu(ask(h).upper), before)
    assert ask(h) is not again


def test_what_is_kept_ends_with_an_error() -> None:
    h = moments()
    with pytest.raises(KeyError), keep_factors():
        raise KeyError
    order = np.arange(12)
    assert factor_moments(h, order, damping=0.01, dtype=np.float32) is not factor_moments(
        h, order, damping=0.01, dtype=np.float32
    )
