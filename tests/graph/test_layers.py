"""Layers: found wherever they are, seen as the matrix that multiplies, and laid out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.layers import (
    Layer,
    find_layers,
    find_unquantizable,
    is_quantized,
    matrix_to_weight,
    weight_matrix,
)
from packlight.graph.model import Model, load_model

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
RANDOM = np.random.default_rng(7)


def weight(*shape: int) -> NDArray[Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def make(folder: Path, text: str, **weights: NDArray[Any]) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "m.onnx")
    return load_model(folder / "m.onnx")


def only(model: Model) -> Layer:
    (layer,) = find_layers(model.ir)
    return layer


def run(model: Model, **feeds: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(model.source), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_conv_is_the_matrix_of_its_patches(tmp_path: Path) -> None:
    text = "g (float[n, 4, 3, 3] x) => (float[n, 6, 1, 1] y) { y = Conv <group = 2> (x, w, b) }"
    model = make(tmp_path, text, w=weight(6, 2, 3, 3), b=weight(6))
    layer = only(model)
    assert (layer.kind, layer.out_axis, layer.groups) == ("Conv", 0, 2)
    assert (layer.parameters, layer.bytes, layer.shared) == (108, 432, False)
    assert layer.bias is not None and layer.bias.name == "b"
    x = weight(1, 4, 3, 3)
    matrix = weight_matrix(layer)
    assert matrix.shape == (6, 18)
    # The kernel covers the whole picture, so that each group's patch is its half of x.
    halves = x.reshape(2, 18)
    expected = np.concatenate([matrix[:3] @ halves[0], matrix[3:] @ halves[1]])
    bias = model.ir.graph.initializers["b"].const_value
    assert bias is not None
    np.testing.assert_allclose(
        run(model, x=x).reshape(6), expected + bias.numpy(), rtol=1e-4, atol=1e-5
    )


def test_conv_transpose_rows_are_output_channels(tmp_path: Path) -> None:
    text = """g (float[n, 4, 1, 1] x) => (float[n, 6, 2, 2] y)
    { y = ConvTranspose <group = 2> (x, w) }"""
    model = make(tmp_path, text, w=weight(4, 3, 2, 2))
    layer = only(model)
    matrix = weight_matrix(layer)
    assert matrix.shape == (6, 2 * 4)
    x = weight(1, 4, 1, 1)
    # One input pixel: output channel o is its row, summed over the inputs of its group.
    rows = matrix.reshape(2, 3, 2, 4)
    expected = np.einsum("goik,gi->gok", rows, x.reshape(2, 2)).reshape(1, 6, 2, 2)
    np.testing.assert_allclose(run(model, x=x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_alpha_and_trans_b_in(tmp_path: Path, transposed: int) -> None:
    text = f"""g (float[n, 5] x) => (float[n, 3] y)
    {{ y = Gemm <alpha = 0.3, transB = {transposed}> (x, w) }}"""
    model = make(tmp_path, text, w=weight(3, 5) if transposed else weight(5, 3))
    layer = only(model)
    assert layer.out_axis == (0 if transposed else 1)
    x = weight(2, 5)
    np.testing.assert_allclose(run(model, x=x), x @ weight_matrix(layer).T, rtol=1e-4, atol=1e-6)


CASES = {
    "Conv": ("g (float[n,4,8,8] x) => (y) { y = Conv <group = 2> (x, w) }", (6, 2, 3, 3)),
    "ConvTranspose": (
        "g (float[n,4,8,8] x) => (y) { y = ConvTranspose <group = 2> (x, w) }",
        (4, 3, 2, 2),
    ),
    "Gemm": ("g (float[n,5] x) => (y) { y = Gemm <alpha = 0.5> (x, w) }", (5, 3)),
    "MatMul": ("g (float[n,s,5] x) => (y) { y = MatMul(x, w) }", (5, 3)),
    "Gather": ("g (int64[n,s] x) => (y) { y = Gather(w, x) }", (9, 4)),
    "Attention": (
        "g (float[n,s,4] x) => (y) { y = com.microsoft.Attention <num_heads = 2> (x, w, b) }",
        (4, 12),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_matrices_are_laid_out_again_as_they_were(tmp_path: Path, kind: str) -> None:
    text, shape = CASES[kind]
    array = weight(*shape)
    model = make(tmp_path, text, w=array, **({"b": weight(12)} if kind == "Attention" else {}))
    layer = only(model)
    assert layer.kind == kind
    matrix = weight_matrix(layer)
    np.testing.assert_array_equal(matrix_to_weight(layer, matrix), array)
    # Each row of the matrix is one slice along out_axis of the weight (within a group).
    if layer.groups == 1:
        integers = np.arange(matrix.size, dtype=np.int8).reshape(matrix.shape)
        back = matrix_to_weight(layer, integers)
        assert back.dtype == np.int8
        first = np.take(back, 0, axis=layer.out_axis).reshape(-1)
        np.testing.assert_array_equal(np.sort(first), np.sort(integers[0]))


def test_recurrent_layers_have_two_weights(tmp_path: Path) -> None:
    text = "g (float[s, n, 3] x) => (y) { y = LSTM <hidden_size = 2> (x, w, r) }"
    model = make(tmp_path, text, w=weight(1, 8, 3), r=weight(1, 8, 2))
    layer = only(model)
    assert layer.parameters == 24 + 16
    assert [weight_matrix(layer, i).shape for i in (0, 1)] == [(8, 3), (8, 2)]
    for index, value in enumerate(layer.weights):
        assert value.const_value is not None
        again = matrix_to_weight(layer, weight_matrix(layer, index), index)
        np.testing.assert_array_equal(again, value.const_value.numpy())


def test_layers_in_subgraphs_functions_and_constant_nodes_are_found(tmp_path: Path) -> None:
    text = """g (float[n, 2] x, bool c) => (float[n, 2] y) {
    k = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
    a = MatMul(x, k)
    [branch] y = If(c) <then_branch = t () => (float[n, 2] p) { p = MatMul(a, w) },
                       else_branch = e () => (float[n, 2] q) { q = MatMul(a, w) }> }"""
    model = make(tmp_path, text, w=weight(2, 2))
    layers = find_layers(model.ir)
    assert [layer.graph_path for layer in layers] == [
        (),
        ("branch.then_branch",),
        ("branch.else_branch",),
    ]
    assert [layer.shared for layer in layers] == [False, True, True]
    assert len({layer.name for layer in layers}) == 3


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        ("g (float[2,2] x, float[2,2] z) => (y) { y = MatMul(x, z) }", {}, "two activations"),
        ("g (float[3,2,2] x) => (y) { y = MatMul(x, w) }", {"w": weight(3, 2, 2)}, "batch"),
        ("g (float[2,2] x) => (y) { y = MatMul(w, x) }", {"w": weight(2, 2)}, "left operand"),
        ("g (float[2,2] x) => (y) { y = Gemm <transA = 1> (x, w) }", {"w": weight(2, 2)}, "transA"),
        (
            "g (float[1,2,4,4] x) => (y) { k = Neg(w) y = Conv(x, k) }",
            {"w": weight(2, 2, 3, 3)},
            "at run time",
        ),
        (
            "g (float[2,2] x) => (y) { k = DequantizeLinear(w, s) y = MatMul(x, k) }",
            {"w": np.ones((2, 2), np.int8), "s": np.array(0.1, np.float32)},
            "quantized already",
        ),
        (
            "g (uint8[2,2] x) => (y) { y = MatMulInteger(x, w) }",
            {"w": np.ones((2, 2), np.int8)},
            "quantized already",
        ),
        (
            "g (int64[2,2] x) => (y) { y = MatMul(x, w) }",
            {"w": np.ones((2, 2), np.int64)},
            "not floating point",
        ),
        (
            "g (float[1,3,4,4] x) => (y) { y = Conv <group = 2> (x, w) }",
            {"w": weight(3, 1, 1, 1)},
            "2 groups",
        ),
    ],
)
def test_what_is_no_layer_has_its_reason(
    tmp_path: Path, text: str, weights: dict[str, NDArray[Any]], reason: str
) -> None:
    model = make(tmp_path, text, **weights)
    assert find_layers(model.ir) == ()
    (item,) = find_unquantizable(model.ir)
    assert reason in item.reason


def test_lookups_of_numbers_are_no_layers(tmp_path: Path) -> None:
    text = "g (int64[1] x) => (y, z) { y = Gather(w, x) z = Gather <axis = 1> (v, x) }"
    model = make(tmp_path, text, w=np.arange(9), v=weight(3, 3))
    assert find_layers(model.ir) == ()
    assert find_unquantizable(model.ir) == ()
    assert not any(is_quantized(node) for node in model.ir.graph)


def test_every_layer_of_the_real_models_is_accounted_for(real: Path) -> None:
    counts = {
        name: len(find_layers(load_model(real / "onnx" / f"{name}.onnx").ir))
        for name in ("yolox_nano", "silero_vad_op18_ifless", "tiny_random_gpt2_past")
    }
    assert counts == {"yolox_nano": 113, "silero_vad_op18_ifless": 16, "tiny_random_gpt2_past": 22}
