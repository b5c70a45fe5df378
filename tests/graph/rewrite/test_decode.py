"""Stored choices: the runtime gets back exactly what the codes stand for, and only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import STORED, STORING, WORDS, normal
from onnx import TensorProto, numpy_helper

from packlight.graph.apply import why_not
from packlight.graph.layers import find_layers, matrix_to_weight
from packlight.graph.model import Model
from packlight.graph.rewrite.packing import pack_weight, unpack
from packlight.recipe import parse_choice


def by_hand(bench: Bench, model: Model, choice: str) -> Path:
    """The model with the decoded weights in the place of its own."""
    proto = onnx.load(model.source)
    for layer in find_layers(model.ir):
        for index, weight in enumerate(layer.weights):
            packed = pack_weight(layer, parse_choice(choice), None, index=index)
            array = unpack(packed)
            if layer.kind == "Gemm":
                array = array if layer.out_axis == 0 else array.T
            else:
                array = matrix_to_weight(layer, array, index)
            for initializer in proto.graph.initializer:
                if initializer.name == weight.name:
                    kind = numpy_helper.to_array(initializer).dtype
                    decoded = numpy_helper.from_array(
                        np.ascontiguousarray(array).astype(kind), initializer.name
                    )
                    initializer.CopyFrom(decoded)
    path = bench.folder / f"byhand{len(list(bench.folder.iterdir()))}.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("choice", STORING)
@pytest.mark.parametrize("name", STORED)
def test_the_runtime_decodes_what_numpy_decodes(bench: Bench, name: str, choice: str) -> None:
    text, weights, feeds = STORED[name]
    model = bench.model(text, opset=21, **weights)
    path = bench.apply(model, choice)
    expected = bench.run(by_hand(bench, model, choice), feeds)
    for optimize in (True, False):
        for one, other in zip(expected, bench.run(path, feeds, optimize=optimize), strict=True):
            np.testing.assert_allclose(other, one, atol=2e-5, rtol=1e-4)
    assert onnx.load(path).graph.output == onnx.load(model.source).graph.output
    if name != "gather":
        assert bench.operators(path) == bench.operators(model.source)  # folded at load


@pytest.mark.parametrize("choice", STORING)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_operator_sets_and_half_precision(bench: Bench, choice: str, opset: int) -> None:
    w = normal(40, 33).astype(np.float16)
    text = "g (float16[n,40] x) => (float16[n,33] y) { y = MatMul(x, w) }"
    model = bench.model(text, opset=opset, w=w)
    feeds = {"x": normal(4, 40).astype(np.float16)}
    path = bench.apply(model, choice)
    (expected,), (found,) = bench.run(by_hand(bench, model, choice), feeds), bench.run(path, feeds)
    assert snr_db(expected, found) > 45
    four = {TensorProto.INT4, TensorProto.UINT4}
    kinds = {one.data_type for one in onnx.load(path).graph.initializer}
    narrow = parse_choice(choice).bits < 5 and "coded" not in choice
    assert bool(kinds & four) == (opset >= 21 and narrow)


@pytest.mark.parametrize("choice", ["weights-int4", "weights-nf4", "weights-mxfp4"])
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_weights_of_subgraphs(bench: Bench, choice: str, where: str) -> None:
    numbers = ", ".join(f"{value:.4f}" for value in normal(64))
    constant = f"w = Constant <value = float[32,2] {{{numbers}}}> ()" if where == "inside" else ""
    text = f"""g (float[n,32] x, bool c) => (float[n,2] y) {{
        y = If(c) <then_branch = t () => (float[n,2] p) {{ {constant} p = MatMul(x, w) }},
                   else_branch = e () => (float[n,2] q) {{ q = MatMul(x, v) }}> }}"""
    weights = {"v": normal(32, 2)} | ({"w": normal(32, 2)} if where == "outside" else {})
    model = bench.model(text, opset=21, **weights)
    path = bench.apply(model, choice)
    for branch in (True, False):
        feeds = {"x": normal(8, 32), "c": np.array(branch)}
        assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 12


def test_a_loop_reads_decoded_weights(bench: Bench) -> None:
    text = """g (float[n,16] x) => (float[n,16] y) {
        m = Constant <value = int64 {3}> () c = Constant <value = bool {1}> ()
        y = Loop(m, c, x) <body = b (int64 i, bool k, float[n,16] s)
            => (bool l, float[n,16] r) { l = Identity(k) t = MatMul(s, w) r = Tanh(t) }> }"""
    model = bench.model(text, opset=21, w=normal(16, 16))
    feeds = {"x": normal(4, 16, size=1.0)}
    expected = bench.run(by_hand(bench, model, "weights-int4"), feeds)[0]
    path = bench.apply(model, "weights-int4")
    np.testing.assert_allclose(bench.run(path, feeds)[0], expected, atol=1e-5)


def test_layers_that_share_a_weight_share_the_codes(bench: Bench) -> None:
    text = """g (float[n,32] x) => (float[n,32] y) {
        a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = Gemm(s, w, c) }"""
    model = bench.model(text, opset=21, w=normal(32, 32), c=normal(32))
    feeds = {"x": normal(8, 32, size=1.0)}
    for choice in ("weights-int4", "weights-nf4", "weights-shared4"):
        path = bench.apply(model, choice)
        large = [i for i in onnx.load(path).graph.initializer if np.prod(i.dims) >= 1024]
        assert len(large) == 1 and large[0].data_type in (TensorProto.INT4, TensorProto.UINT4)
        assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 10


def test_scales_of_blocks_that_repeat_are_stored_as_bytes(bench: Bench) -> None:
    text = "g (float[n,512] x) => (float[n,64] y) { y = MatMul(x, w) }"
    model = bench.model(text, opset=21, w=normal(512, 64))
    sizes = {
        choice: bench.apply(model, choice).stat().st_size
        for choice in ("weights-mxfp4", "weights-nvfp4")
    }
    codes = 512 * 64 // 2
    assert sizes["weights-mxfp4"] < codes + 512 * 64 // 32 + 1800
    assert sizes["weights-nvfp4"] < codes + 512 * 64 // 16 + 2300


def test_every_choice_works_for_every_kind_or_has_a_reason(bench: Bench) -> None:
    """Static ones see the ranges of their inputs."""
    done: dict[str, set[str]] = {}
    for name, (text, weights, feeds) in STORED.items():
        model = bench.model(text, opset=21, **weights)
        (layer,) = find_layers(model.ir)
        reference = bench.run(model, feeds)
        seen = bench.observe(model, feeds) if not why_not(layer, "int8-a4") else None
        for choice in WORDS:
            reason = why_not(layer, choice)
            if reason:
                assert choice.startswith("int") or choice.endswith("blocks"), (name, choice)
                continue
            path = bench.apply(model, choice, observations=seen)
            least: Any = {"float32": 200, "int8": 25, "weights-int8": 30, "float16": 55}
            for pair in zip(reference, bench.run(path, feeds), strict=True):
                assert snr_db(*pair) > least.get(choice, 0.3), (name, choice)
            done.setdefault(name, set()).add(choice)
    assert done["conv"] >= {"int4", "int4-a4", "weights-nf4", "weights-coded2"}
    assert done["lstm"] >= {"int8-dynamic", "weights-nvfp4"} and "int4" not in done["lstm"]
    assert done["gemm"] >= {"int2", "int3-a4", "weights-shared2"}
    assert all(set(STORING) <= found for found in done.values())
