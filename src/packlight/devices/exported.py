"""A quantized graph as an exported program of PyTorch, its codes in the words of PyTorch.

QuantizeLinear and DequantizeLinear become the operators `quantized_decomposed.*`, by which the
converters of other runtimes recognize layers that are to be computed in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed

from packlight.errors import UnsupportedOperator
from packlight.graph.edit import Editor
from packlight.graph.rewrite.portable import make_portable
from packlight.graph.rewrite.single import float_of, int_of, is_standard, static_shape
from packlight.graph.torch.build import nodes_to_run
from packlight.graph.torch.module import GraphModule
from packlight.graph.walk import constant_of

_CODES = torch.ops.quantized_decomposed
_RANGE = (-128, 127, torch.int8)


def export_graph(
    model: ir.Model, shapes: Mapping[str, Sequence[int]]
) -> torch.export.ExportedProgram:
    """The program of a graph for inputs of these shapes; the graph is changed on the way.

    Raises ValueError naming an operator that PyTorch is not given.
    """
    make_portable(model, shapes)
    _decode_biases(model)
    _lay_out(model)
    try:
        module = _Portable(model).eval()
    except UnsupportedOperator as error:
        # Said to those who wanted to train it.
        raise ValueError(str(error).partition(": the model cannot be healed")[0]) from None
    inputs = tuple(
        torch.from_numpy(np.zeros(shapes[str(value.name)], _kind(value)))
        for value in model.graph.inputs
    )
    with torch.no_grad():
        return torch.export.export(module, inputs)


class _Portable(GraphModule):
    """Computes a portable graph; codes are made and read by operators that say so."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self.requires_grad_(requires_grad=False)
        pairs = zip(nodes_to_run(model.graph), self._program.steps, strict=True)
        steps = [
            step._replace(run=_in_codes(node) or _with_numbers(node, step.run))
            for node, step in pairs
        ]
        self._program = replace(self._program, steps=tuple(steps))
        for value in _zeros_of_channels(model):
            # ONNX has them in the type of the codes, kernels want them wide.
            held = self._attributes[str(value.name)]
            self._buffers[held] = self.get_buffer(held).to(torch.int64)


# Inputs that say sizes, axes or places, by operator: a program holds what they say as numbers,
# where it would take a tensor's elements for something that is known only when it runs.
_NUMBERS: dict[str, tuple[int, ...]] = {
    "Expand": (1,),
    "Pad": (1, 3),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}


