"""Weight-only choices: fewer bits in the file, the arithmetic as before.

`weights-int8` and `float16` are read back into float32 when the runtime loads the file
(Cast, and Mul with a scale an output channel: constant folding does it once), so that
the file is smaller and nothing is slower. `weights-int4` and `weights-int8-blocks` stay
packed in memory: MatMulNBits and GatherBlockQuantized, blocks of 32 weights with a scale
and a zero point each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of, home_of, in_function
from packlight.graph.layers import Layer, find_layers, matrix_to_weight, weight_matrix
from packlight.graph.rewrite.dynamic import replace_node
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.grids import IntegerGrid, quantize, scale_and_zero_point, split_blocks
from packlight.maths.rounding import round_to_nearest

_LARGEST_HALF = float(np.finfo(np.float16).max)
_INT8 = IntegerGrid(bits=8, signed=True, symmetric=True)
BLOCK = 32


def store_int8(model: ir.Model, layers: Sequence[Layer]) -> None:
    """Store all weights of the layers as int8 codes with a scale an output channel, in place.

    Other layers that share a weight go on reading it; whatever else reads it gets the codes.
    """
    edit = Editor(model)
    others = _other_layers(model, layers)
    lookups = {layer.node for layer in layers if layer.kind == "Gather"}
    done: set[ir.Value] = set()
    for layer in layers:
        for index, weight in enumerate(layer.weights):
            if weight in done:
                continue
            if layer.node in lookups and all(use.node in lookups for use in weight.uses()):
                _gather_int8(edit, layer)
            else:
                done.add(weight)
                _decode_int8(edit, layer, index, others)


def store_float16(model: ir.Model, layers: Sequence[Layer]) -> None:
    """Store all float32 weights of the layers as float16, in place; sharing as in `store_int8`."""
    edit = Editor(model)
    others = _other_layers(model, layers)
    done: set[ir.Value] = set()
    for layer in layers:
        for weight in layer.weights:
            tensor = constant_of(weight)
            if weight in done or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            done.add(weight)
            graph = home_of(weight, layer)
            half = edit.constant(graph, tensor.numpy().astype(np.float16), f"{weight.name}_half")
            cast = _cast(edit, half, tensor.dtype, f"{weight.name}_float")
            _replace_weight(graph, weight, [cast], others)


def store_blocks(
    model: ir.Model, layers: Sequence[Layer], *, bits: int, accuracy_level: int
) -> None:
    """Store MatMul, Gemm and Gather weights in blocks of 32 with `bits` (4 or 8), in place.

    accuracy_level: what MatMulNBits computes in (0: float32, 4: int8 activations).
    """
    edit = Editor(model)
    for layer in layers:
        if layer.kind == "Gather":
            _gather_blocks(edit, layer)
        else:
            _matmul_blocks(edit, layer, bits, accuracy_level)


def why_not_blocks(layer: Layer) -> str:
    """The reason why a layer cannot be stored in blocks; '' where it can."""
    if layer.kind not in ("MatMul", "Gemm", "Gather"):
        return f"{layer.op} has no operator with weights in blocks"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return "weights in blocks need float32 weights"
    if in_function(layer):
        return "it lies in a function"
    if layer.shared:
        return "its weight is used elsewhere too"
    if layer.kind == "Gather" and layer.weight_shape[1] % BLOCK:
        return f"its rows of {layer.weight_shape[1]} do not divide into blocks of {BLOCK}"
    inputs = layer.weight_shape[1 if layer.kind == "Gather" else 1 - layer.out_axis]
    if inputs < BLOCK:
        return f"its {inputs} inputs are fewer than a block of {BLOCK}"
    bias = layer.node.inputs[2] if layer.kind == "Gemm" and len(layer.node.inputs) > 2 else None
    if bias is not None and constant_of(bias) is None:
        return "its bias is computed at run time"
    return ""


def why_not_stored(layer: Layer) -> str:
    """The reason why a layer's weights cannot be stored as int8 codes; '' where they can."""
    if in_function(layer):
        return "it lies in a function"
    for weight in layer.weights:
        tensor = constant_of(weight)
        if tensor is None:
            return "its weights are computed at run time"
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"its weights are {tensor.dtype.name.lower()}"
        if weight.is_graph_output():
            return "its weight is an output of the model"
    return ""


