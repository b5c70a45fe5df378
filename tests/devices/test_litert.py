"""Each operator that is written for LiteRT, held to onnxruntime; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench
from numpy.typing import NDArray

from packlight.graph.model import load_model
from packlight.graph.rewrite.portable import make_portable
from packlight.runtime import Process

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
flat = pytest.importorskip("ai_edge_litert.schema_py_generated")

from packlight.devices.litert.convert import convert, translate  # noqa: E402
from packlight.devices.litert.draft import ALIGNMENT, Unwritable  # noqa: E402

PICTURE = (1, 4, 6, 6)


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


# What happens to the picture c that a convolution of x gives, so that it is held channels last.
ON_PICTURES = {
    "relu": "y = Relu (c)",
    "clip": "y = Clip (c, low, high)",
    "clip below": "y = Clip (c, low)",
    "sigmoid times": "s = Sigmoid (c) y = Mul (s, c)",
    "tanh, exp": "s = Tanh (c) y = Exp (s)",
    "leaky": "y = LeakyRelu <alpha = 0.2> (c)",
    "prelu": "y = PRelu (c, slope)",
    "add channel": "y = Add (c, slope)",
    "sub from number": "y = Sub (low, c)",
    "div": "s = Sigmoid (c) y = Div (c, s)",
    "max pool": "y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)",
    "max pool, uneven": "y = MaxPool <kernel_shape = [2, 2], strides = [4, 4], ceil_mode = 1> (c)",
    "average, padding counts": (
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 0], count_include_pad = 1> (c)"
    ),
    "average, padding does not": (
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)"
    ),
    "global": "y = GlobalAveragePool (c)",
    "mean": "y = ReduceMean <axes = [2, 3], keepdims = 0> (c)",
    "mean of rows": "y = ReduceMean <axes = [2]> (c)",
    "max of channels": "y = ReduceMax <axes = [1], keepdims = 0> (c)",
    "softmax of channels": "y = Softmax <axis = 1> (c)",
    "softmax of rows": "y = Softmax <axis = -1> (c)",
    "concat": "r = Relu (c) y = Concat <axis = 1> (c, r)",
    "concat with input": "y = Concat <axis = 1> (c, x)",
    "slice channels": "y = Slice (c, one, three, one)",
    "pad": "y = Pad (c, pads)",
    "pad with a number": "y = Pad (c, pads, high)",
    "pad, reflected": 'y = Pad <mode = "reflect"> (c, pads)',
    "split": "a, d = Split <axis = 1> (c) y = Sub (a, d)",
    "transpose": "y = Transpose <perm = [0, 2, 3, 1]> (c)",
    "transpose otherwise": "y = Transpose <perm = [0, 3, 1, 2]> (c)",
    "reshape": "y = Reshape (c, form)",
    "flatten a pixel": "g = GlobalAveragePool (c) y = Flatten (g)",
    "nearest": (
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
        'nearest_mode = "floor"> (c, , scales)'
    ),
    "nearest, half pixels": 'y = Resize <mode = "nearest"> (c, , scales)',
    "linear": 'y = Resize <mode = "linear"> (c, , scales)',
    "linear, corners": (
        'y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners">'
        " (c, , scales)"
    ),
    "depth to space": "y = DepthToSpace <blocksize = 2> (c)",
    "strided, dilated": "y = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (c, w)",
    "conv, SAME": 'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (c, w)',
    "conv, one side": "y = Conv <pads = [0, 1, 1, 0], strides = [2, 2]> (c, w, b)",
    "conv, groups": "y = Conv <group = 2> (c, grouped)",
    "conv, depthwise": "y = Conv <group = 4, pads = [1, 1, 1, 1]> (c, deep)",
    "conv, relu6": "d = Conv (c, w) y = Clip (d, low, high)",
    "conv transposed": "y = ConvTranspose <strides = [2, 2]> (c, up, b)",
    "conv transposed, cut": (
        "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 2], output_padding = [1, 0]> (c, up)"
    ),
    "erf of a picture": "y = Erf (c)",
    "both orders": "r = Reshape (c, form) t = Reshape (r, back) y = Add (t, c)",
    "gather rows": "y = Gather <axis = 2> (c, rows)",
}
CONSTANTS: dict[str, NDArray[Any]] = {
    "w0": normal(4, 4, 3, 3) / 3,
    "b0": normal(4),
    "w": normal(6, 4, 3, 3) / 3,
    "b": normal(6),
    "up": normal(4, 6, 3, 3) / 3,
    "grouped": normal(6, 2, 3, 3),
    "deep": normal(8, 1, 3, 3),
    "slope": np.linspace(-0.5, 1, 4, dtype=np.float32).reshape(4, 1, 1),
    "low": np.array(0, np.float32),
    "high": np.array(6, np.float32),
    "one": np.array([1]),
    "three": np.array([3]),
    "form": np.array([1, 4, -1]),
    "back": np.array([1, 4, 6, 6]),
    "rows": np.array([[0, -1]]),
    "pads": np.array([0, 1, 2, 0, 0, 0, 1, 1]),
    "scales": np.array([1, 1, 2, 2], np.float32),
}
ON_ROWS = {
    "gemm": "y = Gemm <transB = 1, alpha = 0.5> (x, v, b)",
    "matmul of three axes": "r = Reshape (x, form) y = MatMul (r, m)",
    "matmul of two": "t = Transpose <perm = [1, 0]> (x) y = MatMul (x, t)",
    "layer norm, by hand": (
        "a = ReduceMean <axes = [-1]> (x) d = Sub (x, a) q = Mul (d, d) "
        "s = ReduceMean <axes = [-1]> (q) e = Add (s, small) r = Sqrt (e) y = Div (d, r)"
    ),
    "layer norm": "y = LayerNormalization (x, gain, shift)",
    "layer norm of two axes": (
        "r = Reshape (x, form) y = LayerNormalization <axis = 1, epsilon = 0.1> (r, wide)"
    ),
    "erf": "y = Erf (x)",
    "gelu": "y = Gelu (x)",
    "gelu by tanh": 'y = Gelu <approximate = "tanh"> (x)',
    "power": "a = Abs (x) y = Pow (a, half)",
    "reciprocal": "e = Exp (x) y = Reciprocal (e)",
    "sum": "y = ReduceSum <keepdims = 0> (x, last)",
    "unsqueeze": "u = Unsqueeze (x, last) y = Squeeze (u, last)",
    "max": "n = Neg (x) y = Max (x, n)",
    "two outputs of one": "r = Relu (x) y = Identity (r)",
}
OF_ROWS: dict[str, NDArray[Any]] = {
    "v": normal(5, 6),
    "b": normal(5),
    "m": normal(3, 5),
    "form": np.array([2, 2, 3]),
    "small": np.array(1e-5, np.float32),
    "gain": normal(6),
    "shift": normal(6),
    "wide": normal(2, 3),
    "half": np.array(0.5, np.float32),
    "last": np.array([-1]),
}


# By name: what is asked of the operator, its directions, and which inputs and outputs there are.
RECURRENT = {
    "lstm": ("LSTM", "", 1, "x, w, r, b, , h, c", "y, yh, yc"),
    "lstm, no bias, no states": ("LSTM", "", 1, "x, w, r", "y"),
    "lstm, last state": ("LSTM", 'direction = "reverse"', 1, "x, w, r, b", ", yh"),
    "lstm, both ways": (
        "LSTM",
        'direction = "bidirectional"',
        2,
        "x, w, r, b, , h, c",
        "y, yh, yc",
    ),
    "gru": ("GRU", "", 1, "x, w, r, b, , h", "y, yh"),
    "gru, resets after": ("GRU", "linear_before_reset = 1", 1, "x, w, r, b, , h", "y"),
    "gru, both ways": ("GRU", 'direction = "bidirectional"', 2, "x, w, r, b", "y, yh"),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, runtimes: Process) -> Bench:
    return Bench(tmp_path_factory.mktemp("litert"), runtimes)


def compare(held: Bench, text: str, x: NDArray[np.float32], constants: dict[str, Any]) -> None:
    named = {name: array for name, array in constants.items() if f"{name})" in text
             or f"{name}," in text}  # fmt: skip
    path = held.model(text, opset=20 if "Gelu" in text else 17, **named).source
    out = path.with_suffix(".tflite")
    convert(str(path), str(out), {"x": [*x.shape]})
    wanted = held.process.load(path).run({"x": x})["y"]
    found = held.process.load(out, engine="litert").run({"x": x})["y"]
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", ON_PICTURES)
def test_operators_on_pictures(case: str, held: Bench) -> None:
    conv = "c = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)"
    text = f"g (float[n, 4, 6, 6] x) => (float y) {{ {conv} {ON_PICTURES[case]} }}"
    compare(held, text, normal(*PICTURE), CONSTANTS)


@pytest.mark.parametrize("case", ON_ROWS)
def test_operators_on_rows(case: str, held: Bench) -> None:
    text = f"g (float[n, 6] x) => (float y) {{ {ON_ROWS[case]} }}"
    compare(held, text, normal(2, 6), OF_ROWS)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers(case: str, length: int, held: Bench) -> None:
    op, more, ways, inputs, outputs = RECURRENT[case]
    width = 4 * (4 if op == "LSTM" else 3)
    constants = {
        "w": normal(ways, width, 3),
        "r": normal(ways, width, 4) / 2,
        "b": normal(ways, 2 * width),
        "h": normal(ways, 2, 4),
        "c": normal(2, 2, 4)[:ways],
    }
    named = {name: constants[name] for name in constants if f", {name}" in inputs}
    given = outputs.replace(" ", "").strip(",").split(",")
    body = f"{outputs} = {op} <hidden_size = 4{', ' * bool(more)}{more}> ({inputs})"
    heads = ", ".join(f"float {name}" for name in given)
    text = f"g (float[{length}, 2, 3] x) => ({heads}) {{ {body} }}"
    path = held.model(text, **named).source
    out = path.with_suffix(".tflite")
    convert(str(path), str(out), {"x": [length, 2, 3]})
    x = normal(length, 2, 3)
    wanted = held.process.load(path).run({"x": x})
    found = held.process.load(out, engine="litert").run({"x": x})
    for name in given:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = Det (x)", r"operator Det \(node 'y'\): there is no form of it"),
        (
            "r = Reshape (x, form) q = Squeeze (r, zero) "
            "y, h = GRU <hidden_size = 2, clip = 1.0> (q, w, r0)",
            "its gates are clipped",
        ),
        ("y = CumSum (x, last)", "operator CumSum"),
        ("y = Softmax <axis = 0> (x)", "an axis that is not the last"),
        (
            'r = Reshape (x, form) y = Resize <mode = "nearest", nearest_mode = "floor"> '
            "(r, , scales)",
            "half_pixel, floor",
        ),
        ("s = Slice (x, three, one, one, back) y = Neg (s)", "backwards"),
    ],
)
def test_what_has_no_form_is_said(body: str, said: str, held: Bench) -> None:
    constants = {"last": np.array(-1), "three": np.array([3]), "one": np.array([1])}
    constants |= {"back": np.array([-1]), "form": np.array([1, 1, 2, 6])}
    constants["scales"] = np.array([1, 1, 2, 2], np.float32)
    constants |= {"zero": np.array([0]), "w": normal(1, 6, 6), "r0": normal(1, 6, 2)}
    used = {name: array for name, array in constants.items() if name in body}
    graph = held.model(f"g (float[2, 6] x) => (float y) {{ {body} }}", **used).ir
    make_portable(graph, {"x": [2, 6]})
    with pytest.raises(Unwritable, match=said):
        translate(graph.graph)


def test_layers_are_computed_in_integers(networks: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    convert(str(networks["conv"].path), str(path), {"x": [1, 3, 12, 12]})
    model = flat.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    names = {number: name for name, number in vars(flat.BuiltinOperator).items()
             if isinstance(number, int)}  # fmt: skip
    kinds = [names[model.operatorCodes[one.opcodeIndex].builtinCode] for one in graph.operators]
    # Once in, once out where the last layer has float outputs, and nothing in between.
    assert kinds.count("QUANTIZE") == 1 and kinds.count("RELU") == 0
    int8 = flat.TensorType.INT8
    for operator, kind in zip(graph.operators, kinds, strict=True):
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D"):
            assert {graph.tensors[place].type for place in operator.outputs} == {int8}, kind
        if kind == "CONV_2D":
            weight, bias = (graph.tensors[place] for place in operator.inputs[1:])
            assert weight.type == int8 and bias.type == flat.TensorType.INT32
            assert len(weight.quantization.scale) == weight.shape[0]
    assert sorted(kinds)[:1] == ["ADD"]


def test_codes_and_scales_are_those_of_the_onnx_file(
    networks: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    convert(str(networks["mlp"].path), str(path), {"x": [1, 24]})
    model = flat.ModelT.InitFromPackedBuf(path.read_bytes())
    held = {}
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == flat.TensorType.INT8 and tensor.buffer:
            codes = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), np.int8)
            held[codes.tobytes()] = np.asarray(tensor.quantization.scale, np.float32)
    graph = load_model(networks["mlp"].path).ir.graph
    count = 0
    for node in graph:
        codes = node.inputs[0].const_value if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.numpy().dtype == np.int8:
            turned = np.ascontiguousarray(codes.numpy().T)
            np.testing.assert_array_equal(
                held[turned.tobytes()], node.inputs[1].const_value.numpy().reshape(-1)
            )
            count += 1
    assert count == 3


def test_constants_are_aligned(networks: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    convert(str(networks["conv"].path), str(path), {"x": [1, 3, 12, 12]})
    content = path.read_bytes()
    assert content[4:8] == b"TFL3"
    model = flat.ModelT.InitFromPackedBuf(content)
    large = [one.data.tobytes() for one in model.buffers if one.data is not None]
    places = [content.index(data) for data in large if len(data) >= 64]
    assert places and all(place % ALIGNMENT == 0 for place in places)
