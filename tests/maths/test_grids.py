from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packlight.maths.grids import (
    Grid,
    IntegerGrid,
    LevelGrid,
    dequantize,
    expand_blocks,
    join_blocks,
    quantize,
    scale_and_zero_point,
    split_blocks,
)

INT8 = IntegerGrid(8, signed=True, symmetric=True)
UINT8 = IntegerGrid(8, signed=False, symmetric=False)
GRIDS = [
    INT8,
    UINT8,
    IntegerGrid(8, signed=True, symmetric=False),
    IntegerGrid(8, signed=False, symmetric=True),
    IntegerGrid(8, signed=True, symmetric=True, low=-63, high=63),
    IntegerGrid(4, signed=True, symmetric=True),
    IntegerGrid(4, signed=False, symmetric=False),
    IntegerGrid(16, signed=False, symmetric=False),
    IntegerGrid(16, signed=True, symmetric=True),
]
FULL = [
    IntegerGrid(8, signed=True, symmetric=False),
    UINT8,
    IntegerGrid(16, signed=True, symmetric=False),
    IntegerGrid(16, signed=False, symmetric=False),
]


def runtime(text: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = onnx.parser.parse_model(text)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def round_trip(code: str, scale: str, shape: str, attributes: str = "") -> str:
    return f"""
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[{shape}] x, float[{scale}] s, {code}[{scale}] z)
        => ({code}[{shape}] codes, float[{shape}] values)
    {{
        codes = QuantizeLinear {attributes} (x, s, z)
        values = DequantizeLinear {attributes} (codes, s, z)
    }}"""


def agree_with_runtime(
    x: np.ndarray,
    grid: IntegerGrid,
    block_shape: tuple[int, ...],
    attributes: str,
    scale_shape: str,
) -> None:
    blocks = split_blocks(x, block_shape)
    scale, zero = scale_and_zero_point(blocks.min(axis=1) * 0.7, blocks.max(axis=1) * 0.7, grid)
    codes = quantize(x, scale, zero, grid, block_shape=block_shape)
    values = dequantize(codes, scale, zero, block_shape=block_shape)
    given_shape = [int(n) for n in scale_shape.split(",")] if scale_shape else []
    text = round_trip(grid.dtype_name, scale_shape, ",".join(map(str, x.shape)), attributes)
    feeds = {
        "x": x,
        "s": scale.reshape(given_shape),
        "z": zero.astype(grid.dtype_name).reshape(given_shape),
    }
    runtime_codes, runtime_values = runtime(text, feeds)
    assert codes.dtype == runtime_codes.dtype
    assert values.dtype == np.float32
    np.testing.assert_array_equal(codes, runtime_codes)
    np.testing.assert_array_equal(values, runtime_values)
    assert len(np.unique(codes)) > 100


@pytest.mark.parametrize("grid", FULL, ids=lambda grid: grid.dtype_name)
def test_codes_and_values_are_those_of_onnxruntime(grid: IntegerGrid) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 4000)) * np.logspace(-3, 3, 6)[:, None] + 0.3).astype(np.float32)
    agree_with_runtime(x[3], grid, (-1,), "", "")
    agree_with_runtime(x, grid, (1, -1), "<axis = 0>", "6")
    agree_with_runtime(x, grid, (1, 16), "<axis = 1, block_size = 16>", "6,250")


@pytest.mark.parametrize("grid", FULL, ids=lambda grid: grid.dtype_name)
def test_halves_and_ends_are_rounded_as_onnxruntime_does(grid: IntegerGrid) -> None:
    halves = np.arange(-300, 300, dtype=np.float32) + 0.5
    ends = np.array([1e30, -1e30, np.inf, -np.inf, 0.0, -0.0, 1e-40], np.float32)
    x = np.concatenate([halves, ends])
    scale, zero = np.array(1, np.float32), np.array(3, grid.dtype_name)
    codes = quantize(x, scale, zero, grid, block_shape=(-1,))
    text = round_trip(grid.dtype_name, "", str(x.size))
    expected = runtime(text, {"x": x, "s": scale, "z": zero})[0]
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(data=st.data())
def test_inside_the_range_no_value_is_off_by_more_than_half_a_step(
    grid: IntegerGrid, data: Any
) -> None:
    finite = st.floats(-1e6, 1e6, width=32)
    x = data.draw(hnp.arrays(np.float32, st.integers(1, 30), elements=finite))
    scale, zero = scale_and_zero_point(x.min(), x.max(), grid)
    codes = quantize(x, scale, zero, grid, block_shape=(-1,))
    values = dequantize(codes, scale, zero, block_shape=(-1,))
    assert scale > 0
    assert scale.dtype == np.float32
    assert grid.minimum <= codes.min() <= codes.max() <= grid.maximum
    # The slack is float32's own rounding of (code - zero_point) * scale.
    slack = np.abs(x.astype(np.float64)) * 1e-6 + 1e-37
    error = np.abs(values.astype(np.float64) - x.astype(np.float64))
    assert np.all(error <= scale / 2 * (1 + 1e-4) + slack)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(low=st.floats(-1e30, 1e30), high=st.floats(-1e30, 1e30))