def why_not_float16(layer: Layer) -> str:
    """The reason why a layer's weights cannot be stored as float16; '' where they can."""
    reason = why_not_stored(layer)
    if reason:
        return reason
    for weight in layer.weights:
        tensor = constant_of(weight)
        if tensor is None or tensor.dtype == ir.DataType.FLOAT16:
            continue
        largest = float(np.abs(tensor.numpy()).max(initial=0))
        if largest > _LARGEST_HALF:
            return f"its largest weight, {largest:g}, is beyond the range of float16"
    return ""


def _other_layers(model: ir.Model, layers: Sequence[Layer]) -> set[ir.Node]:
    return {layer.node for layer in find_layers(model)} - {layer.node for layer in layers}


def _decode_int8(edit: Editor, layer: Layer, index: int, others: set[ir.Node]) -> None:
    weight = layer.weights[index]
    tensor = constant_of(weight)
    assert tensor is not None
    graph = home_of(weight, layer)
    codes, scale = _round_rows(_without_alpha(layer, weight_matrix(layer, index)))
    scales = np.repeat(scale[:, None], codes.shape[1], axis=1)
    array = _plain_weight(layer, codes, index)
    packed = edit.constant(graph, array, f"{weight.name}_codes")
    shaped = _scale_shape(_plain_weight(layer, scales, index))
    factor = edit.constant(graph, shaped, f"{weight.name}_scale")
    cast = _cast(edit, packed, ir.DataType.FLOAT, f"{weight.name}_cast")
    scaled = edit.node("Mul", [cast.outputs[0], factor], f"{weight.name}_decoded")
    nodes = [cast, scaled]
    if tensor.dtype != ir.DataType.FLOAT:
        # Scales stay float32: as float16 those of small weights would lose their digits.
        nodes.append(_cast(edit, scaled.outputs[0], tensor.dtype, f"{weight.name}_narrow"))
    _replace_weight(graph, weight, nodes, others)


