from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from packlight.maths.grids import Grid, IntegerGrid, LevelGrid, scale_and_zero_point
from packlight.maths.learned import gradient, objective, rectified_sigmoid, round_learned
from packlight.maths.rounding import (
    coordinate_descent,
    output_error,
    round_to_nearest,
    round_with_compensation,
)

INT3 = IntegerGrid(3, signed=True, symmetric=True)
UINT4 = IntegerGrid(4, signed=False, symmetric=False)
UNEVEN = LevelGrid("uneven", (-1.0, -0.6, -0.3, -0.1, 0.1, 0.3, 0.6, 1.0))


def problem(
    seed: int, outputs: int = 16, inputs: int = 32, grid: Grid = INT3, groups: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A weight, correlated second moments, and scales [out, groups] by min-max."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    weight = rng.standard_normal((outputs, inputs))
    parts = weight.reshape(outputs, groups, -1)
    if isinstance(grid, IntegerGrid):
        scale, zero = scale_and_zero_point(parts.min(axis=2), parts.max(axis=2), grid)
    else:
        scale = np.abs(parts).max(axis=2).astype(np.float32)
        zero = np.zeros(scale.shape, np.int32)
    return weight, rows.T @ rows / len(rows), scale, zero


def values(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid) -> np.ndarray:
    size = codes.shape[1] // scale.shape[1]
    steps = grid.steps_of(codes, np.repeat(zero, size, axis=1))
    return np.asarray(steps * np.repeat(scale.astype(np.float64), size, axis=1))


def nearest_codes(
    weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid
) -> np.ndarray:
    size = weight.shape[1] // scale.shape[1]
    wide = np.repeat(scale.astype(np.float64), size, axis=1)
    return np.asarray(grid.codes_of(weight / wide, np.repeat(zero, size, axis=1)))


@pytest.mark.parametrize("strength", [0.0, 0.01])
@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_the_gradient_is_that_of_finite_differences(strength: float, beta: float) -> None:
    rng = np.random.default_rng(3)
    _, h, _, _ = problem(0, inputs=9)
    a = rng.uniform(-4, 4, (5, 9))
    offset, gap = rng.standard_normal((5, 9)), rng.uniform(0.2, 2, (5, 9))
    found = gradient(a, offset, gap, h, strength=strength, beta=beta)
    expected = np.zeros_like(a)
    for i in range(9):
        ends = []
        for step in (1e-6, -1e-6):
            moved = a.copy()
            moved[:, i] += step
            ends.append(objective(moved, offset, gap, h, strength=strength, beta=beta))
        expected[:, i] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.any(found == 0) and np.any(found != 0), "both cut and free choices are compared"


def test_the_choice_reaches_both_ends_and_has_a_middle() -> None:
    found = rectified_sigmoid(np.array([-5.0, -2.5, 0.0, 2.5, 5.0]))
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1], atol=1e-12)
    assert 0 < rectified_sigmoid(np.array([-2.3]))[0] < 0.01


def test_small_problems_are_solved_nearly_as_well_as_by_trying_everything() -> None:
    totals = np.zeros(4)
    for seed in range(6):
        weight, h, scale, zero = problem(seed, outputs=6, inputs=8)
        steps = weight / scale.astype(np.float64)
        below = np.clip(np.floor(steps), INT3.minimum, INT3.maximum)
        above = np.clip(np.floor(steps) + 1, INT3.minimum, INT3.maximum)
        ups = np.array(list(product((False, True), repeat=8)))
        best = 0.0
        for o in range(6):
            off = weight[o] - np.where(ups, above[o], below[o]) * float(scale[o, 0])
            best += float(np.einsum("ki,ij,kj->k", off, h, off).min())
        codes, info = round_learned(weight, h, scale, zero, INT3)
        assert np.all((codes == below) | (codes == above))
        error = output_error(weight, values(codes, scale, zero, INT3), h)
        assert info.error == pytest.approx(error)
        assert error >= best * (1 - 1e-9)
        start, _ = round_with_compensation(weight, h, scale, zero, INT3, order="descending")
        _, carried = round_learned(weight, h, scale, zero, INT3, start_codes=start)
        totals += np.array([best, info.error, carried.error, info.nearest_error]) / best
    totals /= totals[0]
    assert totals[1] < 1.5 and totals[2] < 1.03 and totals[3] > 2