def test_zero_is_exact_whatever_the_range(grid: IntegerGrid, low: float, high: float) -> None:
    scale, zero = scale_and_zero_point(min(low, high), max(low, high), grid)
    nothing = np.zeros(1, np.float32)
    codes = quantize(nothing, scale, zero, grid, block_shape=(-1,))
    assert np.isfinite(scale) and scale > 0
    assert dequantize(codes, scale, zero, block_shape=(-1,))[0] == 0


def test_limits_of_the_usual_grids() -> None:
    limits = {grid: (grid.minimum, grid.maximum) for grid in GRIDS}
    assert list(limits.values()) == [
        (-127, 127),
        (0, 255),
        (-128, 127),
        (1, 255),
        (-63, 63),
        (-7, 7),
        (0, 15),
        (0, 65535),
        (-32767, 32767),
    ]


def test_scale_and_zero_point_of_the_onnx_specification_example() -> None:
    # DynamicQuantizeLinear in the ONNX specification's own test: x from -3 to 2.5 (uint8).
    scale, zero = scale_and_zero_point(np.float32(-3), np.float32(2.5), UINT8)
    assert scale == np.float32(0.021568628)
    assert zero == 139
    scale, zero = scale_and_zero_point(1.0, 4.0, UINT8)
    assert (scale, zero) == (np.float32(4 / 255), 0)
    scale, zero = scale_and_zero_point(-2.0, 1.0, INT8)
    assert (scale, zero) == (np.float32(2 / 127), 0)
    assert scale_and_zero_point(0.0, 0.0, UINT8)[0] == 1


@pytest.mark.parametrize("ends", [(1.0, -1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_a_broken_range_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite ends"):
        scale_and_zero_point(*ends, UINT8)


@pytest.mark.parametrize(
    "limits", [{"low": -129}, {"high": 128}, {"low": 5, "high": 4}, {"low": 0, "high": 9}]
)
def test_limits_that_do_not_fit_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="codes"):
        IntegerGrid(8, signed=True, symmetric=True, **limits)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4)),
    block_shape=st.tuples(*[st.sampled_from([-1, 1, 2, 3])] * 3),
)
def test_splitting_and_joining_blocks_is_a_round_trip(
    shape: tuple[int, int, int], block_shape: tuple[int, int, int]
) -> None:
    array = np.arange(1.0, np.prod(shape) + 1).reshape(shape)
    blocks = split_blocks(array, block_shape)
    np.testing.assert_array_equal(join_blocks(blocks, shape, block_shape), array)
    # Every element finds its own block's value.
    number = np.broadcast_to(np.arange(len(blocks))[:, None], blocks.shape)
    expected = join_blocks(number, shape, block_shape)
    found = np.broadcast_to(expand_blocks(np.arange(len(blocks)), shape, block_shape), shape)
    np.testing.assert_array_equal(found, expected)


def test_a_scale_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each"):
        quantize(np.ones((4, 6)), np.ones(3), np.zeros(3), INT8, block_shape=(1, -1))


def test_pytorch_gives_the_same_numbers() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 37)).astype(np.float32)
    for grid in GRIDS[:7]:
        for block_shape in [(-1, -1), (1, -1), (1, 8), (2, 10)]:
            blocks = split_blocks(x, block_shape)
            same = split_blocks(torch.asarray(x), block_shape)
            np.testing.assert_array_equal(same.numpy(), blocks)
            scale, zero = scale_and_zero_point(blocks.min(axis=1), blocks.max(axis=1), grid)
            scale_t, zero_t = scale_and_zero_point(same.amin(dim=1), same.amax(dim=1), grid)
            np.testing.assert_array_equal(scale_t.numpy(), scale)
            np.testing.assert_array_equal(zero_t.numpy(), zero)
            codes = quantize(x, scale, zero, grid, block_shape=block_shape)
            codes_t = quantize(torch.asarray(x), scale_t, zero_t, grid, block_shape=block_shape)
            np.testing.assert_array_equal(codes_t.numpy(), codes)
            values = dequantize(codes, scale, zero, block_shape=block_shape)
            values_t = dequantize(codes_t, scale_t, zero_t, block_shape=block_shape)
            np.testing.assert_array_equal(values_t.numpy(), values)


