from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.grids import (
    Grid,
    IntegerGrid,
    LevelGrid,
    dequantize,
    expand_blocks,
    scale_and_zero_point,
)
from packlight.maths.rounding import (
    coordinate_descent,
    limit_pairs,
    output_error,
    round_to_nearest,
    round_with_compensation,
)

INT8 = IntegerGrid(8, signed=True, symmetric=True)
INT4 = IntegerGrid(4, signed=True, symmetric=True)
UINT3 = IntegerGrid(3, signed=False, symmetric=False)
QUANTILES = LevelGrid("quantiles", (-1.0, -0.6, -0.35, -0.15, 0.0, 0.12, 0.3, 0.55, 1.0))
NO_ZERO = LevelGrid("no zero", (-1.0, -0.3, 0.3, 1.0))


def problem(
    seed: int, outputs: int = 5, inputs: int = 12, grid: Grid = INT4, group: int = -1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A weight, correlated second moments, and scales [out, groups] by min-max."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    weight = rng.standard_normal((outputs, inputs))
    size = inputs if group == -1 else group
    parts = weight.reshape(outputs, inputs // size, size)
    if isinstance(grid, IntegerGrid):
        scale, zero = scale_and_zero_point(parts.min(axis=2), parts.max(axis=2), grid)
    else:
        scale = np.abs(parts).max(axis=2).astype(np.float32)
        zero = np.zeros(scale.shape)
    return weight, rows.T @ rows / len(rows), scale, zero


def values(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid = INT4) -> np.ndarray:
    size = codes.shape[1] // scale.shape[1]
    if isinstance(grid, IntegerGrid):
        return dequantize(codes, scale.astype(np.float64), zero, block_shape=(1, size))
    wide = (expand_blocks(part, codes.shape, (1, size)) for part in (scale, zero))
    return np.asarray(grid.levels)[codes] * next(wide).astype(np.float64)


def compensate_slowly(
    weight: np.ndarray, h: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid
) -> np.ndarray:
    """After each rounding, re-solve all weights still free by least squares (OBQ in order)."""
    codes = np.zeros(weight.shape)
    size = weight.shape[1] // scale.shape[1]
    for o, row in enumerate(weight):
        free = row.copy()
        fixed = np.zeros_like(row)
        for i in range(len(row)):
            s, z = float(scale[o, i // size]), zero[o, i // size]
            if isinstance(grid, IntegerGrid):
                codes[o, i] = np.clip(np.round(free[i] / s) + z, grid.minimum, grid.maximum)
                fixed[i] = (codes[o, i] - z) * s
            else:
                points = np.asarray(grid.levels) * s
                codes[o, i] = np.argmin(np.abs(points - free[i]))
                fixed[i] = points[int(codes[o, i])]
            rest = slice(i + 1, None)
            gone = (row - fixed)[: i + 1]
            # min over d of (gone, d) H (gone, d)^T, the free part d = row - free.
            free[rest] = row[rest] + np.linalg.solve(h[rest, rest], h[rest, : i + 1] @ gone)
    return codes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("grid", "group"),
    [(INT4, -1), (UINT3, -1), (INT4, 4), (UINT3, 6), (QUANTILES, -1), (NO_ZERO, 4)],
    ids=str,
)
def test_it_is_what_re_solving_the_free_inputs_gives(seed: int, grid: Grid, group: int) -> None:
    weight, h, scale, zero = problem(seed, grid=grid, group=group)
    damped = h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h))
    expected = compensate_slowly(weight, damped, scale, zero, grid)
    for block in (1, 5, 128):
        codes, info = round_with_compensation(weight, h, scale, zero, grid, block=block)
        np.testing.assert_array_equal(codes, expected)
        assert info.damping == 0.01


@pytest.mark.parametrize("order", ["given", "descending"])
@pytest.mark.parametrize(
    ("grid", "pair_limit"), [(INT4, None), (INT4, 8), (QUANTILES, None), (NO_ZERO, None)], ids=str
)
@pytest.mark.parametrize(("precision", "near"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("inputs", [16, 45])
def test_the_sum_of_its_steps_is_the_error_at_the_output(
    order: str, grid: Grid, pair_limit: int | None, precision: str, near: float, inputs: int
) -> None:
    weight, h, scale, zero = problem(3, inputs=inputs, grid=grid)
    codes, info = round_with_compensation(
        weight, h, scale, zero, grid, order=order, block=21, pair_limit=pair_limit,
        precision=precision,
    )  # fmt: skip
    damped = h + info.damping * np.mean(np.diag(h)) * np.eye(len(h))
    assert info.error == pytest.approx(
        output_error(weight, values(codes, scale, zero, grid), damped), rel=near
    )
    if order == "given" and pair_limit is None:
        # Frantar et al. 2022: the same sum by the Cholesky factor of the inverse.
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        off = (weight - values(codes, scale, zero, grid)) @ np.linalg.inv(upper)
        assert info.error == pytest.approx(np.sum(off**2), rel=near)


@pytest.mark.parametrize("order", ["given", "descending"])
@pytest.mark.parametrize("group", [-1, 8])
@pytest.mark.parametrize("grid", [INT4, QUANTILES], ids=str)
def test_it_beats_rounding_to_nearest(order: str, group: int, grid: Grid) -> None:
    ratios = []
    for seed in range(12):
        weight, h, scale, zero = problem(seed, outputs=16, inputs=32, grid=grid, group=group)
        nearest = round_to_nearest(weight, scale, zero, grid)
        codes, _ = round_with_compensation(weight, h, scale, zero, grid, order=order)
        better, worse = (
            output_error(weight, values(q, scale, zero, grid), h) for q in (codes, nearest)
        )
        ratios.append(better / worse)
    assert max(ratios) < 0.9
    assert np.mean(ratios) < 0.6


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight, _, scale, zero = problem(0)
    codes, _ = round_with_compensation(weight, np.eye(12), scale, zero, INT4)
    np.testing.assert_array_equal(codes, round_to_nearest(weight, scale, zero, INT4))


def test_singular_moments_raise_the_damping_and_say_so() -> None:
    weight, h, scale, zero = problem(1)
    line = np.ones((12, 12))
    codes, info = round_with_compensation(weight, line, scale, zero, INT4, damping=0.0)
    assert info.damping > 0
    nearest = round_to_nearest(weight, scale, zero, INT4)
    better, worse = (output_error(weight, values(q, scale, zero), line) for q in (codes, nearest))
    assert better < 0.2 * worse
    # An indefinite matrix, as float32 sums can leave one.
    broken = h - 1.5 * np.linalg.eigvalsh(h)[0] * np.eye(12)
    _, info = round_with_compensation(weight, broken, scale, zero, INT4, damping=0.0)
    assert info.damping > 0


@pytest.mark.parametrize("order", ["given", "descending"])
def test_dead_inputs_are_rounded_to_nearest_and_counted(order: str) -> None:
    weight, h, scale, zero = problem(2)
    h[[3, 7]] = 0
    h[:, [3, 7]] = 0
    codes, info = round_with_compensation(weight, h, scale, zero, INT4, order=order)
    nearest = round_to_nearest(weight, scale, zero, INT4)
    assert info.dead_inputs == 2
    np.testing.assert_array_equal(codes[:, [3, 7]], nearest[:, [3, 7]])
    codes, info = round_with_compensation(weight, 0 * h, scale, zero, INT4, order=order)
    assert info.dead_inputs == 12
    np.testing.assert_array_equal(codes, nearest)


def test_moments_that_do_not_fit_are_refused() -> None:
    weight, h, scale, zero = problem(0)
    with pytest.raises(ValueError, match="do not fit 12 inputs"):
        round_with_compensation(weight, h[:5, :5], scale, zero, INT4)
    h[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        round_with_compensation(weight, h, scale, zero, INT4)
    with pytest.raises(ValueError, match="group_size"):
        round_to_nearest(weight, np.ones((5, 5)), np.zeros((5, 5)), INT4)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_fewer_samples_than_inputs_are_noted(precision: str) -> None:
    weight, h, scale, zero = problem(4, inputs=24)
    _, sound = round_with_compensation(weight, h, scale, zero, INT4, precision=precision)
    rows = np.random.default_rng(4).standard_normal((6, 24))
    few = rows.T @ rows / 6
    codes, info = round_with_compensation(weight, few, scale, zero, INT4, precision=precision)
    assert info.damping == 0.01
    assert 0.01 <= info.least_pivot < 0.02
    assert sound.least_pivot > 0.02
    nearest = round_to_nearest(weight, scale, zero, INT4)
    better, worse = (output_error(weight, values(q, scale, zero), few) for q in (codes, nearest))
    assert better < 0.3 * worse


def test_nothing_but_zeros_is_rounded_to_nearest_at_no_error() -> None:
    weight, h, scale, zero = problem(2)
    codes, info = round_with_compensation(weight, 0 * h, scale, zero, QUANTILES)
    np.testing.assert_array_equal(codes, round_to_nearest(weight, scale, zero, QUANTILES))
    assert (info.error, info.dead_inputs, info.damping) == (0.0, 12, 0.01)
    moved = coordinate_descent(weight, codes, 0 * h, scale, zero, QUANTILES)
    np.testing.assert_array_equal(moved, codes)


def test_the_error_leaves_dead_inputs_out() -> None:
    weight, h, scale, zero = problem(2)
    h[[3, 7]] = 0
    h[:, [3, 7]] = 0
    codes, info = round_with_compensation(weight, h, scale, zero, INT4)
    alive = np.diag(h) > 0
    damped = h + 0.01 * np.mean(np.diag(h)[alive]) * np.diag(alive)
    found = output_error(weight, values(codes, scale, zero), damped)
    assert info.error == pytest.approx(found)


@pytest.mark.parametrize("strength", [1e-60, 1e-30, 1e30])
def test_the_size_of_the_moments_does_not_matter(strength: float) -> None:
    weight, h, scale, zero = problem(6)
    for precision in ("float32", "float64"):
        codes, info = round_with_compensation(weight, h, scale, zero, INT4, precision=precision)
        same, scaled = round_with_compensation(
            weight, h * strength, scale, zero, INT4, precision=precision
        )
        np.testing.assert_array_equal(same, codes)
        assert scaled.error == pytest.approx(info.error * strength)


def test_what_float32_cannot_factor_is_factored_in_float64() -> None:
    weight, h, scale, zero = problem(1)
    nearly = np.ones((12, 12)) + 1e-9 * h / np.mean(np.diag(h))
    codes, info = round_with_compensation(
        weight, nearly, scale, zero, INT4, damping=0.0, precision="float32"
    )
    expected, wide = round_with_compensation(weight, nearly, scale, zero, INT4, damping=0.0)
    assert info.damping == wide.damping == 0
    errors = [output_error(weight, values(q, scale, zero), nearly) for q in (codes, expected)]
    assert errors[0] < 1.5 * errors[1]


def test_large_layers_are_worked_on_in_float32() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 1030)).astype(np.float32)
    rows = rng.standard_normal((64, 1030)) + rng.standard_normal((64, 1))
    h = (rows.T @ rows / 64).astype(np.float32)
    scale, zero = np.float32([[0.4], [0.4]]), np.zeros((2, 1), np.int32)
    errors = {
        precision: round_with_compensation(
            weight, h, scale, zero, INT4, precision=precision
        )[1].error
        for precision in (None, "float32", "float64")
    }  # fmt: skip
    assert errors[None] == errors["float32"] != errors["float64"]
    assert errors["float32"] == pytest.approx(errors["float64"], rel=0.05)
    wide = weight.astype(np.float64)
    assert round_with_compensation(wide, h, scale, zero, INT4)[1].error == errors["float64"]


@pytest.mark.parametrize(("precision", "most"), [("float32", 3.3), ("float64", 5.5)])
def test_memory_is_that_of_a_few_layers(precision: str, most: float) -> None:
    size = 1024
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((size, size)).astype(np.float32)
    rows = rng.standard_normal((256, size)).astype(np.float32)
    h = rows.T @ rows / np.float32(256)
    parts = weight.reshape(size, 8, 128)
    scale, zero = scale_and_zero_point(parts.min(axis=2), parts.max(axis=2), INT4)
    tracemalloc.start()
    try:
        round_with_compensation(weight, h, scale, zero, INT4, precision=precision)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Besides W and H, which are two layers' bytes more.
    assert peak < most * weight.nbytes


def test_a_pair_limit_needs_integers() -> None:
    weight, h, scale, zero = problem(0)
    with pytest.raises(ValueError, match=r"integer grids, not of .*quantiles"):
        round_with_compensation(weight, h, scale, zero, QUANTILES, pair_limit=8)


def keeps(codes: np.ndarray, limit: int) -> bool:
    even = 2 * (codes.shape[1] // 2)
    wide = codes.astype(int)
    one, two = wide[:, :even:2], wide[:, 1:even:2]
    return bool(np.all((one * two <= 0) | (np.abs(one + two) <= limit)))


def crowded(seed: int, inputs: int) -> tuple[np.ndarray, ...]:
    """Many pairs of large codes with the same sign."""
    weight, h, _, zero = problem(seed, outputs=8, inputs=inputs)
    weight = np.clip(np.repeat(weight[:, ::2], 2, axis=1)[:, :inputs] * 60, -127, 127)
    return weight, h, np.ones((8, 1), np.float32), 0 * zero


@pytest.mark.parametrize("order", ["given", "descending"])
@pytest.mark.parametrize("inputs", [16, 17])
@pytest.mark.parametrize("limit", [128, 100])
def test_pairs_keep_their_limit_and_the_rest_makes_up_for_it(
    order: str, inputs: int, limit: int
) -> None:
    weight, h, scale, zero = crowded(4, inputs)
    free, _ = round_with_compensation(weight, h, scale, zero, INT8, order=order)
    assert not keeps(free, limit)
    nearest = limit_pairs(
        round_to_nearest(weight, scale, zero, INT8), weight, INT8, pair_limit=limit
    )
    codes, info = round_with_compensation(
        weight, h, scale, zero, INT8, order=order, pair_limit=limit, block=7
    )
    improved = coordinate_descent(weight, codes, h, scale, zero, INT8, sweeps=50, pair_limit=limit)
    assert keeps(nearest, limit) and keeps(codes, limit) and keeps(improved, limit)
    assert info.limited > 0
    errors = [output_error(weight, values(q, scale, zero), h) for q in (improved, codes, nearest)]
    assert errors[0] < errors[1] < errors[2]


@given(st.floats(-9, 9), st.floats(-9, 9), st.integers(1, 14), st.sampled_from([(-7, 7), (-8, 5)]))
def test_a_limited_pair_is_the_nearest_that_fits(
    one: float, two: float, limit: int, ends: tuple[int, int]
) -> None:
    grid = IntegerGrid(4, signed=True, symmetric=True, low=ends[0], high=ends[1])
    target = np.array([[one, two]])
    codes = np.clip(np.round(target), *ends)
    found = limit_pairs(codes, target, grid, pair_limit=limit)
    assert keeps(found, limit)
    allowed = [
        pair
        for pair in product(range(ends[0], ends[1] + 1), repeat=2)
        if max(map(abs, pair)) <= limit and keeps(np.array([pair]), limit)
    ]
    best = min(np.sum((np.array(pair) - target) ** 2) for pair in allowed)
    assert np.sum((found - target) ** 2) == pytest.approx(best)


@pytest.mark.parametrize(("grid", "pair_limit"), [(INT4, None), (INT4, 8), (QUANTILES, None)])
@pytest.mark.parametrize("group", [-1, 4])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_coordinate_descent_ends_where_no_single_code_gains(
    grid: Grid, pair_limit: int | None, group: int, precision: str
) -> None:
    weight, h, scale, zero = problem(7, grid=grid, group=group)
    nearest = round_to_nearest(weight, scale, zero, grid)
    if pair_limit:
        wide = np.repeat(scale, 12 // scale.shape[1], axis=1)
        nearest = limit_pairs(nearest, weight / wide, INT4, pair_limit=pair_limit)
    codes = coordinate_descent(
        weight, nearest, h, scale, zero, grid, sweeps=100, pair_limit=pair_limit,
        precision=precision,
    )  # fmt: skip
    least = output_error(weight, values(codes, scale, zero, grid), h)
    assert least < output_error(weight, values(nearest, scale, zero, grid), h)
    slack = 1e-9 if precision == "float64" else 1e-4
    for o, i, code in product(range(5), range(12), range(grid.minimum, grid.maximum + 1)):
        other = codes.copy()
        other[o, i] = code
        if pair_limit and not (keeps(other, pair_limit) and abs(code) <= pair_limit):
            continue
        assert output_error(weight, values(other, scale, zero, grid), h) >= least * (1 - slack)


def descend_slowly(
    weight: np.ndarray, codes: np.ndarray, h: np.ndarray, scale: np.ndarray, grid: LevelGrid
) -> np.ndarray:
    """One sweep: each code in turn becomes the best of all, by the error written out."""
    codes = codes.copy()
    points = np.asarray(grid.levels)
    for o, row in enumerate(weight):
        for i in range(len(row)):
            errors = []
            for code in range(len(points)):
                codes[o, i], now = code, codes[o, i]
                off = row - points[codes[o]] * float(scale[o, 0])
                codes[o, i] = now
                errors.append(off @ h @ off)
            codes[o, i] = int(np.argmin(errors))
    return codes


def test_sweeps_are_those_of_trying_every_code() -> None:
    # More inputs than a block of the descent holds, so that its products are in play.
    weight, h, scale, zero = problem(8, outputs=2, inputs=150, grid=QUANTILES)
    codes = round_to_nearest(weight, scale, zero, QUANTILES)
    expected = codes
    for sweeps in (1, 2):
        expected = descend_slowly(weight, expected, h, scale, QUANTILES)
        found = coordinate_descent(weight, codes, h, scale, zero, QUANTILES, sweeps=sweeps)
        np.testing.assert_array_equal(found, expected)


def test_one_sweep_never_makes_it_worse() -> None:
    for seed in range(10):
        weight, h, scale, zero = problem(seed, grid=UINT3)
        codes, _ = round_with_compensation(weight, h, scale, zero, UINT3)
        moved = coordinate_descent(weight, codes, h, scale, zero, UINT3, sweeps=1)
        before, after = (output_error(weight, values(q, scale, zero), h) for q in (codes, moved))
        assert after <= before * (1 + 1e-12)
        assert moved.dtype == codes.dtype == np.uint8


def test_inputs_are_not_written_to() -> None:
    weight, h, scale, zero = crowded(4, 16)
    copies = [array.copy() for array in (weight, h, scale, zero)]
    codes, _ = round_with_compensation(weight, h, scale, zero, INT8, pair_limit=128)
    kept = codes.copy()
    coordinate_descent(weight, codes, h, scale, zero, INT8, pair_limit=128)
    limit_pairs(codes, weight, INT8, pair_limit=90)
    np.testing.assert_array_equal(codes, kept)
    for array, copy in zip((weight, h, scale, zero), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_pytorch_gives_the_same_codes() -> None:
    torch = pytest.importorskip("torch")
    for order, pair_limit, group in product(("given", "descending"), (None, 8), (-1, 4)):
        arrays = problem(5, group=group)
        tensors = [torch.asarray(array) for array in arrays]
        codes, info = round_with_compensation(*arrays, INT4, order=order, pair_limit=pair_limit)
        same, info_t = round_with_compensation(*tensors, INT4, order=order, pair_limit=pair_limit)
        np.testing.assert_array_equal(same.numpy(), codes)
        assert info_t.error == pytest.approx(info.error)
        weight, h, scale, zero = arrays
        better = coordinate_descent(weight, codes, h, scale, zero, INT4, pair_limit=pair_limit)
        w_t, h_t, s_t, z_t = tensors
        same = coordinate_descent(w_t, same, h_t, s_t, z_t, INT4, pair_limit=pair_limit)
        np.testing.assert_array_equal(same.numpy(), better)
    arrays = problem(5, grid=QUANTILES, group=4)
    tensors = [torch.asarray(array) for array in arrays]
    for precision in ("float32", "float64"):
        found, same = (
            round_with_compensation(*given, QUANTILES, precision=precision)[0]
            for given in (arrays, tensors)
        )
        np.testing.assert_array_equal(same.numpy(), found)
    _, info = round_with_compensation(
        torch.ones((2, 4)), torch.ones((4, 4)), torch.ones(2), torch.zeros(2), INT4, damping=0.0
    )
    assert info.damping > 0


@pytest.mark.parametrize("order", ["given", "descending"])
def test_the_first_of_a_pair_leaves_the_second_its_share(order: str) -> None:
    # Without correlation nothing can be made up for: the best is to share the excess evenly.
    weight, _, scale, zero = crowded(5, 16)
    codes, _ = round_with_compensation(
        weight, np.eye(16), scale, zero, INT8, order=order, pair_limit=128
    )
    nearest = round_to_nearest(weight, scale, zero, INT8)
    shared = limit_pairs(nearest, weight, INT8, pair_limit=128)
    found, best = (np.sum((weight - values(q, scale, zero)) ** 2) for q in (codes, shared))
    assert found == pytest.approx(best, rel=0.01)
