from __future__ import annotations

import numpy as np
import pytest

from packlight.maths.moments import (
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    join_moments,
    mean_shift,
    refit_kept,
    refit_to_inputs,
    refit_to_targets,
)


def streams(inputs: int = 10, n: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows with a mean, and the same rounded coarsely."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, inputs)) @ rng.standard_normal((inputs, inputs)) + 1.5
    return x.astype(np.float32), np.round(np.maximum(x, -2) / 2).astype(np.float32) * 2


def test_moments_are_those_of_all_rows() -> None:
    x, y = streams()
    moments, cross = empty_moments(10), empty_moments(10)
    for start in range(0, len(x), 700):
        moments = add_to_moments(moments, x[start : start + 700])
        cross = add_to_cross_moments(cross, x[start : start + 700], y[start : start + 700])
    wide, wide_y = x.astype(np.float64), y.astype(np.float64)
    assert moments.count == cross.count == len(x)
    np.testing.assert_allclose(moments.second, wide.T @ wide / len(x), rtol=1e-4)
    np.testing.assert_allclose(moments.mean, wide.mean(axis=0))
    np.testing.assert_allclose(cross.second, wide.T @ wide_y / len(x), rtol=1e-4)
    np.testing.assert_allclose(cross.mean, wide.mean(axis=0))
    np.testing.assert_allclose(cross.mean_right, wide_y.mean(axis=0))


def test_joined_moments_are_those_of_both_to_the_last_bit() -> None:
    x, y = streams()
    whole = joined = add_to_cross_moments(empty_moments(10), x[:700], y[:700])
    for start in range(700, len(x), 700):
        rows = slice(start, start + 700)
        whole = add_to_cross_moments(whole, x[rows], y[rows])
        joined = join_moments(joined, add_to_cross_moments(empty_moments(10), x[rows], y[rows]))
    assert joined.count == whole.count == len(x)
    for one in ("products", "left", "right"):
        assert np.array_equal(getattr(joined, one), getattr(whole, one))


def test_broken_rows_are_refused() -> None:
    rows = np.ones((6, 4), np.float32)
    rows[2, 1], rows[3, 3] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 24"):
        add_to_moments(empty_moments(4), rows)
    with pytest.raises(ValueError, match="do not fit moments of 5"):
        add_to_moments(empty_moments(5), np.ones((6, 4)))


def test_refitting_is_least_squares_on_the_rows() -> None:
    x, y = (rows.astype(np.float64) for rows in streams())
    weight = np.random.default_rng(1).standard_normal((3, 10))
    cross, second = x.T @ y / len(x), y.T @ y / len(x)
    expected = np.linalg.lstsq(y, x @ weight.T, rcond=None)[0].T
    found = refit_to_inputs(weight, cross, second, damping=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    def loss(v: np.ndarray) -> float:
        return float(np.mean((x @ weight.T - y @ v.T) ** 2))

    assert loss(found) < 0.8 * loss(weight)
    assert loss(found) <= loss(refit_to_inputs(weight, cross, second)) < loss(weight)


def test_damping_pulls_to_the_given_weight_and_equal_inputs_leave_it() -> None:
    x, y = (rows.astype(np.float64) for rows in streams())
    weight = np.random.default_rng(1).standard_normal((3, 10))
    cross, second = x.T @ y / len(x), y.T @ y / len(x)
    strong = refit_to_inputs(weight, cross, second, damping=1e9)
    np.testing.assert_allclose(strong, weight, rtol=1e-6)
    same = x.T @ x / len(x)
    np.testing.assert_allclose(refit_to_inputs(weight, same, same, damping=0.3), weight)


def test_an_input_that_never_came_keeps_its_weight() -> None:
    x, y = (rows.astype(np.float64) for rows in streams())
    x[:, 4] = y[:, 4] = 0
    weight = np.random.default_rng(1).standard_normal((3, 10))
    found = refit_to_inputs(weight, x.T @ y / len(x), y.T @ y / len(x), damping=0)
    np.testing.assert_allclose(found[:, 4], weight[:, 4])
    assert np.all(np.isfinite(found))


def test_the_mean_shift_restores_the_mean_output() -> None:
    x, y = streams()
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((3, 10))
    rounded = np.round(weight * 4) / 4
    shift = mean_shift(weight, x.mean(axis=0), rounded, y.mean(axis=0))
    np.testing.assert_allclose(
        (y @ rounded.T + shift).mean(axis=0), (x @ weight.T).mean(axis=0), rtol=1e-3, atol=1e-4
    )


def test_pytorch_gives_the_same_moments() -> None:
    torch = pytest.importorskip("torch")
    x, y = streams()
    expected = add_to_cross_moments(empty_moments(10), x, y)
    like = torch.asarray(x)
    found = add_to_cross_moments(empty_moments(10, like=like), like, torch.asarray(y))
    np.testing.assert_allclose(found.second.numpy(), expected.second, rtol=1e-4)
    weight = np.random.default_rng(1).standard_normal((3, 10))
    second = add_to_moments(empty_moments(10), y).second
    np.testing.assert_allclose(
        refit_to_inputs(torch.asarray(weight), found.second, torch.asarray(second)).numpy(),
        refit_to_inputs(weight, expected.second, second),
        rtol=1e-3,
    )


def test_groups_are_moments_side_by_side() -> None:
    x, y = streams(12)
    split = [rows.reshape(-1, 3, 4).transpose(1, 0, 2) for rows in (x, y)]
    grouped, cross = empty_moments(4, groups=3), empty_moments(4, groups=3)
    for start in range(0, len(x), 1700):
        parts = [rows[:, start : start + 1700] for rows in split]
        grouped = add_to_moments(grouped, parts[0])
        cross = add_to_cross_moments(cross, *parts)
    assert grouped.grouped and grouped.second.shape == (3, 4, 4) and grouped.count == len(x)
    for group in range(3):
        alone = add_to_moments(empty_moments(4), split[0][group])
        one = grouped.of_group(group)
        assert not one.grouped and one.count == alone.count
        np.testing.assert_allclose(one.second, alone.second, rtol=1e-4)
        np.testing.assert_allclose(one.mean, alone.mean)
        pair = add_to_cross_moments(empty_moments(4), split[0][group], split[1][group])
        np.testing.assert_allclose(cross.of_group(group).second, pair.second, rtol=1e-4)
        np.testing.assert_allclose(cross.mean_right[group], pair.mean_right)
    with pytest.raises(ValueError, match="3 x 4 inputs"):
        add_to_moments(grouped, split[0][:2])


def test_the_shift_of_groups_is_that_of_each() -> None:
    rng = np.random.default_rng(3)
    w, v = rng.standard_normal((2, 6, 4))
    mean, new = rng.standard_normal((2, 3, 4))
    expected = [
        mean_shift(w[2 * g : 2 * g + 2], mean[g], v[2 * g : 2 * g + 2], new[g]) for g in range(3)
    ]
    np.testing.assert_allclose(mean_shift(w, mean, v, new), np.concatenate(expected))


def test_refitting_some_inputs_is_least_squares_on_their_rows() -> None:
    x, y = (rows.astype(np.float64) for rows in streams())
    weight = np.random.default_rng(1).standard_normal((3, 10))
    cross, second = x.T @ y / len(x), y.T @ y / len(x)
    kept = [7, 1, 4, 0, 9]
    expected = np.linalg.lstsq(y[:, kept], x @ weight.T, rcond=None)[0].T
    found = refit_kept(weight, cross, second, kept, damping=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # A pruned layer sees the kept inputs only: its moments are cut already.
    small = y[:, kept]
    cut = refit_kept(weight, x.T @ small / len(x), small.T @ small / len(x), kept, damping=0)
    np.testing.assert_allclose(cut, expected, rtol=1e-6)

    def loss(v: np.ndarray, ridge: float) -> float:
        pull = ridge * float(np.mean(np.diag(second)[kept]))
        fit = np.sum((x @ weight.T - y[:, kept] @ v.T) ** 2) / len(x)
        return float(fit + pull * np.sum((v - weight[:, kept]) ** 2))

    ridged = refit_kept(weight, cross, second, kept, damping=0.1)
    rng = np.random.default_rng(2)
    for _ in range(20):
        other = ridged + 1e-3 * rng.standard_normal(ridged.shape)
        assert loss(other, 0.1) > loss(ridged, 0.1)
    assert loss(found, 0.0) < loss(ridged, 0.0) < 0.9 * loss(weight[:, kept], 0.0)
    np.testing.assert_array_equal(refit_kept(weight, cross, second, []), np.zeros((3, 0)))


def test_moments_that_do_not_fit_the_kept_inputs_are_refused() -> None:
    weight = np.ones((3, 10))
    with pytest.raises(ValueError, match="10 inputs of which 2 are kept"):
        refit_kept(weight, np.eye(10), np.eye(3), [1, 2])
    with pytest.raises(ValueError, match="different ones of 10"):
        refit_kept(weight, np.eye(10), np.eye(10), [1, 1])


def test_refit_golden() -> None:
    # Input 1 is twice input 0 and a little: 1 + 2 / 5 of what both did is left to it.
    h = np.array([[1.0, 2.0], [2.0, 5.0]])
    np.testing.assert_allclose(
        refit_kept(np.array([[1.0, 1.0]]), h, h, [1], damping=0), [[1.4]], rtol=1e-9
    )


def test_a_weight_refitted_to_targets_is_the_least_squares_solution():
    random = np.random.default_rng(11)
    y = random.standard_normal((400, 5)) @ random.standard_normal((5, 9))
    y += 0.1 * random.standard_normal(y.shape)
    target = random.standard_normal((400, 4)) + y @ random.standard_normal((9, 4))
    cross = add_to_cross_moments(empty_moments(9, outputs=4), target, y)
    own = add_to_moments(empty_moments(9), y)
    weight = np.zeros((4, 9))
    found = refit_to_targets(weight, cross.second, own.second, damping=0.0)
    np.testing.assert_allclose(found, np.linalg.lstsq(y, target, rcond=None)[0].T, atol=1e-6)
    # W x as the target is `refit_to_inputs`, by another way.
    w = random.standard_normal((4, 9))
    same = refit_to_targets(w, w @ own.second, own.second, damping=0.1)
    np.testing.assert_allclose(same, refit_to_inputs(w, own.second, own.second, damping=0.1))


def test_groups_are_refitted_to_targets_one_by_one():
    random = np.random.default_rng(12)
    y, t = random.standard_normal((3, 200, 9)), random.standard_normal((3, 200, 2))
    cross = add_to_cross_moments(empty_moments(9, outputs=2, groups=3), t, y).second
    own = add_to_moments(empty_moments(9, groups=3), y).second
    w = random.standard_normal((3, 2, 9))
    found = refit_to_targets(w, cross, own)
    for g in range(3):
        np.testing.assert_allclose(found[g], refit_to_targets(w[g], cross[g], own[g]))


def test_streams_that_do_not_pair_are_refused():
    empty = empty_moments(4, outputs=2)
    with pytest.raises(ValueError, match="do not fit"):
        add_to_cross_moments(empty, np.ones((5, 4)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="do not fit"):
        add_to_cross_moments(empty, np.ones((5, 2)), np.ones((6, 4)))
