"""Dynamic 8-bit: weights as int8 codes, activations quantized while the model runs.

Needs no calibration. MatMul and Gemm become onnxruntime's DynamicQuantizeMatMul, LSTM its
DynamicQuantizeLSTM. Convolutions are left out: their dynamic kernels are slower than float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of, in_function
from packlight.graph.layers import Layer, weight_matrix
from packlight.graph.rewrite.single import float_of, int_of, is_standard
from packlight.graph.rewrite.weights import PAIR_LIMIT, Rounded, round_rows
from packlight.graph.walk import constant_of, shape_of


def quantize_dynamically(
    model: ir.Model,
    layers: Sequence[Layer],
    rounded: Mapping[str, Rounded],
    *,
    pair_limit: bool = True,
) -> None:
    """Make MatMul, Gemm and LSTM layers dynamic 8-bit, in place.

    rounded: the weights of MatMul and Gemm layers as codes. pair_limit: for those of LSTM.
    Raises ValueError for a layer that has no dynamic operator.
    """
    edit = Editor(model)
    for layer in layers:
        if layer.kind in ("MatMul", "Gemm"):
            _matmul(edit, layer, rounded[layer.name])
        elif layer.kind == "LSTM":
            _lstm(edit, layer, PAIR_LIMIT if pair_limit else None)
        else:
            raise ValueError(f"{layer.op} has no dynamic operator")


def why_not_dynamic(layer: Layer) -> str:
    """The reason why a layer cannot be dynamic 8-bit; '' where it can."""
    if layer.kind not in ("MatMul", "Gemm", "LSTM"):
        return f"{layer.op} has no fast dynamic 8-bit operator"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return "dynamic 8-bit needs float32 weights"
    if in_function(layer):
        return "it lies in a function"
    node = layer.node
    if layer.kind == "Gemm":
        return why_not_vector(layer)
    if layer.kind == "LSTM":
        if int_of(node, "layout", 0):
            return "a batch-first LSTM has no dynamic 8-bit operator"
        if len(node.inputs) > 7 and node.inputs[7] is not None:
            return "an LSTM with peepholes is not handled"
    return ""


def why_not_vector(layer: Layer) -> str:
    """The reason why a layer's bias is not one constant number an output; '' where it is."""
    node = layer.node
    if layer.kind == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
        return ""
    tensor = constant_of(layer.bias)
    if tensor is None:
        return "its bias is computed at run time"
    outputs = layer.weight_shape[layer.out_axis]
    if tensor.size == 1 or (tensor.size == outputs and shape_of(tensor)[-1] == outputs):
        return ""
    return "its bias is no vector"


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
    adds = _bias_behind(layer)
    if adds is not None:
        node, bias_value = adds
        tensor = constant_of(bias_value)
        assert tensor is not None
        inputs += [None, edit.constant(graph, tensor.numpy().reshape(-1), f"{name}_bias")]
        old.append(bias_value)
    elif tensor is not None and layer.bias is not None:
        bias = tensor.numpy().astype(np.float32) * np.float32(float_of(node, "beta", 1.0))
        bias = np.broadcast_to(bias.reshape(-1), (len(rounded.scale),))
        inputs += [None, edit.constant(graph, np.ascontiguousarray(bias), f"{name}_bias")]
        old.append(layer.bias)
    new = edit.node("DynamicQuantizeMatMul", inputs, f"{layer.node.name}_dynamic", domain=CONTRIB)
    replace_node(graph, node, new)
    if node is not layer.node:
        graph.remove(layer.node, safe=True)
    drop_unused(old)


def _bias_behind(layer: Layer) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a bias that alone reads a MatMul, and the bias: the operator adds it itself."""
    value = layer.node.outputs[0]
    if layer.kind != "MatMul" or value.is_graph_output() or len(value.uses()) != 1:
        return None
    (use,) = value.uses()
    if not is_standard(use.node, "Add") or use.node.graph is not layer.node.graph:
        return None
    bias = use.node.inputs[1 - use.idx]
    tensor = constant_of(bias)
    if bias is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    # As a vector behind a matrix at least: it adds no axis, and is one number an output.
    fits = shape_of(tensor) == (layer.weight_shape[layer.out_axis],)
    return (use.node, bias) if fits else None


def _lstm(edit: Editor, layer: Layer, pair_limit: int | None) -> None:
    graph, node = graph_of(layer), layer.node
    weights, recurrent = (_gates(layer, index, pair_limit) for index in (0, 1))
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


def _gates(
    layer: Layer, index: int, pair_limit: int | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [directions, in, 4 * hidden] and scales [directions, 4 * hidden] of W or R."""
    tensor = constant_of(layer.weights[index])
    assert tensor is not None
    directions, outputs, inputs = shape_of(tensor)
    matrix = weight_matrix(layer, index).astype(np.float64)
    codes, scale = round_rows(matrix, pair_limit=pair_limit)
    turned = codes.reshape(directions, outputs, inputs).transpose(0, 2, 1)
    return np.ascontiguousarray(turned), scale.reshape(directions, outputs)


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
