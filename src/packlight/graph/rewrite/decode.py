"""Stored weights that the runtime decodes into floats when it loads the file.

Codes -> numbers (Cast, or Gather from a table of levels) -> Mul with the scales -> the weight's
own shape. All of it is constant, so that constant folding does it once and nothing is slower
than before. Codes of up to 4 bits are INT4 or UINT4 from operator set 21 on, else INT8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import Editor, drop_unused, graph_of, home_of
from packlight.graph.layers import Layer, find_layers, matrix_to_weight
from packlight.graph.rewrite.dynamic import replace_node
from packlight.graph.rewrite.packing import Packed, own_bias
from packlight.graph.walk import constant_of, shape_of
from packlight.maths.grids import expand_blocks

FOUR_BITS_FROM = 21
"""The operator set in which Cast reads INT4 and UINT4."""

_MOST_SCALES = 256


def store_packed(
    model: ir.Model, layers: Sequence[Layer], packed: Mapping[tuple[str, int], Packed]
) -> None:
    """Store all weights of the layers as they were packed, by (layer, number), in place.

    Other layers that share a weight go on reading it; whatever else reads it gets the codes.
    """
    edit = Editor(model)
    others = other_layers(model, layers)
    lookups = {layer.node for layer in layers if layer.kind == "Gather"}
    done: set[ir.Value] = set()
    for layer in layers:
        for index, weight in enumerate(layer.weights):
            if weight in done:
                continue
            found = packed[layer.name, index]
            alone = layer.node in lookups and all(use.node in lookups for use in weight.uses())
            if alone and found.levels is None and found.block == (1, -1) and found.width > 4:
                _look_up(edit, layer, found)
            else:
                done.add(weight)
                _decode(edit, layer, index, found, others)
                if found.bias_shift is not None:
                    _move_bias(layer, found.bias_shift, found.bias_step)


def operator_set(model: ir.Model) -> int:
    """The version of the ONNX operators that a model uses."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))


def other_layers(model: ir.Model, layers: Sequence[Layer]) -> set[ir.Node]:
    """The nodes of all layers but these."""
    return {layer.node for layer in find_layers(model)} - {layer.node for layer in layers}


def replace_weight(
    graph: ir.Graph, weight: ir.Value, decoders: list[ir.Node], others: set[ir.Node]
) -> None:
    """Let all readers of `weight` but `others` read the last decoder's output instead."""
    producer = weight.producer()
    result = decoders[-1].outputs[0]
    result.type, result.shape = weight.type, weight.shape
    for use in tuple(weight.uses()):
        if use.node not in others:
            use.node.replace_input_with(use.idx, result)
    graph.insert_before(graph[0] if producer is None else producer, decoders)
    drop_unused([weight])