def _round_rows(matrix: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [rows, in] and scales [rows], each row up to its largest magnitude."""
    wide = matrix.astype(np.float64)
    reach = np.abs(wide).max(axis=1)
    scale, zero = scale_and_zero_point(-reach, reach, _INT8)
    codes: NDArray[np.int8] = round_to_nearest(wide, scale, zero, _INT8)
    return codes, np.asarray(scale, np.float32).reshape(-1)


def _cast(edit: Editor, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    return edit.node("Cast", [value], name, attributes={"to": int(to)}, dtype=to)


def _without_alpha(layer: Layer, matrix: NDArray[Any]) -> NDArray[Any]:
    alpha = float_of(layer.node, "alpha", 1.0) if layer.kind == "Gemm" else 1.0
    return matrix if alpha == 1.0 else matrix / matrix.dtype.type(alpha)


def _plain_weight(layer: Layer, matrix: NDArray[Any], index: int) -> NDArray[Any]:
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


def _gather_int8(edit: Editor, layer: Layer) -> None:
    """Look up rows of codes and their scales, then multiply: the table stays packed."""
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    tensor = constant_of(weight)
    assert tensor is not None
    codes, scale = _round_rows(weight_matrix(layer))
    home = home_of(weight, layer)
    table = edit.constant(home, codes, f"{weight.name}_codes")
    factor = edit.constant(home, scale[:, None], f"{weight.name}_scale")
    name = str(node.name)
    rows = edit.node("Gather", [table, node.inputs[1]], f"{name}_codes")
    cast = _cast(edit, rows.outputs[0], ir.DataType.FLOAT, f"{name}_cast")
    factors = edit.node("Gather", [factor, node.inputs[1]], f"{name}_scale")
    result = edit.node("Mul", [cast.outputs[0], factors.outputs[0]], f"{name}_decoded")
    nodes = [rows, cast, factors]
    if tensor.dtype != ir.DataType.FLOAT:
        nodes.append(result)
        result = _cast(edit, result.outputs[0], tensor.dtype, f"{name}_narrow")
    graph.insert_before(node, nodes)
    replace_node(graph, node, result)
    drop_unused([weight])


def _gather_blocks(edit: Editor, layer: Layer) -> None:
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    codes, scale, zero = _blocks(weight_matrix(layer), 4)
    rows = len(codes)
    packed = _pack_nibbles(codes.reshape(rows, -1))
    inputs: list[ir.Value | None] = [
        edit.constant(graph, packed, f"{weight.name}_codes", dtype=ir.DataType.UINT8),
        node.inputs[1],
        edit.constant(graph, scale, f"{weight.name}_scale"),
        edit.constant(graph, _pack_nibbles(zero), f"{weight.name}_zero_point"),
    ]
    new = edit.node(
        "GatherBlockQuantized",
        inputs,
        f"{node.name}_blocks",
        attributes={"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": 4},
        domain=CONTRIB,
    )
    replace_node(graph, node, new)
    drop_unused([weight])


def _matmul_blocks(edit: Editor, layer: Layer, bits: int, accuracy_level: int) -> None:
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    matrix = weight_matrix(layer)
    outputs, inputs = matrix.shape
    codes, scale, zero = _blocks(matrix, bits)
    pack = _pack_nibbles if bits == 4 else np.ascontiguousarray
    blocks = codes.shape[1]
    values: list[ir.Value | None] = [
        node.inputs[0],
        edit.constant(
            graph,
            pack(codes.reshape(outputs * blocks, BLOCK)).reshape(outputs, blocks, -1),
            f"{weight.name}_codes",
        ),
        edit.constant(graph, scale, f"{weight.name}_scale"),
        edit.constant(graph, pack(zero), f"{weight.name}_zero_point"),
    ]
    new = edit.node(
        "MatMulNBits",
        values,
        f"{node.name}_blocks",
        attributes={
            "K": inputs,
            "N": outputs,
            "bits": bits,
            "block_size": BLOCK,
            "accuracy_level": accuracy_level,
        },
        domain=CONTRIB,
    )
    old = [weight]
    tensor = constant_of(layer.bias)
    if tensor is not None and layer.bias is not None:
        bias = tensor.numpy().astype(np.float32) * np.float32(float_of(node, "beta", 1.0))
        added = edit.node(
            "Add",
            [new.outputs[0], edit.constant(graph, bias, f"{weight.name}_bias")],
            f"{node.name}_biased",
        )
        graph.insert_before(node, new)
        replace_node(graph, node, added)
        old.append(layer.bias)
    else:
        replace_node(graph, node, new)
    drop_unused(old)


def _blocks(
    matrix: NDArray[Any], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Codes [rows, blocks, 32], scales and zero points [rows, blocks] of a weight [rows, in]."""
    grid = IntegerGrid(bits=bits, signed=False, symmetric=False)
    rows, inputs = matrix.shape
    shape = (1, BLOCK)
    blocks = split_blocks(matrix.astype(np.float64), shape)
    scale, zero = scale_and_zero_point(blocks.min(axis=1), blocks.max(axis=1), grid)
    codes = quantize(blocks, scale[:, None], zero[:, None], grid, block_shape=(1, -1))
    count = -(-inputs // BLOCK)
    return (
        codes.astype(np.uint8).reshape(rows, count, BLOCK),
        np.asarray(scale, np.float32).reshape(rows, count),
        np.asarray(zero).astype(np.uint8).reshape(rows, count),
    )


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte along the last axis, the first in the low half."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, 1)])
    return np.ascontiguousarray(
        codes[..., 0::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)
    )


def _replace_weight(
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
