"""Rows: weights in kernel order times the rows cut out are what the runtime computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
from graph_bench import Bench
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.model import load_model
from packlight.graph.patches import kernel_order, rows_reaching

RANDOM = np.random.default_rng(3)


def conv(
    folder: Any, channels: int, space: tuple[int, ...], kernel: tuple[int, ...], **attributes: Any
) -> tuple[Any, Any, Any]:
    """The layer, an activation of two samples, and what the runtime makes of it [rows, out]."""
    weight = RANDOM.standard_normal((5, channels, *kernel)).astype(np.float32)
    x = RANDOM.standard_normal((2, channels, *space)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    free = ["n", channels, *(f"i{i}" for i in range(len(space)))]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = folder / "conv.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    (layer,) = find_layers(load_model(path).ir)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    y = onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0]
    return layer, x, np.moveaxis(y, 1, -1).reshape(-1, 5)


CASES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": (3, (6, 7), (3, 2), {}),
    "pointwise": (4, (5, 5), (1, 1), {}),
    "uneven pads": (3, (6, 7), (3, 3), {"pads": [0, 1, 2, 3]}),
    "strides": (3, (9, 8), (3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilations": (3, (9, 8), (3, 2), {"dilations": [2, 3]}),
    "all": (2, (9, 9), (2, 3), {"dilations": [3, 1], "strides": [1, 2], "pads": [2, 0, 1, 3]}),
    "same upper": (3, (8, 7), (4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": (3, (8, 7), (4, 2), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "valid": (3, (8, 7), (4, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "1-d": (4, (11,), (3,), {"pads": [2, 1], "strides": [2]}),
    "1-d same": (4, (11,), (4,), {"auto_pad": "SAME_LOWER", "strides": [2]}),
    "3-d": (2, (4, 5, 6), (2, 3, 1), {"pads": [1, 0, 0, 0, 1, 2], "strides": [1, 2, 1]}),
    "3-d same": (2, (4, 5, 6), (2, 3, 2), {"auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_order_times_rows_is_the_convolution(tmp_path: Any, name: str) -> None:
    channels, space, kernel, attributes = CASES[name]
    layer, x, expected = conv(tmp_path, channels, space, kernel, **attributes)
    rows = rows_reaching(layer, x, 10**6, np.random.default_rng(0))
    matrix = weight_matrix(layer)[:, kernel_order(layer)]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows @ matrix.T, expected, rtol=1e-4, atol=1e-4)


@given(data=st.data())
def test_any_convolution(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, dilations, strides = each(1, 3), each(1, 2), each(1, 3)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    space = [size + least for size, least in zip(each(0, 4), reach, strict=True)]
    attributes: dict[str, Any] = {"dilations": dilations, "strides": strides}
    mode = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "NOTSET":
        attributes["pads"] = each(0, 2, 2 * rank)
    else:
        attributes["auto_pad"] = mode
        if mode != "VALID":  # onnxruntime has SAME without dilations only
            attributes["dilations"] = [1] * rank
    folder = tmp_path_factory.getbasetemp()
    layer, x, expected = conv(folder, 2, tuple(space), tuple(kernel), **attributes)
    rows = rows_reaching(layer, x, 10**6, np.random.default_rng(0))
    matrix = weight_matrix(layer)[:, kernel_order(layer)]
    np.testing.assert_allclose(rows @ matrix.T, expected, rtol=1e-4, atol=1e-4)


def test_groups_of_rows_are_those_of_their_channels(bench: Bench) -> None:
    text = """g (float[n,6,7,5] x) => (y) {
        y = Conv <group = 3, strides = [2, 1], pads = [1, 0, 0, 2]> (x, w) }"""
    weight = RANDOM.standard_normal((9, 2, 3, 2)).astype(np.float32)
    model = bench.model(text, w=weight)
    (layer,) = find_layers(model.ir)
    x = RANDOM.standard_normal((4, 6, 7, 5)).astype(np.float32)
    expected = np.moveaxis(bench.run(model, {"x": x})[0], 1, -1).reshape(-1, 9)
    rows = rows_reaching(layer, x, 10**6, np.random.default_rng(0))
    assert rows.shape == (3, len(expected), 12) and rows.dtype == np.float32
    matrix = weight_matrix(layer)[:, kernel_order(layer)].reshape(3, 3, 12)
    product = np.einsum("gri,goi->rgo", rows, matrix).reshape(-1, 9)
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)
    few = rows_reaching(layer, x, 8, np.random.default_rng(0))
    assert few.shape[0] == 3 and 1 <= few.shape[1] <= 8


def test_taps_lie_outside_and_channels_inside(tmp_path: Any) -> None:
    layer, x, _ = conv(tmp_path, 3, (2, 2), (2, 2))
    rows = rows_reaching(layer, x, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(rows, x.transpose(0, 2, 3, 1).reshape(2, -1))
    order = kernel_order(layer)
    assert sorted(order) == list(range(12))
    assert list(order[:3]) == [0, 4, 8]  # tap 0 of each channel


@pytest.mark.parametrize(
    ("text", "shape", "x_shape"),
    [
        ("y = MatMul(x, w)", (6, 4), (2, 3, 6)),
        ("y = Gemm (x, w)", (6, 4), (5, 6)),
        ("y = Gemm <transB = 1, alpha = 0.5> (x, w)", (4, 6), (5, 6)),
    ],
)
def test_rows_of_a_matrix_product(
    bench: Bench, text: str, shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> None:
    axes = ",".join(["n", *map(str, x_shape[1:])])
    weight = RANDOM.standard_normal(shape).astype(np.float32)
    model = bench.model(f"g (float[{axes}] x) => (y) {{ {text} }}", w=weight)
    (layer,) = find_layers(model.ir)
    x = RANDOM.standard_normal(x_shape).astype(np.float32)
    rows = rows_reaching(layer, x, 10**6, np.random.default_rng(0))
    assert rows.shape == (math.prod(x_shape[:-1]), 6)
    expected = bench.run(model, {"x": x})[0].reshape(-1, 4)
    product = rows @ weight_matrix(layer)[:, kernel_order(layer)].T
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


def test_a_limit_draws_distinct_rows_by_the_seed(tmp_path: Any) -> None:
    layer, x, _ = conv(tmp_path, 3, (12, 12), (3, 3))
    whole = rows_reaching(layer, x, 10**6, np.random.default_rng(0))
    assert len(whole) == 200
    drawn = rows_reaching(layer, x, 50, np.random.default_rng(1))
    again = rows_reaching(layer, x, 50, np.random.default_rng(1))
    other = rows_reaching(layer, x, 50, np.random.default_rng(2))
    np.testing.assert_array_equal(drawn, again)
    assert drawn.shape != other.shape or not np.array_equal(drawn, other)
    places = [int(np.flatnonzero((whole == row).all(axis=1))[0]) for row in drawn]
    assert 30 <= len(drawn) <= 50 and len(set(places)) == len(drawn)
    assert max(places) >= 100 and min(places) < 100  # of both samples
    assert rows_reaching(layer, x[:0], 50, np.random.default_rng(1)).shape == (0, 27)
