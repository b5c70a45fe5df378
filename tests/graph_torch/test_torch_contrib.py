"""Operators of onnxruntime: the module gives what the runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

from torch_bench import check_like_runtime, parse, run_module, run_runtime  # noqa: E402

from packlight.graph.torch.module import GraphModule  # noqa: E402
from packlight.graph.torch.operators.contrib import unpack_bits  # noqa: E402

RANDOM = np.random.default_rng(13)


def draw(*shape: int, scale: float = 1.0) -> Any:
    return (scale * RANDOM.standard_normal(shape)).astype(np.float32)


SIMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "Gelu": ("y = com.microsoft.Gelu (x)", {}),
    "FastGelu": ("y = com.microsoft.FastGelu (x, b)", {"b": draw(8)}),
    "BiasGelu": ("y = com.microsoft.BiasGelu (x, b)", {"b": draw(8)}),
    "QuickGelu": ("y = com.microsoft.QuickGelu <alpha = 1.5> (x)", {}),
    "FusedMatMul": (
        "y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w)",
        {"w": draw(5, 8)},
    ),
    "SkipLayerNormalization": (
        "y, , , s = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, x, g, b, c)",
        {"g": draw(8), "b": draw(8), "c": draw(8)},
    ),
    "SkipSimplifiedLayerNormalization": (
        "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, x, g)",
        {"g": draw(8)},
    ),
    "SimplifiedLayerNormalization": ("y = SimplifiedLayerNormalization (x, g)", {"g": draw(8)}),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_simple_operators(name: str) -> None:
    body, weights = SIMPLE[name]
    module = check_like_runtime(
        f"g (float[2,3,8] x) => (y) {{ {body} }}", {"x": draw(2, 3, 8)}, **weights
    )
    assert set(module.parameters_by_name) == set(weights)


def test_fused_convolutions() -> None:
    text = """g (float[1,4,6,6] x) => (y) {
        c = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.2],
                                     pads = [1,1,1,1]> (x, w, b)
        y = com.microsoft.FusedConv <activation = "Relu"> (c, v, , x)
    }"""
    weights = {"w": draw(4, 4, 3, 3), "b": draw(4), "v": draw(4, 4, 1, 1)}
    check_like_runtime(text, {"x": draw(1, 4, 6, 6)}, **weights)


def test_embeddings() -> None:
    text = """g (int32[2,5] ids, int32[2,5] kinds, int32[2,5] mask) => (y, counts) {
        y, counts = com.microsoft.EmbedLayerNormalization
            (ids, kinds, words, places, segments, g, b, mask)
    }"""
    weights = {"words": draw(20, 8), "places": draw(6, 8), "segments": draw(2, 8)}
    weights |= {"g": draw(8), "b": draw(8)}
    feeds = {
        "ids": RANDOM.integers(0, 20, (2, 5)).astype(np.int32),
        "kinds": RANDOM.integers(0, 2, (2, 5)).astype(np.int32),
        "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
    }
    check_like_runtime(text, feeds, **weights)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", ["none", "lengths", "rows", "past"])
def test_attention(kind: str, causal: int) -> None:
    mask = {"none": "", "lengths": "int32[2] m", "rows": "int32[2,5] m", "past": ""}[kind]
    past = ", float[2,2,4,3,2] p" if kind == "past" else ""
    arguments = {"none": "", "lengths": ", m", "rows": ", m", "past": ", , p"}[kind]
    outputs = "y, present" if kind == "past" else "y"
    text = f"""g (float[2,5,8] x{", " + mask if mask else ""}{past}) => ({outputs}) {{
        {outputs} = com.microsoft.Attention <num_heads = 4, unidirectional = {causal}>
            (x, w, b{arguments})
    }}"""
    feeds: dict[str, Any] = {"x": draw(2, 5, 8)}
    if kind == "lengths":
        feeds["m"] = np.array([3, 5], np.int32)
    if kind == "rows":
        feeds["m"] = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.int32)
    if kind == "past":
        feeds["p"] = draw(2, 2, 4, 3, 2)
    check_like_runtime(text, feeds, tolerance=1e-4, w=draw(8, 24), b=draw(24))


def pack(codes: Any, bits: int) -> Any:
    """Codes [..., n] as bytes, lowest bits first."""
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    groups = padded.reshape(*padded.shape[:-1], -1, each).astype(np.uint8)
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(groups << shifts, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_are_unpacked_lowest_first(bits: int) -> None:
    codes = RANDOM.integers(0, 1 << bits, (3, 16)).astype(np.uint8)
    found = unpack_bits(torch.from_numpy(pack(codes, bits)), bits)
    np.testing.assert_array_equal(found.numpy(), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [True, False])
def test_products_with_weights_in_blocks(bits: int, zeros: bool) -> None:
    inputs, outputs, block = 80, 6, 32
    blocks = -(-inputs // block)
    codes = RANDOM.integers(0, 1 << bits, (outputs, blocks, block))
    weights: dict[str, Any] = {"w": pack(codes, bits), "s": draw(outputs, blocks, scale=0.1)}
    if zeros:
        weights["z"] = pack(RANDOM.integers(0, 1 << bits, (outputs, blocks)), bits)
    text = f"""g (float[n,{inputs}] x) => (y) {{
        y = com.microsoft.MatMulNBits <K = {inputs}, N = {outputs}, bits = {bits},
            block_size = {block}> (x, w, s{", z" if zeros else ""})
    }}"""
    check_like_runtime(text, {"x": draw(4, inputs)}, tolerance=1e-3, **weights)


def test_tables_in_blocks() -> None:
    rows, size, block = 9, 64, 32
    weights = {
        "t": pack(RANDOM.integers(0, 16, (rows, size)), 4),
        "s": draw(rows, size // block),
        "z": pack(RANDOM.integers(0, 16, (rows, size // block)), 4),
    }
    text = f"""g (int64[2,3] i) => (y) {{
        y = com.microsoft.GatherBlockQuantized <bits = 4, block_size = {block}, gather_axis = 0,
            quantize_axis = 1> (t, i, s, z)
    }}"""
    check_like_runtime(text, {"i": RANDOM.integers(0, rows, (2, 3))}, **weights)


def test_dynamically_quantized_products() -> None:
    text = """g (float[3,16] x) => (y) {
        h = com.microsoft.DynamicQuantizeMatMul (x, w, s, z, b)
        q, a, o = DynamicQuantizeLinear (h)
        y = com.microsoft.MatMulIntegerToFloat (q, v, a, t, o, z)
    }"""
    weights: dict[str, Any] = {
        "w": RANDOM.integers(-127, 128, (16, 8)).astype(np.int8),
        "v": RANDOM.integers(-127, 128, (8, 8)).astype(np.int8),
    }
    weights |= {"s": np.abs(draw(8, scale=0.01)), "t": np.abs(draw(8, scale=0.01))}
    weights |= {"z": np.zeros(8, np.int8), "b": draw(8)}
    check_like_runtime(text, {"x": draw(3, 16)}, tolerance=1e-3, **weights)


def test_dynamically_quantized_recurrent_layers_are_close() -> None:
    text = """g (float[4,2,8] x) => (y) {
        y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 4>
            (x, w, r, b, , , , , ws, wz, rs, rz)
    }"""
    weights: dict[str, Any] = {
        "w": RANDOM.integers(-127, 128, (1, 8, 16)).astype(np.int8),
        "r": RANDOM.integers(-127, 128, (1, 4, 16)).astype(np.int8),
        "b": draw(1, 32),
    }
    weights |= {"ws": np.full((1, 16), 0.01, np.float32), "wz": np.zeros((1, 16), np.int8)}
    weights |= {"rs": np.full((1, 16), 0.01, np.float32), "rz": np.zeros((1, 16), np.int8)}
    proto = parse(text, **weights)
    x = draw(4, 2, 8)
    (found,) = run_module(GraphModule(ir.from_proto(proto)), {"x": x})
    (expected,) = run_runtime(proto, {"x": x})
    np.testing.assert_allclose(found, expected, atol=0.02)  # the runtime rounds activations too
