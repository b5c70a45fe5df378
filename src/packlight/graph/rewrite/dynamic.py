"""Dynamic 8-bit: weights as int8 codes, activations quantized while the model runs.

Needs no calibration. MatMul and Gemm become onnxruntime's DynamicQuantizeMatMul, LSTM its
DynamicQuantizeLSTM. Convolutions are left out: their dynamic kernels are slower than float.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of
from packlight.graph.layers import Layer, weight_matrix
from packlight.graph.rewrite.quantize import Rounded
from packlight.graph.walk import constant_of
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.rounding import round_to_nearest

_GRID = IntegerGrid(bits=8, signed=True, symmetric=True)


def quantize_dynamically(model: ir.Model, layers: Sequence[Layer], rounded: dict[str, Rounded]) -> None:
    """Make MatMul, Gemm and LSTM layers dynamic 8-bit, in place.

    rounded: the weights of MatMul and Gemm layers as codes.
    Raises ValueError for a layer that has no dynamic operator.
    """
    edit = Editor(model)
    for layer in layers:
        if layer.kind in ("MatMul", "Gemm"):
            _matmul(edit, layer, rounded[layer.name])
        elif layer.kind == "LSTM":
            _lstm(edit, layer)
        else:
            raise ValueError(f"{layer.op} has no dynamic operator")


def why_not_dynamic(layer: Layer) -> str:
    """The reason why a layer cannot be dynamic 8-bit; '' where it can."""
    if layer.kind not in ("MatMul", "Gemm", "LSTM"):
        return f"{layer.op} has no fast dynamic 8-bit operator"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return "dynamic 8-bit needs float32 weights"
    if not isinstance(layer.node.graph, ir.Graph):
        return "it lies in a function"
    node = layer.node
    if layer.kind == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_of(node.inputs[2])
        if bias is None:
            return "its bias is computed at run time"
    if layer.kind == "LSTM":
        layout = node.attributes.get("layout")
        if layout is not None and layout.as_int():
            return "a batch-first LSTM has no dynamic 8-bit operator"
        if len(node.inputs) > 7 and node.inputs[7] is not None:
            return "an LSTM with peepholes is not handled"
    return ""


def _matmul(edit: Editor, layer: Layer, rounded: Rounded) -> None:
    graph, node = graph_of(layer), layer.node
    name = str(layer.weight.name)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        edit.constant(graph, np.ascontiguousarray(rounded.codes.T), f"{name}_codes"),
        edit.constant(graph, rounded.scale, f"{name}_scale"),
    ]
    old = [layer.weight]
    tensor = constant_of(layer.bias)
    if tensor is not None and layer.bias is not None:
        beta = node.attributes.get("beta")
        bias = tensor.numpy().astype(np.float32) * np.float32(beta.as_float() if beta else 1.0)
        bias = np.broadcast_to(bias.reshape(-1), (len(rounded.scale),))
        inputs += [None, edit.constant(graph, np.ascontiguousarray(bias), f"{name}_bias")]
        old.append(layer.bias)
    new = edit.node("DynamicQuantizeMatMul", inputs, f"{node.name}_dynamic", domain=CONTRIB)
    replace_node(graph, node, new)
    drop_unused(old)


def _lstm(edit: Editor, layer: Layer) -> None:
    graph, node = graph_of(layer), layer.node
    weights, recurrent = (_gates(layer, index) for index in (0, 1))
    names = [str(value.name) for value in layer.weights]
    inputs: list[ir.Value | None] = list(node.inputs)[:8]
    inputs += [None] * (8 - len(inputs))
    inputs[1] = edit.constant(graph, weights[0], f"{names[0]}_codes")
    inputs[2] = edit.constant(graph, recurrent[0], f"{names[1]}_codes")
    for name, (_, scale) in zip(names, (weights, recurrent), strict=True):
        inputs.append(edit.constant(graph, scale, f"{name}_scale"))
        inputs.append(edit.constant(graph, np.zeros(scale.shape, np.int8), f"{name}_zero_point"))
    kept = ("activation_alpha", "activation_beta", "activations", "clip", "direction")
    new = edit.node(
        "DynamicQuantizeLSTM",
        inputs,
        f"{node.name}_dynamic",
        domain=CONTRIB,
        outputs=len(node.outputs),
    )
    for key in (*kept, "hidden_size", "input_forget"):
        if key in node.attributes:
            new.attributes[key] = node.attributes[key]
    replace_node(graph, node, new)
    drop_unused(layer.weights)


def _gates(layer: Layer, index: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [directions, in, 4 * hidden] and scales [directions, 4 * hidden] of W or R."""
    tensor = constant_of(layer.weights[index])
    assert tensor is not None
    array = tensor.numpy()
    directions, outputs, inputs = array.shape
    matrix = weight_matrix(layer, index).astype(np.float64)
    reach = np.abs(matrix).max(axis=1)
    scale, zero = scale_and_zero_point(-reach, reach, _GRID)
    codes = round_to_nearest(matrix, scale, zero, _GRID).reshape(directions, outputs, inputs)
    turned = np.ascontiguousarray(codes.transpose(0, 2, 1))
    return turned, np.asarray(scale, np.float32).reshape(directions, outputs)


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`: same outputs, same readers."""
    for before, after in zip(old.outputs, new.outputs, strict=True):
        take_over(graph, before, after)
    graph.insert_before(old, new)
    graph.remove(old, safe=True)


def take_over(graph: ir.Graph, before: ir.Value, after: ir.Value) -> None:
    """Let `after` be what `before` was: its name, type, readers and place among the outputs."""
    for use in tuple(before.uses()):
        use.node.replace_input_with(use.idx, after)
    name, before.name = before.name, f"{before.name}_before"
    after.name, after.type, after.shape = name, before.type, before.shape
    for index, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[index] = after