SQUARES = LevelGrid("squares", (-9.0, -4.0, -1.0, 0.0, 1.0, 4.0, 9.0))
UNEVEN = LevelGrid("uneven", (-1.5, -0.25, 0.5, 3.0))
LEVEL_GRIDS = [SQUARES, UNEVEN, LevelGrid("binary", (-1.0, 1.0))]


def nearest_slowly(grid: Grid, value: float) -> int:
    """The nearest code; of two the one of lower magnitude, then the positive one."""
    levels = grid.steps_of(np.arange(grid.minimum, grid.maximum + 1))
    order = [(abs(level - value), abs(level), -level) for level in levels]
    return grid.minimum + order.index(min(order))


def test_codes_of_levels_written_out() -> None:
    steps = np.array([-np.inf, -7, -6.5, -6.4, -0.5, -0.2, 0.5, 0.51, 2.5, 6.5, 6.6, np.inf])
    expected = [0, 0, 1, 1, 3, 3, 3, 4, 4, 5, 6, 6]
    np.testing.assert_array_equal(SQUARES.codes_of(steps), expected)
    assert SQUARES.codes_of(steps.astype(np.float32)).dtype == np.float64
    codes = np.array([[0, 3], [5, 6]], np.uint8)
    np.testing.assert_array_equal(SQUARES.steps_of(codes), [[-9, 0], [4, 9]])
    np.testing.assert_array_equal(SQUARES.steps_of(codes, 0.5), [[-9.5, -0.5], [3.5, 8.5]])
    binary = LEVEL_GRIDS[2]
    np.testing.assert_array_equal(binary.codes_of(np.array([-0.1, -0.0, 0.0, 0.1])), [0, 1, 1, 1])
    assert (SQUARES.minimum, SQUARES.maximum, SQUARES.dtype_name) == (0, 6, "uint8")


# No nearer to a middle than the slow reference's differences can tell.
_STEPS = st.floats(-20, 20).map(lambda step: round(step, 6))


@pytest.mark.parametrize("grid", LEVEL_GRIDS, ids=lambda grid: grid.name)
@given(
    steps=st.lists(_STEPS | st.integers(-40, 40).map(lambda n: n / 8), min_size=1),
    zero=st.integers(-8, 8).map(lambda n: n / 4),
)
def test_a_level_is_the_nearest_and_comes_back(
    grid: LevelGrid, steps: list[float], zero: float
) -> None:
    codes = grid.codes_of(np.array(steps), zero)
    expected = [nearest_slowly(grid, step + zero) for step in steps]
    np.testing.assert_array_equal(codes, expected)
    every = np.arange(grid.maximum + 1)
    np.testing.assert_array_equal(grid.codes_of(grid.steps_of(every, zero), zero), every)


def test_every_level_of_a_full_grid_comes_back() -> None:
    rng = np.random.default_rng(2)
    grid = LevelGrid("many", tuple(np.sort(rng.standard_normal(256)).tolist()))
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(grid.codes_of(grid.steps_of(every)), every)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((1.0,), "1 levels, not 2 to 256"),
        (tuple(float(n) for n in range(257)), "257 levels"),
        ((0.0, 1.0, 1.0), "do not ascend: 1.0 before 1.0"),
        ((1.0, 0.0), "do not ascend"),
        ((0.0, np.inf), "not finite"),
        ((0.0, np.nan), "not finite"),
    ],
)
def test_levels_that_are_no_grid_are_refused(levels: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LevelGrid("odd", levels)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_integer_codes_are_those_of_quantize_and_dequantize(grid: IntegerGrid) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(5000) * 3
    scale, zero = scale_and_zero_point(-4.0, 5.0, grid)
    codes = grid.codes_of(x / scale, zero)
    assert codes.dtype == np.float64
    np.testing.assert_array_equal(codes, quantize(x, scale, zero, grid, block_shape=(-1,)))
    values = grid.steps_of(codes.astype(grid.dtype_name), zero) * float(scale)
    wide = dequantize(codes.astype(np.int64), np.float64(scale), zero, block_shape=(-1,))
    np.testing.assert_array_equal(values, wide)


def test_pytorch_gives_the_same_codes_of_a_grid() -> None:
    torch = pytest.importorskip("torch")
    steps = np.random.default_rng(4).standard_normal((3, 50)).astype(np.float32) * 5
    zero = np.array([[0.0], [1.0], [-2.0]])
    for grid in (*GRIDS, *LEVEL_GRIDS):
        codes = grid.codes_of(steps, zero)
        same = grid.codes_of(torch.asarray(steps), torch.asarray(zero))
        np.testing.assert_array_equal(same.numpy(), codes)
        back = grid.steps_of(same, torch.asarray(zero))
        np.testing.assert_array_equal(back.numpy(), grid.steps_of(codes, zero))
