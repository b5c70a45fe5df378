"""4-bit activations: the runtime gives what NumPy gives, and fuses nothing into something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import normal
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from packlight.graph.layers import find_layers
from packlight.graph.rewrite.packing import pack_weight, unpack
from packlight.recipe import parse_choice

TEXT = "g (float[n,24] x) => (float[n,7] y) { y = Gemm(x, w, b) }"


def rounded(x: NDArray[np.float32], scale: float, zero: int) -> NDArray[np.float32]:
    """The values of x that 4-bit codes hold."""
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 15)
    return ((codes - zero) * scale).astype(np.float32)


def constants(path: Any, ending: str) -> list[NDArray[Any]]:
    return [
        numpy_helper.to_array(one)
        for one in onnx.load(path).graph.initializer
        if one.name.endswith(ending)
    ]


@pytest.mark.parametrize("choice", ["int8-a4", "int4-a4", "int3-a4"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("opset", [17, 21])
def test_the_runtime_rounds_as_numpy_does(
    bench: Bench, choice: str, signed: bool, opset: int
) -> None:
    w, b = normal(24, 7), normal(7)
    x = normal(256, 24, size=1.0) if signed else np.abs(normal(256, 24, size=1.0))
    model = bench.model(TEXT, opset=opset, w=w, b=b)
    seen = bench.observe(model, {"x": x})
    path = bench.apply(model, choice, observations=seen)
    (scale,), (zero,) = constants(path, "_scale4"), constants(path, "_zero_point4")
    assert (int(zero) == 0) != signed
    (layer,) = find_layers(model.ir)
    word = parse_choice(f"weights-{parse_choice(choice).weights}")
    weight = unpack(pack_weight(layer, word, seen.moments[layer.name]))
    expected = rounded(x, float(scale), int(zero)) @ weight.T + b
    for optimize in (True, False):
        found = bench.run(path, {"x": x}, optimize=optimize)[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert bench.operators(path) == ["QuantizeLinear", "DequantizeLinear", "Mul", "Gemm"]
    assert 9 < snr_db(bench.run(model, {"x": x})[0], found) < 30


def test_layers_that_read_one_tensor_share_the_codes(bench: Bench) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,6,8,8] y, float[n,6,8,8] z, float[n,4,8,8] r) {
        r = Relu(x) y = Conv <pads = [1,1,1,1]> (r, w) z = Conv <pads = [1,1,1,1]> (r, v) }"""
    model = bench.model(text, opset=21, w=normal(6, 4, 3, 3), v=normal(6, 4, 3, 3))
    x = normal(16, 4, 8, 8, size=1.0)
    path = bench.apply(model, "int8-a4", {"x": x})
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 1
    np.testing.assert_array_equal(bench.run(path, {"x": x})[2], np.maximum(x, 0))
    for one, other in zip(bench.run(model, {"x": x}), bench.run(path, {"x": x}), strict=True):
        assert snr_db(one, other) > 14


@pytest.mark.parametrize("first", ["int8", "int4-a4"])
@pytest.mark.parametrize("second", ["int8", "int4-a4"])
def test_next_to_integer_layers(bench: Bench, first: str, second: str) -> None:
    """8-bit codes before, behind, or on both sides: optimized and plain runs agree."""
    text = """g (float[n,4,8,8] x) => (float[n,6,6,6] y) {
        [one] a = Conv <pads = [1,1,1,1]> (x, w) r = Relu(a) [two] b = Conv(r, v) s = Relu(b)
        [three] y = Conv <pads = [0,0,0,0]> (s, u) }"""
    model = bench.model(
        text, opset=21, w=normal(8, 4, 3, 3), v=normal(8, 8, 3, 3), u=normal(6, 8, 1, 1)
    )
    x = normal(64, 4, 8, 8, size=1.0)
    path = bench.apply(model, {"one": first, "two": second, "three": "int8"}, {"x": x})
    fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
    assert snr_db(plain, fused) > 30
    assert snr_db(bench.run(model, {"x": x})[0], fused) > (7 if "a4" in first + second else 28)
    fours = [one for one in onnx.load(path).graph.initializer if one.name.endswith("_point4")]
    assert all(one.data_type == TensorProto.UINT4 for one in fours)
    assert len(fours) == [first, second].count("int4-a4")
    conv = bench.operators(path)
    assert sum(one in ("Conv", "FusedConv") for one in conv) == len(fours)
    assert conv.count("QLinearConv") == 3 - len(fours)
