"""Rounding in groups: as good as each group by itself, never worse than what was given."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.grids import IntegerGrid, LevelGrid
from packlight.maths.grouped import output_error_of_groups, round_groups
from packlight.maths.rounding import output_error, round_to_nearest, round_with_compensation

INT8 = IntegerGrid(bits=8, signed=True, symmetric=True)
INT4 = IntegerGrid(bits=4, signed=True, symmetric=True, low=-8)
LEVELS = LevelGrid("uneven", (-1.0, -0.4, -0.1, 0.0, 0.2, 0.5, 1.0))


def problem(
    groups: int, outputs: int, inputs: int, seed: int = 0, rows: int = 400
) -> tuple[Any, Any]:
    """A weight [groups, out, in] and second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, outputs, inputs)) * rng.uniform(0.1, 10, (groups, 1, 1))
    x = rng.standard_normal((groups, rows, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    return weight, np.matmul(x.transpose(0, 2, 1), x) / rows


def nearest(weight: Any, grid: Any, highest: float) -> tuple[Any, Any]:
    scale = (np.abs(weight).max(axis=2) / highest).astype(np.float32)
    codes = grid.codes_of(weight / scale[:, :, None]).astype(grid.dtype_name)
    return codes, scale


def errors(weight: Any, codes: Any, scale: Any, second: Any, grid: Any) -> Any:
    """Of each output, by loops."""
    values = grid.steps_of(codes) * scale.astype(np.float64)[:, :, None]
    return np.array(
        [
            [output_error(weight[g, o : o + 1], values[g, o : o + 1], second[g]) for o in range(n)]
            for g, n in enumerate([weight.shape[1]] * len(weight))
        ]
    )


@given(
    groups=st.integers(1, 4),
    outputs=st.integers(1, 3),
    inputs=st.integers(1, 9),
    seed=st.integers(0, 99),
    grid=st.sampled_from([INT8, INT4, LEVELS]),
    fit=st.booleans(),
)
def test_no_output_gets_worse(
    groups: int, outputs: int, inputs: int, seed: int, grid: Any, fit: bool
) -> None:
    weight, second = problem(groups, outputs, inputs, seed)
    codes, scale = nearest(weight, grid, 1.0 if grid is LEVELS else grid.maximum)
    found, fitted, info = round_groups(weight, codes, second, scale, grid, fit_scale=fit)
    assert found.dtype == codes.dtype and fitted.dtype == np.float32
    assert found.min() >= grid.minimum and found.max() <= grid.maximum
    before, after = (
        errors(weight, *pair, second, grid) for pair in ((codes, scale), (found, fitted))
    )
    assert (after <= before * (1 + 1e-9)).all()
    assert info.error == pytest.approx(after.sum(), rel=1e-6, abs=1e-12)
    if not fit:
        np.testing.assert_array_equal(fitted, scale)


def test_as_good_as_each_group_by_itself() -> None:
    """The oracle: the solver of one layer, group after group, at 10 correlated inputs."""
    weight, second = problem(12, 3, 10, seed=4)
    codes, scale = nearest(weight, INT4, 7)
    found, fitted, _ = round_groups(weight, codes, second, scale, INT4)
    ours = errors(weight, found, fitted, second, INT4).sum()
    alone = 0.0
    for w, h, s in zip(weight, second, scale, strict=True):
        one, _ = round_with_compensation(w, h, s, np.zeros(3, np.int32), INT4)
        alone += output_error(w, one * s[:, None].astype(np.float64), h)
    assert ours < 0.9 * alone < 0.9 * errors(weight, codes, scale, second, INT4).sum()


def test_near_the_best_of_all_codes() -> None:
    """The oracle: every combination of 3 codes for 8 inputs, scales as given."""
    grid = LevelGrid("ternary", (-1.0, 0.0, 1.0))
    weight, second = problem(6, 1, 8, seed=1)
    scale = (0.7 * np.abs(weight).max(axis=2)).astype(np.float32)
    codes = grid.codes_of(weight / scale[:, :, None]).astype(np.uint8)
    info = round_groups(weight, codes, second, scale, grid, fit_scale=False)[2]
    steps = np.array(list(product((-1.0, 0.0, 1.0), repeat=8)))
    best = 0.0
    for w, h, s in zip(weight, second, scale, strict=True):
        off = w - steps * float(s[0])
        best += float(((off @ h) * off).sum(axis=1).min())
    plain = errors(weight, codes, scale, second, grid).sum()
    assert best <= info.error * (1 + 1e-9) and info.error < 1.5 * best < 0.8 * plain


def test_golden() -> None:
    """Two equal inputs: what one is rounded up by, the other is rounded down by."""
    weight = np.array([[[0.4, 0.4]], [[1.4, 0.4]]])
    second = np.ones((2, 2, 2))
    second[1] = np.eye(2)
    scale = np.ones((2, 1), np.float32)
    codes = round_to_nearest(weight.reshape(2, 2), scale, np.zeros((2, 1)), INT4).reshape(2, 1, 2)
    np.testing.assert_array_equal(codes, [[[0, 0]], [[1, 0]]])
    found, _, info = round_groups(weight, codes, second, scale, INT4, fit_scale=False)
    assert sorted(found[0, 0]) == [0, 1]
    np.testing.assert_array_equal(found[1], codes[1])
    assert info.error == pytest.approx(0.2**2 + 2 * 0.4**2)
    values = found.reshape(2, 2).astype(np.float64)
    assert output_error_of_groups(weight.reshape(2, 2), values, second) == pytest.approx(info.error)


def test_pair_limits_hold() -> None:
    weight, second = problem(8, 4, 9, seed=7)
    weight = np.abs(weight) + 0.5 * np.abs(weight).max(axis=2, keepdims=True)
    codes, scale = nearest(weight, INT8, 127)
    codes = np.minimum(codes, 64)
    found, _, info = round_groups(weight, codes, second, scale, INT8, pair_limit=128)
    first, other = (found[:, :, k:8:2].astype(int) for k in (0, 1))
    assert (np.abs(np.where(first * other > 0, first + other, 0)) <= 128).all()
    assert (np.abs(first + other) > 120).any() and info.limited > 0


def test_dead_inputs_and_broken_moments() -> None:
    weight, second = problem(3, 2, 5)
    second[1, 2, :] = second[1, :, 2] = 0
    second[2] = 0
    codes, scale = nearest(weight, INT4, 7)
    _, _, info = round_groups(weight, codes, second, scale, INT4)
    assert info.dead_inputs == 6 and np.isfinite(info.error)
    with pytest.raises(ValueError, match="do not fit 3 groups"):
        round_groups(weight, codes, second[:2], scale, INT4)
    second[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        round_groups(weight, codes, second, scale, INT4)


def test_torch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    weight, second = problem(5, 2, 6, seed=3)
    codes, scale = nearest(weight, INT4, 7)
    ours = round_groups(weight, codes, second, scale, INT4)
    theirs = round_groups(*map(torch.asarray, (weight, codes, second, scale)), INT4)
    np.testing.assert_array_equal(theirs[0].numpy(), ours[0])
    np.testing.assert_allclose(theirs[1].numpy(), ours[1], rtol=1e-5)
