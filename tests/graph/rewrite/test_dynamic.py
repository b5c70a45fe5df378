"""Dynamic 8-bit: close to float in the runtime, with the runtime's dynamic operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from numpy.typing import NDArray

from packlight.graph.layers import find_layers
from packlight.graph.rewrite.dynamic import (
    quantize_dynamically,
    why_not_dynamic,
    why_not_vector,
)
from packlight.runtime import cpu_features

RANDOM = np.random.default_rng(21)
DYNAMIC = "DynamicQuantizeMatMul"


def normal(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


PRODUCTS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "matmul": (
        "g (float[n,5,24] x) => (float[n,5,7] y) { y = MatMul(x, w) }",
        {"w": normal(24, 7)},
        (64, 5, 24),
    ),
    "gemm": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm(x, w, b) }",
        {"w": normal(24, 7), "b": normal(7)},
        (64, 24),
    ),
    "gemm without bias": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <beta = 3.0> (x, w) }",
        {"w": normal(24, 7)},
        (64, 24),
    ),
    "gemm, all at once": (
        """g (float[n,24] x) => (float[n,7] y) {
            y = Gemm <transB = 1, alpha = -0.5, beta = 3.0> (x, w, b) }""",
        {"w": normal(7, 24), "b": normal(1, 7)},
        (64, 24),
    ),
    "gemm with one number as bias": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <beta = 2.0> (x, w, b) }",
        {"w": normal(24, 7), "b": np.array(1.5, np.float32)},
        (64, 24),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_faithful(bench: Bench, name: str) -> None:
    text, weights, shape = PRODUCTS[name]
    model, x = bench.model(text, **weights), normal(*shape, size=1.0)
    path = bench.apply(model, "int8-dynamic")
    reference = bench.run(model, {"x": x})[0]
    for optimize in (True, False):
        assert snr_db(reference, bench.run(path, {"x": x}, optimize=optimize)[0]) > 34
    assert bench.operators(path) == [DYNAMIC]
    assert onnx.load(path).graph.output == onnx.load(model.source).graph.output


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_large_equal_weights_do_not_saturate(bench: Bench, kind: str) -> None:
    text = f"g (float[n,64] x) => (float[n,8] y) {{ y = {kind}(x, w) }}"
    model = bench.model(text, w=np.ones((64, 8), np.float32))
    x = RANDOM.uniform(0.7, 1, (8, 64)).astype(np.float32)
    reference = bench.run(model, {"x": x})[0]
    good = bench.apply(model, "int8-dynamic")
    assert snr_db(reference, bench.run(good, {"x": x})[0]) > 34
    if cpu_features().vnni or not cpu_features().avx2:
        pytest.skip("with VNNI, or without AVX2, nothing saturates")
    bad = bench.apply(model, "int8-dynamic", pair_limit=False)
    assert snr_db(reference, bench.run(bad, {"x": x})[0]) < 20


LSTMS: dict[str, tuple[str, int, bool, str]] = {
    "forward": ("forward", 1, False, "y, h, c"),
    "reverse": ("reverse", 1, False, "y, h, c"),
    "bidirectional": ("bidirectional", 2, False, "y, h, c"),
    "bidirectional, with a state": ("bidirectional", 2, True, "y, h, c"),
    "forward, with a state": ("forward", 1, True, "y, h, c"),
    "its last state only": ("forward", 1, True, ", h"),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LSTMS)
def test_lstm_is_faithful(bench: Bench, name: str, bias: bool) -> None:
    direction, count, state, outputs = LSTMS[name]
    names = [one.strip() for one in outputs.split(",") if one.strip()]
    first = "float[s,n,6] x"
    if state:
        first += f", float[{count},n,10] h0, float[{count},n,10] c0"
    given = ", ".join(f"float[{'s,d,n,10' if one == 'y' else 'd,n,10'}] {one}" for one in names)
    inputs = f"x, w, r, {'b' if bias else ''}" + (", , h0, c0" if state else "")
    text = f"""g ({first}) => ({given}) {{
        {outputs} = LSTM <hidden_size = 10, direction = "{direction}"> ({inputs.rstrip(", ")}) }}"""
    weights = {"w": normal(count, 40, 6), "r": normal(count, 40, 10)}
    if bias:
        weights["b"] = normal(count, 80)
    model = bench.model(text, **weights)
    feeds = {"x": normal(12, 3, 6, size=1.0)}
    if state:
        feeds |= {"h0": normal(count, 3, 10), "c0": normal(count, 3, 10, size=1.0)}
    path = bench.apply(model, "int8-dynamic")
    assert bench.operators(path) == ["DynamicQuantizeLSTM"]
    for reference, found in zip(bench.run(model, feeds), bench.run(path, feeds), strict=True):
        assert snr_db(reference, found) > 28
    outputs_after = onnx.load(path).graph.output
    assert [one.name for one in outputs_after] == names


def test_lstm_weights_do_not_saturate(bench: Bench) -> None:
    """Equal weights and inputs near their maximum: a sum of pairs would leave 16 bits."""
    text = """g (float[s,n,64] x) => (float[s,d,n,8] y) {
        y = LSTM <hidden_size = 8> (x, w, r) }"""
    w = np.full((1, 32, 64), 0.02, np.float32)
    model = bench.model(text, w=w, r=normal(1, 32, 8))
    x = RANDOM.uniform(0.7, 1, (5, 2, 64)).astype(np.float32)
    reference = bench.run(model, {"x": x})[0]
    good = bench.run(bench.apply(model, "int8-dynamic"), {"x": x})[0]
    assert snr_db(reference, good) > 34
    if cpu_features().vnni or not cpu_features().avx2:
        pytest.skip("with VNNI, or without AVX2, nothing saturates")
    bad = bench.run(bench.apply(model, "int8-dynamic", pair_limit=False), {"x": x})[0]
    assert snr_db(reference, bad) < snr_db(reference, good) - 10


def test_shared_weights_are_stored_once(bench: Bench) -> None:
    text = """g (float[n,32] x) => (float[n,32] y) {
        a = MatMul(x, w) t = Tanh(a) b = MatMul(t, w) u = Tanh(b) y = MatMul(u, w) }"""
    model, x = bench.model(text, w=normal(32, 32)), normal(64, 32, size=1.0)
    path = bench.apply(model, "int8-dynamic")
    matrices = [i for i in onnx.load(path).graph.initializer if list(i.dims) == [32, 32]]
    assert len(matrices) == 1
    assert snr_db(bench.run(model, {"x": x})[0], bench.run(path, {"x": x})[0]) > 28


def test_layers_in_subgraphs(bench: Bench) -> None:
    text = """g (float[n,24] x, bool c) => (float[n,7] y) {
        y = If(c) <then_branch = t () => (float[n,7] p) { [in_t] p = MatMul(x, w) },
                   else_branch = e () => (float[n,7] q) { [in_e] q = Gemm(x, w, b) }> }"""
    model, x = bench.model(text, w=normal(24, 7), b=normal(7)), normal(64, 24, size=1.0)
    path = bench.apply(model, "int8-dynamic")
    for branch in (True, False):
        feeds = {"x": x, "c": np.array(branch)}
        assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 34
    assert not [i for i in onnx.load(path).graph.initializer if i.name == "w"]


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        ("g (float[n,2,4,4] x) => (y) { y = Conv(x, w) }", {"w": normal(2, 2, 1, 1)}, "no fast"),
        (
            "g (float[4,4] x, float[4] b) => (y) { y = Gemm(x, w, b) }",
            {"w": normal(4, 4)},
            "at run time",
        ),
        (
            "g (float[4,5] x) => (y) { y = Gemm(x, w, b) }",
            {"w": normal(5, 4), "b": normal(4, 1)},
            "no vector",
        ),
        (
            "g (float[3,5] x) => (y) { y = Gemm(x, w, b) }",
            {"w": normal(5, 4), "b": normal(3, 4)},
            "no vector",
        ),
        (
            "g (float[n,s,6] x) => (y) { y = LSTM <hidden_size = 10, layout = 1> (x, w, r) }",
            {"w": normal(1, 40, 6), "r": normal(1, 40, 10)},
            "batch-first",
        ),
        (
            "g (float[s,n,6] x) => (y) { y = LSTM <hidden_size = 10> (x, w, r, , , , , p) }",
            {"w": normal(1, 40, 6), "r": normal(1, 40, 10), "p": normal(1, 30)},
            "peepholes",
        ),
        (
            "g (float16[n,4] x) => (y) { y = MatMul(x, w) }",
            {"w": normal(4, 4).astype(np.float16)},
            "float32",
        ),
        (
            "g (float[s,n,6] x) => (y) { y = GRU <hidden_size = 10> (x, w, r) }",
            {"w": normal(1, 30, 6), "r": normal(1, 30, 10)},
            "no fast",
        ),
    ],
)
def test_what_cannot_be_dynamic_has_its_reason(
    bench: Bench, text: str, weights: dict[str, Any], reason: str
) -> None:
    (layer,) = find_layers(bench.model(text, **weights).ir)
    assert reason in why_not_dynamic(layer)


def test_a_layer_without_dynamic_operator_is_a_mistake(bench: Bench) -> None:
    text = "g (float[n,2,4,4] x) => (y) { y = Conv(x, w, b) }"
    model = bench.model(text, w=normal(2, 2, 1, 1), b=normal(2))
    layers = find_layers(model.ir)
    assert why_not_vector(layers[0]) == ""
    with pytest.raises(ValueError, match="Conv has no dynamic"):
        quantize_dynamically(model.ir, layers, {})


@pytest.mark.parametrize("side", ["Add(m, b)", "Add(b, m)"])
def test_the_bias_behind_a_matmul_is_taken_into_the_operator(bench: Bench, side: str) -> None:
    text = f"g (float[n,s,16] x) => (float[n,s,8] y) {{ m = MatMul(x, w) y = {side} }}"
    model = bench.model(text, w=normal(16, 8), b=normal(8))
    path = bench.apply(model, "int8-dynamic")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["DynamicQuantizeMatMul"]
    feeds = {"x": normal(2, 3, 16)}
    assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 35


def test_an_add_that_is_no_bias_stays(bench: Bench) -> None:
    text = "g (float[n,8] x) => (float[n,8] y, float[n,8] z) { m = MatMul(x, w) y = Add(m, b) %s }"
    for tail, bias in (("z = Relu(m)", normal(8)), ("z = Relu(x)", normal(1, 8))):
        model = bench.model(text % tail, w=normal(8, 8), b=bias)
        nodes = [node.op_type for node in onnx.load(bench.apply(model, "int8-dynamic")).graph.node]
        assert nodes.count("Add") == 1