def test_no_single_choice_is_left_that_would_gain() -> None:
    weight, h, scale, zero = problem(8, outputs=5, inputs=12)
    codes, info = round_learned(weight, h, scale, zero, INT3, iterations=100)
    steps = weight / scale
    for o, i in product(range(5), range(12)):
        other = codes.copy()
        other[o, i] = np.floor(steps[o, i]) + np.ceil(steps[o, i]) - codes[o, i]
        if abs(other[o, i]) <= 3:
            changed = output_error(weight, values(other, scale, zero, INT3), h)
            assert changed >= info.error * (1 - 1e-9)


@pytest.mark.parametrize(("grid", "groups"), [(INT3, 1), (UINT4, 1), (UINT4, 4), (UNEVEN, 2)])
def test_it_beats_rounding_to_nearest_by_far(grid: Grid, groups: int) -> None:
    ratios = []
    for seed in range(4):
        weight, h, scale, zero = problem(seed, grid=grid, groups=groups)
        codes, info = round_learned(weight, h, scale, zero, grid)
        nearest = nearest_codes(weight, scale, zero, grid)
        error, worse = (
            output_error(weight, values(q, scale, zero, grid), h) for q in (codes, nearest)
        )
        assert info.error == pytest.approx(error) and info.nearest_error == pytest.approx(worse)
        assert info.undecided < 0.05
        ratios.append(error / worse)
    assert max(ratios) < 0.6
    assert np.mean(ratios) < 0.4


def test_the_size_and_scale_of_a_layer_do_not_matter() -> None:
    weight, h, scale, zero = problem(1)
    plain, _ = round_learned(weight, h, scale, zero, INT3, iterations=200)
    for factor, power in ((2.0**40, 2.0**-30), (2.0**-40, 2.0**30)):
        moved, info = round_learned(
            weight * factor, h * power, scale * np.float32(factor), zero, INT3, iterations=200
        )
        np.testing.assert_array_equal(moved, plain)
        assert np.isfinite(info.error)
    # Rows don't see each other.
    some, _ = round_learned(weight[:3], h, scale[:3], zero[:3], INT3, iterations=200)
    np.testing.assert_array_equal(some, plain[:3])


def test_it_carries_on_from_compensated_codes_and_never_loses_to_them() -> None:
    gains = []
    for seed in range(4):
        weight, h, scale, zero = problem(seed)
        start, _ = round_with_compensation(weight, h, scale, zero, INT3, order="descending")
        start = coordinate_descent(weight, start, h, scale, zero, INT3)
        before = output_error(weight, values(start, scale, zero, INT3), h)
        codes, info = round_learned(weight, h, scale, zero, INT3, start_codes=start, iterations=400)
        rows = ((weight - values(q, scale, zero, INT3)) for q in (codes, start))
        learned, given = (np.sum((off @ h) * off, axis=1) for off in rows)
        assert np.all(learned <= given * (1 + 1e-12))
        gains.append(info.error / before)
    assert np.mean(gains) < 0.99


def test_another_target_is_what_the_output_is_compared_with() -> None:
    weight, h, scale, zero = problem(2)
    target = weight + 0.1 * np.random.default_rng(0).standard_normal(weight.shape)
    codes, info = round_learned(weight, h, scale, zero, INT3, target=target, iterations=400)
    own, _ = round_learned(weight, h, scale, zero, INT3, iterations=400)
    reached, other = (output_error(target, values(q, scale, zero, INT3), h) for q in (codes, own))
    assert info.error == pytest.approx(reached)
    assert reached < 0.9 * other


def test_where_learning_does_not_help_the_start_stays_and_the_info_says_so() -> None:
    weight, h, scale, zero = problem(0)
    start, _ = round_with_compensation(weight, h, scale, zero, INT3, order="descending")
    start = coordinate_descent(weight, start, h, scale, zero, INT3)
    # Far too fast a rate shakes the choices about.
    codes, info = round_learned(
        weight, h, scale, zero, INT3, start_codes=start, iterations=3, learning_rate=8.0
    )
    kept = np.all(codes == start, axis=1)
    assert info.fell_back == np.count_nonzero(kept) > 4
    nearest = round_to_nearest(weight, scale, zero, INT3)
    codes, info = round_learned(weight, np.eye(32), scale, zero, INT3)
    np.testing.assert_array_equal(codes, nearest)
    assert info.fell_back == 0
    codes, info = round_learned(weight, 0 * h, scale, zero, INT3, iterations=50)
    np.testing.assert_array_equal(codes, nearest)
    assert info.error == 0


