"""Weights in blocks: the runtime reads them as they are meant, in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import IDS, normal

from packlight.graph.layers import find_layers
from packlight.graph.rewrite.packing import pack_weight, unpack
from packlight.maths.blocks import pack_bits
from packlight.recipe import parse_choice

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
    ("bits", "level", "least"),
    [(2, 0, 4), (2, 4, 4), (4, 0, 17), (4, 4, 17), (8, 0, 40), (8, 4, 34)],
)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_faithful(bench: Bench, name: str, bits: int, level: int, least: float) -> None:
    text, shapes, inputs = BLOCKS[name]
    weights = {key: normal(*shape) for key, shape in shapes.items()}
    model = bench.model(text, **weights)
    shape = (8, 4, inputs) if "float[n,4" in text else (8, inputs)
    feeds = {"x": normal(*shape, size=1.0)}
    choice = f"weights-int{bits}-blocks"
    path = bench.apply(model, choice, accuracy_level=level)
    reference, found = bench.run(model, feeds)[0], bench.run(path, feeds)[0]
    assert snr_db(reference, found) > least
    assert "MatMulNBits" in bench.operators(path)
    assert onnx.load(path).graph.output == onnx.load(model.source).graph.output


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_runtime_reads_blocks_as_they_are_meant(bench: Bench, bits: int) -> None:
    """With the identity as input the weights come out that the codes stand for."""
    w = normal(83, 6) + 0.2  # ranges that are not symmetric need the zero points
    text = "g (float[n,83] x) => (float[n,6] y) { y = MatMul(x, w) }"
    model = bench.model(text, w=w)
    path = bench.apply(model, f"weights-int{bits}-blocks", accuracy_level=0)
    found = bench.run(path, {"x": np.eye(83, dtype=np.float32)})[0]
    (layer,) = find_layers(model.ir)
    packed = pack_weight(layer, parse_choice(f"weights-int{bits}-blocks"), None)
    np.testing.assert_allclose(found, unpack(packed).T, atol=1e-5)
    assert packed.codes.max() == 2**bits - 1 and packed.codes.min() == 0
    for start in range(0, 83, 32):
        block, decoded = w[start : start + 32], found[start : start + 32]
        high, low = np.maximum(block.max(axis=0), 0), np.minimum(block.min(axis=0), 0)
        step = (high - low) / (2**bits - 1)
        zero = np.rint(-low / step)
        plain = (np.clip(np.rint(block / step) + zero, 0, 2**bits - 1) - zero) * step
        # The range is searched for: never worse than that from end to end.
        errors = [np.square(block - one).sum(axis=0) for one in (decoded, plain)]
        assert (errors[0] <= errors[1] * 1.001 + 1e-9).all()


@pytest.mark.parametrize(("bits", "least"), [(2, 4), (4, 17), (8, 40)])
@pytest.mark.parametrize("width", [32, 96, 128])
def test_tables_in_blocks(bench: Bench, width: int, bits: int, least: float) -> None:
    w = normal(40, width) + 0.1
    text = f"g (int64[n,s] x) => (float[n,s,{width}] y) {{ y = Gather(w, x) }}"
    model = bench.model(text, w=w)
    path = bench.apply(model, f"weights-int{bits}-blocks")
    assert bench.operators(path) == ["GatherBlockQuantized"]
    found = bench.run(path, {"x": IDS})[0]
    (layer,) = find_layers(model.ir)
    packed = pack_weight(layer, parse_choice(f"weights-int{bits}-blocks"), None)
    np.testing.assert_allclose(found, unpack(packed)[IDS], atol=1e-5)
    assert snr_db(w[IDS], found) > least
    codes = next(i for i in onnx.load(path).graph.initializer if i.name == "w_codes")
    assert len(codes.raw_data) == 40 * width * bits // 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["matmul", "odd inputs", "gemm, all at once"])
def test_the_form_of_other_runtimes(bench: Bench, name: str, bits: int) -> None:
    """DequantizeLinear with blocks gives what MatMulNBits gives."""
    text, shapes, inputs = BLOCKS[name]
    weights = {key: normal(*shape) for key, shape in shapes.items()}
    model = bench.model(text, opset=21, **weights)
    choice = f"weights-int{bits}-blocks"
    forms = [
        bench.apply(model, choice, accuracy_level=0, block_form=form)
        for form in ("MatMulNBits", "QDQ")
    ]
    feeds = {"x": normal(*((8, 4, inputs) if name == "matmul" else (8, inputs)), size=1.0)}
    first, second = (bench.run(path, feeds, optimize=False)[0] for path in forms)
    np.testing.assert_allclose(first, second, atol=1e-4)
    operators = [node.op_type for node in onnx.load(forms[1]).graph.node]
    assert "DequantizeLinear" in operators and "MatMulNBits" not in operators
    np.testing.assert_allclose(
        bench.run(forms[1], feeds)[0], second, atol=0.2
    )  # its own fusion computes in int8
    # An older operator set has no such form.
    old = bench.model(text, opset=17, **weights)
    path = bench.apply(old, choice, block_form="QDQ")
    assert "MatMulNBits" in [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("bits", [2, 4])
def test_blocks_are_compensated_where_inputs_are_known(bench: Bench, bits: int) -> None:
    x = (normal(512, 8, size=1.0) @ normal(8, 80) + normal(512, 80, size=0.05)).astype(np.float32)
    model = bench.model(
        "g (float[n,80] x) => (float[n,24] y) { y = MatMul(x, w) }", w=normal(80, 24)
    )
    reference = bench.run(model, {"x": x})[0]
    seen = bench.observe(model, {"x": x})
    noise = {}
    for rounding in ("nearest", "compensated", "descent"):
        path = bench.apply(
            model,
            f"weights-int{bits}-blocks",
            observations=seen,
            accuracy_level=0,
            rounding=rounding,
        )
        noise[rounding] = snr_db(reference, bench.run(path, {"x": x})[0])
    assert noise["compensated"] > noise["nearest"] + 3
    assert noise["descent"] > noise["compensated"]


def test_bits_are_packed_from_the_lowest() -> None:
    codes = np.array([[1, 2, 3, 0, 2]], np.uint8)
    np.testing.assert_array_equal(pack_bits(codes, 2), [[0b00_11_10_01, 0b10]])
    np.testing.assert_array_equal(pack_bits(codes + 9, 4), [[0xBA, 0x9C, 0x0B]])
    np.testing.assert_array_equal(pack_bits(codes, 8), codes)
