"""Weights in fewer bits: the values are those promised, the runtime computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from packlight.graph.apply import why_not
from packlight.graph.layers import find_layers
from packlight.graph.rewrite.store import store_int8, why_not_blocks, why_not_stored

RANDOM = np.random.default_rng(31)


def normal(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


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


IDS = RANDOM.integers(0, 40, (4, 3))
STORED: dict[str, tuple[str, dict[str, Any], dict[str, NDArray[Any]]]] = {
    "conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = Conv <group = 2> (x, w, b) }",
        {"w": normal(6, 2, 3, 3), "b": normal(6)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "transposed conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = ConvTranspose(x, w, b) }",
        {"w": normal(4, 6, 3, 3), "b": normal(6)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "grouped transposed conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = ConvTranspose <group = 2> (x, w) }",
        {"w": normal(4, 3, 5, 5) * np.array([1, 1, 9, 9], np.float32).reshape(4, 1, 1, 1)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "depthwise transposed conv": (
        "g (float[n,4,8] x) => (float[n,4,k] y) { y = ConvTranspose <group = 4> (x, w) }",
        {"w": normal(4, 1, 5)},
        {"x": normal(4, 4, 8)},
    ),
    "gemm": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <alpha = 0.25, beta = 2.0> (x, w, b) }",
        {"w": normal(24, 7), "b": normal(7)},
        {"x": normal(4, 24)},
    ),
    "gemm, transposed": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <transB = 1, alpha = 3.0> (x, w) }",
        {"w": normal(7, 24)},
        {"x": normal(4, 24)},
    ),
    "matmul": (
        "g (float[n,5,24] x) => (float[n,5,7] y) { y = MatMul(x, w) }",
        {"w": normal(24, 7)},
        {"x": normal(4, 5, 24)},
    ),
    "gather": (
        "g (int64[n,s] x) => (float[n,s,8] y) { y = Gather(w, x) }",
        {"w": normal(40, 8) * np.geomspace(0.01, 10, 40, dtype=np.float32)[:, None]},
        {"x": IDS},
    ),
    "lstm": (
        """g (float[s,n,6] x) => (float[s,2,n,5] y) {
            y = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r, b) }""",
        {"w": normal(2, 20, 6), "r": normal(2, 20, 5), "b": normal(2, 40)},
        {"x": normal(7, 3, 6)},
    ),
    "gru": (
        """g (float[s,n,6] x) => (float[s,1,n,5] y, float[1,n,5] h) {
            y, h = GRU <hidden_size = 5, linear_before_reset = 1> (x, w, r, b) }""",
        {"w": normal(1, 15, 6), "r": normal(1, 15, 5), "b": normal(1, 30)},
        {"x": normal(7, 3, 6)},
    ),
    "rnn": (
        "g (float[s,n,6] x) => (float[s,1,n,5] y) { y = RNN <hidden_size = 5> (x, w, r) }",
        {"w": normal(1, 5, 6), "r": normal(1, 5, 5)},
        {"x": normal(7, 3, 6)},
    ),
    "attention": (
        """g (float[n,s,8] x) => (float[n,s,8] y) {
            y = com.microsoft.Attention <num_heads = 2> (x, w, b) }""",
        {"w": normal(8, 24), "b": normal(24)},
        {"x": normal(2, 5, 8)},
    ),
}


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


@pytest.mark.parametrize("choice", ["weights-int8", "float16", "weights-int4"])
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
        assert snr_db(bench.run(model, feeds)[0], found) > (15 if choice == "weights-int4" else 34)
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


BLOCKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "matmul": ("g (float[n,4,64] x) => (float[n,4,7] y) { y = MatMul(x, w) }", {"w": (64, 7)}, 64),
    "odd inputs": ("g (float[n,83] x) => (float[n,5] y) { y = MatMul(x, w) }", {"w": (83, 5)}, 83),
    "three blocks": (
        "g (float[n,96] x) => (float[n,5] y) { y = MatMul(x, w) }",
        {"w": (96, 5)},
        96,
    ),
    "gemm": (
        "g (float[n,70] x) => (float[n,9] y) { y = Gemm(x, w, b) }",
        {"w": (70, 9), "b": (9,)},
        70,
    ),
    "gemm, all at once": (
        """g (float[n,70] x) => (float[n,9] y) {
            y = Gemm <transB = 1, alpha = 0.5, beta = -2.0> (x, w, b) }""",
        {"w": (9, 70), "b": (1, 9)},
        70,
    ),
    "gemm with a matrix as bias": (
        "g (float[8,64] x) => (float[8,9] y) { y = Gemm <beta = 0.5> (x, w, b) }",
        {"w": (64, 9), "b": (8, 9)},
        64,
    ),
    "gemm with a column as bias": (
        "g (float[8,64] x) => (float[8,8] y) { y = Gemm(x, w, b) }",
        {"w": (64, 8), "b": (8, 1)},
        64,
    ),
}


@pytest.mark.parametrize(
    ("bits", "level", "least"), [(4, 0, 17), (4, 4, 17), (8, 0, 40), (8, 4, 34)]
)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_faithful(bench: Bench, name: str, bits: int, level: int, least: float) -> None:
    text, shapes, inputs = BLOCKS[name]
    weights = {key: normal(*shape) for key, shape in shapes.items()}
    model = bench.model(text, **weights)
    shape = (8, 4, inputs) if "float[n,4" in text else (8, inputs)
    feeds = {"x": normal(*shape, size=1.0)}
    choice = "weights-int4" if bits == 4 else "weights-int8-blocks"
    path = bench.apply(model, choice, accuracy_level=level)
    reference, found = bench.run(model, feeds)[0], bench.run(path, feeds)[0]
    assert snr_db(reference, found) > least
    assert "MatMulNBits" in bench.operators(path)
    assert onnx.load(path).graph.output == onnx.load(model.source).graph.output


@pytest.mark.parametrize("bits", [4, 8])
def test_the_runtime_reads_blocks_as_they_are_meant(bench: Bench, bits: int) -> None:
    """With the identity as input the decoded weights come out: within half a step of a block."""
    w = normal(83, 6) + 0.2  # ranges that are not symmetric need the zero points
    text = "g (float[n,83] x) => (float[n,6] y) { y = MatMul(x, w) }"
    choice = "weights-int4" if bits == 4 else "weights-int8-blocks"
    path = bench.apply(bench.model(text, w=w), choice, accuracy_level=0)
    found = bench.run(path, {"x": np.eye(83, dtype=np.float32)})[0]
    for start in range(0, 83, 32):
        block, decoded = w[start : start + 32], found[start : start + 32]
        high, low = np.maximum(block.max(axis=0), 0), np.minimum(block.min(axis=0), 0)
        step = (high - low) / (2**bits - 1)
        # The zero point is rounded too: an end may lie half a step outside.
        assert (np.abs(block - decoded) <= 1.001 * step).all()
        assert np.mean(np.abs(block - decoded) <= 0.501 * step) > 0.9


@pytest.mark.parametrize("width", [32, 96, 128])
def test_tables_in_blocks(bench: Bench, width: int) -> None:
    w = normal(40, width) + 0.1
    text = f"g (int64[n,s] x) => (float[n,s,{width}] y) {{ y = Gather(w, x) }}"
    model = bench.model(text, w=w)
    path = bench.apply(model, "weights-int4")
    assert bench.operators(path) == ["GatherBlockQuantized"]
    found = bench.run(path, {"x": IDS})[0]
    np.testing.assert_allclose(found, w[IDS], atol=float(np.ptp(w)) / 15)
    assert snr_db(w[IDS], found) > 17
    assert types_of(path)[TensorProto.UINT8] <= 40 * (width // 2 + (width // 32 + 1) // 2)


@pytest.mark.parametrize(
    ("text", "weights", "choice", "reason"),
    [
        ("g (float[n,8] x) => (y) { y = MatMul(x, w) }", {"w": (8, 8)}, "weights-int4", "8 inputs"),
        ("g (int64[n] x) => (y) { y = Gather(w, x) }", {"w": (9, 40)}, "weights-int4", "40"),
        (
            "g (int64[n] x) => (y) { y = Gather(w, x) }",
            {"w": (9, 64)},
            "weights-int8-blocks",
            "4-bit",
        ),
        (
            "g (float[n,64] x) => (y, w) { y = MatMul(x, w) }",
            {"w": (64, 8)},
            "weights-int4",
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
            "weights-int4",
            "run time",
        ),
        (
            "g (float[n,2,4,4] x) => (y) { y = Conv(x, w) }",
            {"w": (2, 2, 3, 3)},
            "weights-int4",
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
    store_int8(model.ir, [])
    assert onnx.load(bench.save(model.ir)) == before
    assert numpy_helper.to_array(before.graph.initializer[0]).shape == (24, 7)