def cast_node(edit: Editor, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    """A Cast of that name."""
    return edit.node("Cast", [value], name, attributes={"to": int(to)}, dtype=to)


def _decode(edit: Editor, layer: Layer, index: int, packed: Packed, others: set[ir.Node]) -> None:
    weight = layer.weights[index]
    tensor = constant_of(weight)
    assert tensor is not None
    graph, name = home_of(weight, layer), str(weight.name)
    if packed.width == 32:
        _replace_floats(edit, graph, layer, index, packed.codes, others)
        return
    if packed.block[1] == -1:
        nodes = _by_channel(edit, graph, layer, index, packed)
    else:
        nodes = _by_block(edit, graph, layer, index, packed, shape_of(tensor))
    if tensor.dtype != ir.DataType.FLOAT:
        # Scales stay float32: as float16 those of small weights would lose their digits.
        nodes.append(cast_node(edit, nodes[-1].outputs[0], tensor.dtype, f"{name}_narrow"))
    replace_weight(graph, weight, nodes, others)


def _replace_floats(
    edit: Editor,
    graph: ir.Graph,
    layer: Layer,
    index: int,
    matrix: NDArray[np.float32],
    others: set[ir.Node],
) -> None:
    """Other floats in the place of a weight: nothing has to be decoded."""
    weight = layer.weights[index]
    tensor = constant_of(weight)
    assert tensor is not None
    array = plain_weight(layer, matrix, index).astype(tensor.dtype.numpy())
    found = edit.constant(graph, array, f"{weight.name}_sparse")
    for use in tuple(weight.uses()):
        if use.node not in others:
            use.node.replace_input_with(use.idx, found)
    drop_unused([weight])


def _by_channel(
    edit: Editor, graph: ir.Graph, layer: Layer, index: int, packed: Packed
) -> list[ir.Node]:
    """Codes in the weight's own shape, scales that broadcast to it."""
    name = str(layer.weights[index].name)
    nodes = _numbers(edit, graph, plain_weight(layer, packed.codes, index), packed, name)
    if packed.scale is not None:
        wide = expand_blocks(packed.scale, packed.codes.shape, packed.block)
        scales = np.broadcast_to(wide, packed.codes.shape)
        shaped = _scale_shape(plain_weight(layer, scales, index))
        factor = edit.constant(graph, shaped, f"{name}_scale")
        nodes.append(edit.node("Mul", [nodes[-1].outputs[0], factor], f"{name}_decoded"))
    return nodes


def _by_block(
    edit: Editor,
    graph: ir.Graph,
    layer: Layer,
    index: int,
    packed: Packed,
    shape: tuple[int, ...],
) -> list[ir.Node]:
    """Codes as [rows, blocks, size], scaled, then laid out as the weight.

    An incomplete last block is filled up, and cut off again once it is decoded.
    """
    assert packed.scale is not None
    name = str(layer.weights[index].name)
    rows, inputs = packed.codes.shape
    size = packed.block[1]
    blocks = -(-inputs // size)
    codes = np.pad(packed.codes, [(0, 0), (0, blocks * size - inputs)])
    numbers = _numbers(edit, graph, codes.reshape(rows, blocks, size), packed, name)
    scale = np.broadcast_to(packed.scale, (rows, blocks)).reshape(rows, blocks, 1)
    factor, scales = _scales(edit, graph, scale, name)
    scaled = edit.node("Mul", [numbers[-1].outputs[0], factor], f"{name}_scaled")
    nodes = [*numbers, *scales, scaled]

    def step(operator: str, *inputs: NDArray[Any], **attributes: Any) -> None:
        values: list[ir.Value | None] = [nodes[-1].outputs[0]]
        values += [edit.constant(graph, one, f"{name}_{operator.lower()}") for one in inputs]
        nodes.append(
            edit.node(operator, values, f"{name}_{operator.lower()}", attributes=attributes)
        )

    if blocks * size > inputs:
        step("Reshape", np.array([rows, blocks * size]))
        step("Slice", np.array([0]), np.array([inputs]), np.array([1]))
    if layer.kind == "ConvTranspose":
        outputs = shape[1]
        step("Reshape", np.array([layer.groups, outputs, shape[0] // layer.groups, -1]))
        step("Transpose", perm=[0, 2, 1, 3])
    elif layer.kind in ("Gemm", "MatMul", "Attention") and layer.out_axis == 1:
        step("Reshape", np.array([rows, inputs]))
        step("Transpose", perm=[1, 0])
    step("Reshape", np.array(shape))
    return nodes


def _numbers(
    edit: Editor, graph: ir.Graph, codes: NDArray[Any], packed: Packed, name: str
) -> list[ir.Node]:
    """What turns codes into the numbers that the scales multiply."""
    if packed.width <= 4 and operator_set(edit.model) >= FOUR_BITS_FROM:
        kind = ir.DataType.INT4 if packed.levels is None else ir.DataType.UINT4
        codes = codes.astype(kind.numpy())
    value = edit.constant(graph, codes, f"{name}_codes")
    if packed.levels is None:
        return [cast_node(edit, value, ir.DataType.FLOAT, f"{name}_cast")]
    table = edit.constant(graph, packed.levels, f"{name}_levels")
    return _from_table(edit, table, value, name)


def _from_table(edit: Editor, table: ir.Value, codes: ir.Value, name: str) -> list[ir.Node]:
    index = cast_node(edit, codes, ir.DataType.INT32, f"{name}_index")
    found = edit.node("Gather", [table, index.outputs[0]], f"{name}_values")
    found.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return [index, found]


def _scales(
    edit: Editor, graph: ir.Graph, scale: NDArray[np.float32], name: str
) -> tuple[ir.Value, list[ir.Node]]:
    """Scales of blocks: as bytes that count the few there are, where that is smaller."""
    kinds, codes = np.unique(scale, return_inverse=True)
    if len(kinds) > _MOST_SCALES or scale.size + 4 * kinds.size + _TABLE_BYTES > 4 * scale.size:
        return edit.constant(graph, scale, f"{name}_scale"), []
    table = edit.constant(graph, kinds, f"{name}_scale_levels")
    value = edit.constant(graph, codes.reshape(scale.shape).astype(np.uint8), f"{name}_scale")
    nodes = _from_table(edit, table, value, f"{name}_scale")
    return nodes[-1].outputs[0], nodes


_TABLE_BYTES = 200
"""What the nodes that read a table take in a file."""


def _move_bias(layer: Layer, shift: NDArray[np.float64], step: float) -> None:
    """Add to the bias what the codes leave to it, in steps that take few bits."""
    bias = own_bias(layer)
    assert bias is not None and layer.bias is not None
    moved = bias.numpy().astype(np.float64) + shift.reshape(bias.numpy().shape)
    if step > 0:
        moved = np.rint(moved / step) * step
    layer.bias.const_value = ir.Tensor(moved.astype(np.float32), name=bias.name)


def plain_weight(layer: Layer, matrix: NDArray[Any], index: int) -> NDArray[Any]:
    """`matrix_to_weight` without dividing out a Gemm's alpha."""
    if layer.kind == "Gemm":
        return np.ascontiguousarray(matrix if layer.out_axis == 0 else matrix.T)
    return matrix_to_weight(layer, matrix, index)


def _scale_shape(scales: NDArray[Any]) -> NDArray[Any]:
    """Keep one element along the axes on which the scales, laid out as the weight, are equal."""
    for axis in range(scales.ndim):
        first = scales.take([0], axis=axis)
        if np.array_equal(scales, np.broadcast_to(first, scales.shape)):
            scales = first
    return scales


def _look_up(edit: Editor, layer: Layer, packed: Packed) -> None:
    """Look up rows of codes and their scales, then multiply: the table stays packed."""
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    tensor = constant_of(weight)
    assert tensor is not None and packed.scale is not None
    home = home_of(weight, layer)
    table = edit.constant(home, packed.codes, f"{weight.name}_codes")
    factor = edit.constant(home, packed.scale, f"{weight.name}_scale")
    name = str(node.name)
    rows = edit.node("Gather", [table, node.inputs[1]], f"{name}_codes")
    cast = cast_node(edit, rows.outputs[0], ir.DataType.FLOAT, f"{name}_cast")
    factors = edit.node("Gather", [factor, node.inputs[1]], f"{name}_scale")
    result = edit.node("Mul", [cast.outputs[0], factors.outputs[0]], f"{name}_decoded")
    nodes = [rows, cast, factors]
    if tensor.dtype != ir.DataType.FLOAT:
        nodes.append(result)
        result = cast_node(edit, result.outputs[0], tensor.dtype, f"{name}_narrow")
    graph.insert_before(node, nodes)
    replace_node(graph, node, result)
    drop_unused([weight])
