"""Weights that stay packed in memory: blocks of 32 with a scale and a zero point each.

MatMul and Gemm become onnxruntime's MatMulNBits, tables its GatherBlockQuantized. For runtimes
without these operators a MatMul may read a DequantizeLinear with blocks instead (operator set
21); onnxruntime makes a MatMulNBits of the 4-bit form itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of, in_function
from packlight.graph.layers import Layer
from packlight.graph.rewrite.decode import FOUR_BITS_FROM, operator_set
from packlight.graph.rewrite.dynamic import replace_node
from packlight.graph.rewrite.packing import BLOCK, Packed
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.blocks import pack_bits

BlockForm = Literal["MatMulNBits", "QDQ"]


def store_blocks(
    model: ir.Model,
    layers: Sequence[Layer],
    packed: Mapping[tuple[str, int], Packed],
    *,
    accuracy_level: int,
    form: BlockForm = "MatMulNBits",
) -> None:
    """Store MatMul, Gemm and Gather weights in blocks of 32, in place.

    packed: by (layer, 0), with 2, 4 or 8 bits. accuracy_level: what MatMulNBits computes in
    (0: float32, 4: int8 activations). form: "QDQ" writes products with DequantizeLinear where
    the operator set and the bits allow it.
    """
    edit = Editor(model)
    standard = form == "QDQ" and operator_set(model) >= FOUR_BITS_FROM
    for layer in layers:
        found = packed[layer.name, 0]
        if layer.kind == "Gather":
            _gather_blocks(edit, layer, found)
        elif standard and found.width > 2:
            _matmul_decoded(edit, layer, found)
        else:
            _matmul_blocks(edit, layer, found, accuracy_level)


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


def _gather_blocks(edit: Editor, layer: Layer, packed: Packed) -> None:
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    assert packed.scale is not None and packed.zero is not None
    inputs: list[ir.Value | None] = [
        edit.constant(graph, pack_bits(packed.codes, packed.width), f"{weight.name}_codes"),
        node.inputs[1],
        edit.constant(graph, packed.scale, f"{weight.name}_scale"),
        edit.constant(graph, pack_bits(packed.zero, packed.width), f"{weight.name}_zero_point"),
    ]
    new = edit.node(
        "GatherBlockQuantized",
        inputs,
        f"{node.name}_blocks",
        attributes={
            "gather_axis": 0,
            "quantize_axis": 1,
            "block_size": BLOCK,
            "bits": packed.width,
        },
        domain=CONTRIB,
    )
    replace_node(graph, node, new)
    drop_unused([weight])


def _matmul_blocks(edit: Editor, layer: Layer, packed: Packed, accuracy_level: int) -> None:
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    assert packed.scale is not None and packed.zero is not None
    outputs, inputs = packed.codes.shape
    blocks = packed.scale.shape[1]
    codes = np.pad(packed.codes, [(0, 0), (0, blocks * BLOCK - inputs)])
    values: list[ir.Value | None] = [
        node.inputs[0],
        edit.constant(
            graph,
            pack_bits(codes.reshape(outputs, blocks, BLOCK), packed.width),
            f"{weight.name}_codes",
        ),
        edit.constant(graph, packed.scale, f"{weight.name}_scale"),
        edit.constant(graph, pack_bits(packed.zero, packed.width), f"{weight.name}_zero_point"),
    ]
    new = edit.node(
        "MatMulNBits",
        values,
        f"{node.name}_blocks",
        attributes={
            "K": inputs,
            "N": outputs,
            "bits": packed.width,
            "block_size": BLOCK,
            "accuracy_level": accuracy_level,
        },
        domain=CONTRIB,
    )
    _put_product(edit, graph, layer, [new])


def _matmul_decoded(edit: Editor, layer: Layer, packed: Packed) -> None:
    """MatMul of a weight that DequantizeLinear decodes block by block, as [in, out]."""
    graph, node, weight = graph_of(layer), layer.node, layer.weight
    assert packed.scale is not None and packed.zero is not None
    kind = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}[packed.width].numpy()
    decode = edit.node(
        "DequantizeLinear",
        [
            edit.constant(graph, packed.codes.T.astype(kind), f"{weight.name}_codes"),
            edit.constant(graph, packed.scale.T, f"{weight.name}_scale"),
            edit.constant(graph, packed.zero.T.astype(kind), f"{weight.name}_zero_point"),
        ],
        f"{weight.name}_dq",
        attributes={"axis": 0, "block_size": BLOCK},
        dtype=ir.DataType.FLOAT,
    )
    new = edit.node("MatMul", [node.inputs[0], decode.outputs[0]], f"{node.name}_blocks")
    _put_product(edit, graph, layer, [decode, new])


def _put_product(edit: Editor, graph: ir.Graph, layer: Layer, nodes: list[ir.Node]) -> None:
    """Put the product that the last node gives, and a Gemm's bias, in the layer's place."""
    node, weight, new = layer.node, layer.weight, nodes[-1]
    old = [weight]
    tensor = constant_of(layer.bias)
    if tensor is not None and layer.bias is not None:
        bias = tensor.numpy().astype(np.float32) * np.float32(float_of(node, "beta", 1.0))
        added = edit.node(
            "Add",
            [new.outputs[0], edit.constant(graph, bias, f"{weight.name}_bias")],
            f"{node.name}_biased",
        )
        graph.insert_before(node, nodes)
        replace_node(graph, node, added)
        old.append(layer.bias)
    else:
        graph.insert_before(node, nodes[:-1])
        replace_node(graph, node, new)
    drop_unused(old)