def test_dead_inputs_are_rounded_to_nearest() -> None:
    weight, h, scale, zero = problem(5)
    h[[3, 7]] = 0
    h[:, [3, 7]] = 0
    codes, _ = round_learned(weight, h, scale, zero, INT3, iterations=400)
    nearest = round_to_nearest(weight, scale, zero, INT3)
    np.testing.assert_array_equal(codes[:, [3, 7]], nearest[:, [3, 7]])


def test_same_seed_same_codes_and_nothing_is_written_to() -> None:
    arrays = problem(4)
    copies = [array.copy() for array in arrays]
    first, _ = round_learned(*arrays, INT3, iterations=50, seed=7)
    again, _ = round_learned(*arrays, INT3, iterations=50, seed=7)
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.int8
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_tie_is_broken() -> None:
    # Half-way everywhere the pull has no slope and equal inputs none either: two up, two down.
    codes, info = round_learned(
        np.full((1, 4), 0.5), np.ones((4, 4)), np.ones(1, np.float32), np.zeros(1), INT3
    )
    assert int(codes.sum()) == 2 and info.error == 0


def test_golden() -> None:
    weight = np.array([[0.4, 0.4, 0.4, -1.6], [1.3, -0.7, 2.4, 0.2]])
    h = np.array([[2.0, 1.8, 1.8, 0], [1.8, 2, 1.8, 0], [1.8, 1.8, 2, 0], [0, 0, 0, 1]])
    codes, info = round_learned(weight, h, np.ones(2, np.float32), np.zeros(2, np.int32), INT3)
    # Three equal inputs of 0.4 are 1.2 together: one goes up. 1.3 - 0.7 + 2.4 = 3 = 1 + 0 + 2.
    assert sorted(codes[0, :3].tolist()) == [0, 0, 1] and codes[0, 3] == -2
    assert codes[1].tolist() == [1, 0, 2, 0] or codes[1].tolist() == [1, -1, 3, 0]
    # 1.8 * (sum of errors)^2 + 0.2 * sum of squared errors, and the last input by itself.
    first = 1.8 * 0.2**2 + 0.2 * (0.4**2 + 0.4**2 + 0.6**2) + 0.4**2
    second = 0.2 * (0.3**2 + 0.3**2 + 0.6**2) + 0.2**2
    assert info.error == pytest.approx(first + second, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "at least one iteration"),
        ({"target": np.ones((2, 2))}, "target of shape"),
        ({"start_codes": np.full((16, 32), 9)}, "not from -3 to 3"),
        ({"second_moments": np.ones((3, 3))}, "do not fit 32 inputs"),
        ({"scale": np.ones((16, 5)), "zero_point": np.zeros((16, 5))}, "group_size"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    weight, h, scale, zero = problem(0)
    arguments = {"second_moments": h, "scale": scale, "zero_point": zero, **change}
    with pytest.raises(ValueError, match=message):
        round_learned(weight, grid=INT3, **arguments)  # type: ignore[arg-type]


def test_float32_weights_are_learned_in_float32_about_as_well() -> None:
    weight, h, scale, zero = problem(6)
    _, wide = round_learned(weight, h, scale, zero, INT3, iterations=400)
    codes, narrow = round_learned(
        weight.astype(np.float32), h.astype(np.float32), scale, zero, INT3, iterations=400
    )
    assert codes.dtype == np.int8
    assert narrow.error < 1.2 * wide.error


def test_pytorch_gives_the_same_codes() -> None:
    torch = pytest.importorskip("torch")
    for grid, groups in ((INT3, 1), (UINT4, 4), (UNEVEN, 2)):
        arrays = problem(1, outputs=4, inputs=16, grid=grid, groups=groups)
        codes, info = round_learned(*arrays, grid, iterations=60)
        tensors = [torch.asarray(array) for array in arrays]
        same, info_t = round_learned(*tensors, grid, iterations=60)
        np.testing.assert_array_equal(same.numpy(), codes)
        assert info_t.error == pytest.approx(info.error)
