"""Super-blocks under second moments, held to slow references on small correlated problems."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths import superblock_search
from packlight.maths.superblock_descent import lower_mixing
from packlight.maths.superblock_layer import solve_super_blocks
from packlight.maths.superblock_moves import Scales, try_scales
from packlight.maths.superblock_rounding import round_tries
from packlight.maths.superblock_search import round_to_levels, search_super_blocks
from packlight.maths.superblocks import SuperBlockGrid, values_of

# Small cousins of the real grids: 16 inputs a super-block.
OFFSETS = SuperBlockGrid(4, 4, tuple(range(4)), (0, 15), (0, 15))
SIGNED = SuperBlockGrid(4, 4, tuple(range(-4, 4)), (-32, 31))
TABLE = SuperBlockGrid(8, 2, (-127, -83, -49, -22, 1, 25, 53, 89), (-32, 31))
LONE = SuperBlockGrid(8, 1, tuple(range(-2, 2)))
LONE_OFFSET = SuperBlockGrid(8, 1, tuple(range(4)), offset_limits=(1, 1))
GRIDS = [OFFSETS, SIGNED, TABLE, LONE, LONE_OFFSET]


def problem(outputs: int, inputs: int, seed: int = 0, rows: int = 400) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    x = rng.standard_normal((rows, inputs)) @ rng.standard_normal((inputs, inputs))
    return weight, x.T @ x / rows


def error_of(weight: Any, blocks: Any, grid: SuperBlockGrid, second: Any) -> float:
    off = weight.astype(np.float64) - values_of(blocks, grid)
    return float((off @ second * off).sum())


def test_values_are_written_out() -> None:
    weight, second = problem(3, 32)
    blocks, _ = solve_super_blocks(weight, second, OFFSETS)
    values = values_of(blocks, OFFSETS)
    for o, i in product(range(3), range(32)):
        d, dmin = (float(part[o, i // 16]) for part in (blocks.scales, blocks.offsets))
        s, m = (int(part[o, i // 4]) for part in (blocks.sub_scales, blocks.sub_offsets))
        assert values[o, i] == pytest.approx(d * s * int(blocks.codes[o, i]) - dmin * m, rel=1e-6)


@pytest.mark.parametrize("grid", [OFFSETS, SIGNED, TABLE, LONE, LONE_OFFSET])
def test_compensation_solves_for_the_free_inputs_by_least_squares(grid: SuperBlockGrid) -> None:
    """The oracle: after each input, the best real numbers for those that are still free."""
    rng = np.random.default_rng(3)
    size = 10
    _, second = problem(1, size, seed=5)
    target = rng.standard_normal((size, 4)).astype(np.float32)
    step = np.float32(0.4 if grid is not TABLE else 0.01)
    now = Scales(*(np.full(4, n, np.float32) for n in (1, step)))
    if grid.offset_limits is not None:
        now = Scales(*(np.full(4, n, np.float32) for n in (1, step, 1, 0.7)))
    tried = Scales(*(None if p is None else p[None] for p in vars(now).values()))
    mixing = lower_mixing(second)
    levels, errors = round_tries(target, mixing.astype(np.float32), tried, grid)
    for k in range(4):
        fixed: list[float] = []
        for i in range(size):
            # minimise over the free part f: (e_fixed, f) H (e_fixed, f)^T
            e = target[:i, k].astype(np.float64) - fixed
            free = np.linalg.solve(second[i:, i:], -second[i:, :i] @ e) if i else np.zeros(size)
            aim = target[i, k] - free[0]
            shift = float(now.shift[k]) if now.shift is not None else 0.0
            choices = np.array(grid.levels) * float(step) - shift
            nearest = int(np.argmin(np.abs(choices - aim)))
            assert levels[i, 0, k] == grid.levels[nearest]
            fixed.append(choices[nearest])
        off = target[:, k] - np.array(fixed)
        assert errors[0, k] == pytest.approx(off @ second @ off, rel=1e-2)


def test_near_the_best_of_all_there_is() -> None:
    """The oracle: every code with the scale that fits it best, for sub-blocks of 8 inputs."""
    codes = np.array(list(product(LONE.levels, repeat=8)), np.float64)
    ratios = []
    for seed in range(8):
        weight, second = problem(6, 8, seed, rows=12)
        second += 2 * np.eye(8)
        hc = codes @ second
        bend, reach = (hc * codes).sum(axis=1), hc @ weight.T.astype(np.float64)
        gain = reach**2 / np.where(bend > 0, bend, 1)[:, None]
        best = ((weight @ second * weight).sum(axis=1) - gain.max(axis=0)).sum()
        blocks, info = solve_super_blocks(weight, second, LONE, starts=4)
        assert info.error == pytest.approx(error_of(weight, blocks, LONE, second), rel=1e-3)
        ratios.append(info.error / best)
    assert min(ratios) > 0.999  # nothing is better than the best
    assert np.mean(ratios) < 1.08  # without correlations: 1.7


@given(seed=st.integers(0, 99), grid=st.sampled_from(GRIDS), supers=st.integers(1, 3))
def test_beats_the_search_without_correlations(
    seed: int, grid: SuperBlockGrid, supers: int
) -> None:
    weight, second = problem(8, grid.size * supers, seed)
    free = error_of(weight, search_super_blocks(weight, None, grid), grid, second)
    blocks, info = solve_super_blocks(weight, second, grid)
    assert info.error == pytest.approx(error_of(weight, blocks, grid, second), rel=1e-3)
    assert info.error < free
    assert blocks.codes.max() < len(grid.levels)
    for part, limits in (
        (blocks.sub_scales, grid.scale_limits),
        (blocks.sub_offsets, grid.offset_limits),
    ):
        if limits is not None:
            assert limits[0] <= part.min() and part.max() <= limits[1]
    for part in (blocks.scales, blocks.offsets):
        assert part is None or (part == part.astype(np.float16)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_descent_never_makes_it_worse(grid: SuperBlockGrid) -> None:
    weight, second = problem(16, 48, seed=1)
    errors = [solve_super_blocks(weight, second, grid, sweeps=n)[1].error for n in (0, 1, 2, 6)]
    for before, after in pairwise(errors):
        assert after <= before * (1 + 1e-4)
    assert errors[-1] < 0.97 * errors[0]
    assert solve_super_blocks(weight, second, grid, starts=3)[1].error <= errors[-1]


@pytest.mark.parametrize("grid", GRIDS)
def test_units_and_order_of_outputs_decide_nothing(grid: SuperBlockGrid) -> None:
    weight, second = problem(5, 32, seed=4)
    blocks, info = solve_super_blocks(weight, second, grid)
    larger, other = solve_super_blocks(weight * 4, second * 2.0**-20, grid)
    np.testing.assert_array_equal(blocks.codes, larger.codes)
    np.testing.assert_array_equal(blocks.scales * 4, larger.scales)
    assert other.relative_error == pytest.approx(info.relative_error)
    threaded, _ = solve_super_blocks(weight, second, grid, threads=2)
    np.testing.assert_array_equal(blocks.codes, threaded.codes)
    turned, _ = solve_super_blocks(weight[::-1].copy(), second, grid)
    same = (turned.codes[::-1] == blocks.codes).mean()
    assert same > 0.95  # sums in another order may turn a tie


def test_inputs_that_never_came_and_too_few_samples() -> None:
    weight, second = problem(8, 64, seed=6, rows=20)  # rank 20
    second[10, :] = second[:, 10] = 0
    blocks, info = solve_super_blocks(weight, second, OFFSETS, damping=0.01)
    assert info.dead_inputs == 1
    assert np.isfinite(values_of(blocks, OFFSETS)).all()
    assert info.error < error_of(
        weight, search_super_blocks(weight, None, OFFSETS), OFFSETS, second
    )
    # Whole layers that never saw anything keep their weight as near as data-free.
    blocks, info = solve_super_blocks(weight, 0 * second, OFFSETS)
    assert info.error == info.relative_error == 0 and info.dead_inputs == 64
    assert ((weight - values_of(blocks, OFFSETS)) ** 2).sum() < 0.2 * (weight**2).sum()
    # A matrix that is no second moments: what made it usable is in the result.
    _, info = solve_super_blocks(weight, second - 0.5 * np.eye(64), OFFSETS, damping=1e-4)
    assert info.damping > 1e-4


def test_second_moments_that_are_broken() -> None:
    weight, second = problem(2, 32)
    with pytest.raises(ValueError, match="do not fit 32 inputs"):
        solve_super_blocks(weight, second[:5, :5], OFFSETS)
    second[3, 4] = np.nan
    with pytest.raises(ValueError, match="look for NaN"):
        solve_super_blocks(weight, second, OFFSETS)
    with pytest.raises(ValueError, match="24 inputs are not whole super-blocks of 16"):
        solve_super_blocks(weight[:, :24], second[:24, :24], OFFSETS)


def test_levels_of_a_table_are_the_nearest() -> None:
    ratio = np.linspace(-140, 120, 4001).astype(np.float32)
    found = round_to_levels(ratio.copy(), TABLE)
    distance = np.abs(ratio[:, None] - np.array(TABLE.levels, np.float32))
    np.testing.assert_allclose(np.abs(found - ratio), distance.min(axis=1), atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_scales_that_are_tried_stay_within_limits(grid: SuperBlockGrid) -> None:
    low, high = grid.scale_limits
    sub = np.array([low, high, 1], np.float32)
    now = Scales(sub, np.ones(3, np.float32))
    if grid.offset_limits is not None:
        edge = np.array([*grid.offset_limits, 1], np.float32)
        now = Scales(sub, np.ones(3, np.float32), edge, np.ones(3, np.float32))
    tried = try_scales(now, grid, (-0.2, 0.2))
    np.testing.assert_array_equal(tried.step[0], now.step)
    assert tried.sub_scale.min() >= low and tried.sub_scale.max() <= high
    if tried.sub_offset is not None and grid.offset_limits is not None:
        assert tried.sub_offset.min() >= grid.offset_limits[0]
        assert tried.sub_offset.max() <= grid.offset_limits[1]


@pytest.mark.parametrize("grid", GRIDS)
def test_torch_computes_the_same(grid: SuperBlockGrid) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weight, second = problem(32, 32, seed=7)
    _, info = solve_super_blocks(weight, second, grid)
    blocks, other = solve_super_blocks(torch.from_numpy(weight), torch.from_numpy(second), grid)
    assert other.error == pytest.approx(info.error, rel=0.1)
    assert blocks.codes.dtype == torch.uint8
    ours = search_super_blocks(weight, np.diagonal(second), grid)
    theirs = search_super_blocks(
        torch.from_numpy(weight), torch.from_numpy(np.diagonal(second).copy()), grid
    )
    assert (ours.codes == theirs.codes.numpy()).mean() > 0.95


@pytest.mark.parametrize(
    ("grid", "codes", "sub_scales", "sub_offsets"),
    [
        (
            OFFSETS,
            [3, 1, 0, 2, 2, 0, 0, 2, 2, 0, 1, 3, 1, 0, 2, 3],
            [13, 15, 13, 12],
            [15, 11, 15, 14],
        ),
        (
            SIGNED,
            [1, 5, 7, 2, 1, 7, 7, 0, 3, 7, 4, 1, 4, 1, 5, 7],
            [-29, -20, -28, 29],
            None,
        ),
    ],
)
def test_golden(grid: SuperBlockGrid, codes: Any, sub_scales: Any, sub_offsets: Any) -> None:
    weight = np.sin(np.arange(1, 33, dtype=np.float32) * 1.7).reshape(2, 16)
    second = np.fromfunction(lambda i, j: 0.5 ** np.abs(i - j), (16, 16))
    blocks, _ = solve_super_blocks(weight, second, grid)
    assert blocks.codes[0].tolist() == codes
    assert blocks.sub_scales[0].tolist() == sub_scales
    assert sub_offsets is None or blocks.sub_offsets[0].tolist() == sub_offsets


@pytest.mark.parametrize("size", [16, 32])
def test_sums_over_rows_of_memory_are_those_of_numpy_bit_for_bit(size: int) -> None:
    draw = np.random.default_rng(0).standard_normal((20, 3, size)).astype(np.float32)
    values = draw.transpose(2, 1, 0)  # as weights come: a sub-block's are neighbours
    found = superblock_search._add_up(np, np.ascontiguousarray(values), True)
    np.testing.assert_array_equal(found, values.sum(axis=0))
