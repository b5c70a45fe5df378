"""Weights in fewer bits: the values are those promised, the runtime computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import IDS, STORED, normal
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from packlight.graph.apply import why_not
from packlight.graph.layers import find_layers
from packlight.graph.rewrite.blocks import why_not_blocks
from packlight.graph.rewrite.decode import store_packed
from packlight.graph.rewrite.store import why_not_stored


def types_of(path: Path) -> dict[int, int]:
    """Elements in the file by type, those of subgraphs too."""
    sizes: dict[int, int] = {}

    def count(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            size = int(np.prod(tensor.dims))
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + size
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    count(attribute.g)
                if attribute.HasField("t"):
                    size = int(np.prod(attribute.t.dims))
                    kind = attribute.t.data_type
                    sizes[kind] = sizes.get(kind, 0) + size

    count(onnx.load(path).graph)
    return sizes


@pytest.mark.parametrize(("choice", "least"), [("weights-int8", 34), ("float16", 60)])
@pytest.mark.parametrize("name", STORED)
def test_stored_weights_are_faithful(bench: Bench, name: str, choice: str, least: float) -> None:
    text, weights, feeds = STORED[name]
    model = bench.model(text, **weights)
    path = bench.apply(model, choice)
    for optimize in (True, False):
        for pair in zip(
            bench.run(model, feeds), bench.run(path, feeds, optimize=optimize), strict=True
        ):
            assert snr_db(*pair) > least
    size = sum(weight.size for key, weight in weights.items() if key in "wr")
    kind = TensorProto.INT8 if choice == "weights-int8" else TensorProto.FLOAT16
    sizes = types_of(path)
    assert sizes[kind] == size
    left = sum(array.size for array in weights.values()) - size
    assert sizes.get(TensorProto.FLOAT, 0) <= left + size // 3  # biases, and the scales
    assert onnx.load(path).graph.output == onnx.load(model.source).graph.output


@pytest.mark.parametrize("name", [one for one in STORED if one != "gather"])
def test_weights_are_unpacked_once_when_the_file_is_loaded(bench: Bench, name: str) -> None:
    text, weights, _ = STORED[name]
    model = bench.model(text, **weights)
    before = bench.operators(model.source)
    assert bench.operators(bench.apply(model, "weights-int8")) == before
    assert bench.operators(bench.apply(model, "float16")) == before


def test_a_table_of_codes_stays_packed(bench: Bench) -> None:
    text, weights, _ = STORED["gather"]
    operators = bench.operators(bench.apply(bench.model(text, **weights), "weights-int8"))
    assert sorted(operators) == ["Cast", "Gather", "Gather", "Mul"]


def test_codes_are_within_half_a_step_of_the_weights(bench: Bench) -> None:
    w = normal(24, 7)
    text = "g (float[n,24] x) => (float[n,7] y) { y = MatMul(x, w) }"
    path = bench.apply(bench.model(text, w=w), "weights-int8")
    found = bench.run(path, {"x": np.eye(24, dtype=np.float32)})[0]
    step = np.abs(w).max(axis=0) / 127
    assert (np.abs(found - w) <= step * 0.5001).all()


@pytest.mark.parametrize("name", ["matmul", "gather"])
def test_small_float16_weights_keep_their_digits(bench: Bench, name: str) -> None:
    """A scale of 1e-6 / 127 is 0 as float16."""
    text, weights, feeds = STORED[name]
    w = (weights["w"] * 3e-4).astype(np.float16)
    if name == "matmul":
        feeds = {"x": (feeds["x"] * 1000).astype(np.float16)}
    model = bench.model(text.replace("float[", "float16["), w=w)
    path = bench.apply(model, "weights-int8")
    assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 34
    assert TensorProto.INT8 in types_of(path)


SHARED = """g (int64[n,s] i, float[n,k,16] x) => (float[n,s,16] e, float[n,k,16] y, float[a,16] z) {
    [look] e = Gather(w, i) [mul] y = MatMul(x, w) z = Neg(w) }"""


def shared(bench: Bench) -> tuple[Any, dict[str, NDArray[Any]]]:
    model = bench.model(SHARED, w=normal(16, 16))
    return model, {"i": IDS % 16, "x": normal(4, 5, 16)}


def test_all_readers_of_a_shared_weight_read_the_codes(bench: Bench) -> None:
    model, feeds = shared(bench)
    path = bench.apply(model, "weights-int8")
    sizes = types_of(path)
    assert sizes[TensorProto.INT8] == 256 and sizes[TensorProto.FLOAT] <= 16
    for pair in zip(bench.run(model, feeds), bench.run(path, feeds), strict=True):
        assert snr_db(*pair) > 34


@pytest.mark.parametrize("choice", ["weights-int8", "float16"])
@pytest.mark.parametrize(("chosen", "kept"), [("look", "mul"), ("mul", "look")])
def test_a_layer_left_in_float_reads_floats(
    bench: Bench, choice: str, chosen: str, kept: str
) -> None:
    model, feeds = shared(bench)
    path = bench.apply(model, {chosen: choice, kept: "float32"})
    reference, found = bench.run(model, feeds), bench.run(path, feeds)
    number = {"look": 0, "mul": 1}
    np.testing.assert_array_equal(reference[number[kept]], found[number[kept]])
    assert 30 < snr_db(reference[number[chosen]], found[number[chosen]]) < 100


def test_different_choices_for_one_weight(bench: Bench) -> None:
    model, feeds = shared(bench)
    path = bench.apply(model, {"look": "weights-int8", "mul": "float16"})
    reference, found = bench.run(model, feeds), bench.run(path, feeds)
    assert 30 < snr_db(reference[0], found[0]) < 60 < snr_db(reference[1], found[1]) < 100
    assert types_of(path).get(TensorProto.FLOAT, 0) <= 16


def test_two_tables_of_one_weight_are_stored_once(bench: Bench) -> None:
    text = """g (int64[n] i) => (float[n,8] y) {
        a = Gather(w, i) b = Gather(w, a1) y = Add(a, b) }"""
    model = bench.model(text, w=normal(40, 8), a1=np.array([3]))
    path = bench.apply(model, "weights-int8")
    sizes = types_of(path)
    assert sizes[TensorProto.INT8] == 320 and sizes[TensorProto.FLOAT] == 40
    feeds = {"i": IDS[0]}
    assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 34


@pytest.mark.parametrize("choice", ["weights-int8", "float16", "weights-int4-blocks"])
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_weights_of_subgraphs(bench: Bench, choice: str, where: str) -> None:
    numbers = ", ".join(f"{value:.4f}" for value in normal(64))
    constant = f"w = Constant <value = float[32,2] {{{numbers}}}> ()" if where == "inside" else ""
    text = f"""g (float[n,32] x, bool c) => (float[n,2] y) {{
        y = If(c) <then_branch = t () => (float[n,2] p) {{ {constant} p = MatMul(x, w) }},
                   else_branch = e () => (float[n,2] q) {{ q = MatMul(x, v) }}> }}"""
    weights = {"v": normal(32, 2)} | ({"w": normal(32, 2)} if where == "outside" else {})
    model = bench.model(text, **weights)
    path = bench.apply(model, choice)
    for branch in (True, False):
        feeds = {"x": normal(8, 32), "c": np.array(branch)}
        found = bench.run(path, feeds)[0]
        assert snr_db(bench.run(model, feeds)[0], found) > (
            15 if choice == "weights-int4-blocks" else 34
        )
    kinds = {"weights-int8": TensorProto.INT8, "float16": TensorProto.FLOAT16}
    sizes = types_of(path)
    if choice in kinds:
        assert sizes[kinds[choice]] == 128
    assert sizes.get(TensorProto.FLOAT, 0) < 20


def test_weights_in_constant_nodes(bench: Bench) -> None:
    text = """g (float[n,2] x) => (float[n,2] y) {
        a = Abs(x) k = Constant <value = float[2, 2] {1, 2, 3, 4}> () y = MatMul(a, k) }"""
    model = bench.model(text)
    path = bench.apply(model, "weights-int8")
    assert "Constant" not in [node.op_type for node in onnx.load(path).graph.node]
    feeds = {"x": normal(8, 2)}
    assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 34


@pytest.mark.parametrize(
    ("text", "weights", "choice", "reason"),
    [
        (
            "g (float[n,8] x) => (y) { y = MatMul(x, w) }",
            {"w": (8, 8)},
            "weights-int4-blocks",
            "8 inputs",
        ),
        ("g (int64[n] x) => (y) { y = Gather(w, x) }", {"w": (9, 40)}, "weights-int4-blocks", "40"),
        (
            "g (float[n,64] x) => (y, w) { y = MatMul(x, w) }",
            {"w": (64, 8)},
            "weights-int4-blocks",
            "elsewhere",
        ),
        (
            "g (float[n,64] x) => (y, w) { y = MatMul(x, w) }",
            {"w": (64, 8)},
            "weights-int8",
            "output",
        ),
        (
            "g (float[n,64] x, float[8] b) => (y) { y = Gemm(x, w, b) }",
            {"w": (64, 8)},
            "weights-int4-blocks",
            "run time",
        ),
        (
            "g (float[n,2,4,4] x) => (y) { y = Conv(x, w) }",
            {"w": (2, 2, 3, 3)},
            "weights-int4-blocks",
            "Conv",
        ),
    ],
)
def test_what_cannot_be_stored_has_its_reason(
    bench: Bench, text: str, weights: dict[str, tuple[int, ...]], choice: str, reason: str
) -> None:
    model = bench.model(text, **{key: normal(*shape) for key, shape in weights.items()})
    (layer,) = find_layers(model.ir)
    assert reason in why_not(layer, choice)


def test_weights_beyond_float16_are_left(bench: Bench) -> None:
    text = "g (float[n,64] x) => (float[n,8] y) { y = MatMul(x, w) }"
    w = normal(64, 8)
    w[3, 3] = 1e5
    (layer,) = find_layers(bench.model(text, w=w).ir)
    assert "beyond the range of float16" in why_not(layer, "float16")
    assert why_not(layer, "weights-int8") == why_not_stored(layer) == why_not_blocks(layer) == ""


def test_nothing_to_store_changes_nothing(bench: Bench) -> None:
    text, weights, _ = STORED["matmul"]
    model = bench.model(text, **weights)
    before = onnx.load(bench.save(model.ir))
    store_packed(model.ir, [], {})
    assert onnx.load(bench.save(model.ir)) == before
    assert numpy_helper.to_array(before.graph.initializer[0]).shape == (24, 7)