def _with_numbers(node: ir.Node, run: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with constant sizes and axes as numbers."""
    places = _NUMBERS.get(node.op_type, ()) if is_standard(node) else ()
    known = {
        place: tuple(int(number) for number in tensor.numpy().reshape(-1))
        for place in places
        if place < len(node.inputs) and (tensor := constant_of(node.inputs[place])) is not None
    }
    if not known:
        return run

    def call(*arguments: Any) -> Any:
        return run(*(known.get(place, one) for place, one in enumerate(arguments)))

    return call


def _zeros_of_channels(model: ir.Model) -> set[ir.Value]:
    """The zero points of weights with one scale a channel."""
    found = set()
    for node in model.graph:
        if is_standard(node, "DequantizeLinear") and constant_of(node.inputs[0]) is not None:
            zero, scale = node.inputs[2], constant_of(node.inputs[1])
            if zero is not None and scale is not None and scale.size > 1:
                found.add(zero)
    return found


def _in_codes(node: ir.Node) -> Callable[..., Any] | None:
    """What computes a node of codes; None for others, and where PyTorch has no word for it."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    scale = constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or zero.dtype != ir.DataType.INT8:
        return None
    if scale.size == 1:
        word = _CODES.quantize_per_tensor
        if node.op_type == "DequantizeLinear":
            word = _CODES.dequantize_per_tensor
        return partial(_whole, word, float(scale.numpy().item()), int(zero.numpy().item()))
    axis = int_of(node, "axis", 1)
    return partial(_channels, axis) if node.op_type == "DequantizeLinear" else None


def _whole(word: Any, scale: float, zero: int, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = word(x, scale, zero, *_RANGE)
    return found


def _channels(axis: int, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _CODES.dequantize_per_channel(x, scale, zero, axis, *_RANGE)
    return found


def _decode_biases(model: ir.Model) -> None:
    """Let biases be floats: converters round them again, to the same codes."""
    edit = Editor(model)
    for node in list(model.graph):
        codes = constant_of(node.inputs[0]) if is_standard(node, "DequantizeLinear") else None
        if codes is None or codes.dtype != ir.DataType.INT32:
            continue
        scale = constant_of(node.inputs[1])
        assert scale is not None
        numbers = (codes.numpy() * scale.numpy().astype(np.float64)).astype(np.float32)
        value = edit.constant(model.graph, numbers, f"{node.name}_numbers")
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)


def _lay_out(model: ir.Model) -> None:
    """Lay weights of products out as [out, in], and give every code of weights a zero point.

    Sizes stand in for scales of Resize, where both say the same, and what is padded is numbers.
    """
    edit = Editor(model)
    for node in list(model.graph):
        if is_standard(node, "Gemm", "MatMul"):
            _turn_weight(edit, node)
        elif is_standard(node, "Resize"):
            _say_sizes(edit, node)
        elif is_standard(node, "Pad"):
            _pad_numbers(edit, node)
    for node in list(model.graph):
        if is_standard(node, "DequantizeLinear") and constant_of(node.inputs[0]) is not None:
            scale = constant_of(node.inputs[1])
            assert scale is not None
            zeros = np.zeros(scale.shape.numpy(), np.int8)
            node.resize_inputs(3)
            node.replace_input_with(2, edit.constant(model.graph, zeros, f"{node.name}_zeros"))


def _pad_numbers(edit: Editor, node: ir.Node) -> None:
    """Pad with 0 what codes stand for, in the place of the codes: the result is the same."""
    codes = node.inputs[0]
    encoder = None if codes is None else codes.producer()
    if codes is None or encoder is None or not is_standard(encoder, "QuantizeLinear"):
        return
    graph, given = edit.model.graph, [*encoder.inputs[1:]]
    decode = edit.node("DequantizeLinear", [codes, *given], f"{node.name}_in")
    graph.insert_before(node, decode)
    node.replace_input_with(0, decode.outputs[0])
    if len(node.inputs) > 2:
        node.replace_input_with(2, None)
    result = node.outputs[0]
    encode = edit.node("QuantizeLinear", [result, *given], f"{node.name}_out")
    for use in tuple(result.uses()):
        if use.node is not encode:
            use.node.replace_input_with(use.idx, encode.outputs[0])
    graph.insert_after(node, encode)


def _say_sizes(edit: Editor, node: ir.Node) -> None:
    scales = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    given, wanted = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if scales is None or not scales.size or given is None or wanted is None:
        return
    if np.array_equal(np.array(given) * scales.numpy(), wanted):
        node.resize_inputs(4)
        node.replace_input_with(2, None)
        sizes = np.array(wanted, np.int64)
        node.replace_input_with(3, edit.constant(edit.model.graph, sizes, f"{node.name}_sizes"))


def _turn_weight(edit: Editor, node: ir.Node) -> None:
    source, weight = node.inputs[0], node.inputs[1]
    if weight is None or int_of(node, "transA", 0) or int_of(node, "transB", 0):
        return
    if float_of(node, "alpha", 1.0) != 1.0 or float_of(node, "beta", 1.0) != 1.0:
        return
    decoder = weight.producer()
    graph = edit.model.graph
    tensor = constant_of(weight)
    if tensor is not None and len(tensor.shape) == 2:
        turned = edit.constant(graph, tensor.numpy().T, f"{node.name}_turned")
    elif decoder is not None and is_standard(decoder, "DequantizeLinear"):
        codes = constant_of(decoder.inputs[0])
        if codes is None or len(codes.shape) != 2:
            return
        inputs = [edit.constant(graph, codes.numpy().T, f"{node.name}_turned"), *decoder.inputs[1:]]
        fresh = edit.node(
            "DequantizeLinear",
            inputs,
            f"{node.name}_turned_dq",
            attributes={"axis": 1 - int_of(decoder, "axis", 1) % 2},
            dtype=ir.DataType.FLOAT,
        )
        graph.insert_before(node, fresh)
        turned = fresh.outputs[0]
    else:
        return
    # Of more rows than a Gemm may have, too: it is only computed, and never written.
    given = [source, turned, *node.inputs[2:]]
    fresh = edit.node("Gemm", given, f"{node.name}_rows", attributes={"transB": 1})
    result, made = node.outputs[0], fresh.outputs[0]
    graph.insert_before(node, fresh)
    made.type, made.shape = result.type, result.shape
    name = result.name
    result.name = edit.unused(f"{name}_before")
    result.replace_all_uses_with(made, replace_graph_outputs=True)
    made.name = name
    graph.remove(node, safe=True)


def _kind(value: ir.Value) -> Any:
    return np.float32 if value.dtype is None else value.dtype.numpy()
