"""Finds the linear layers of a graph and sees each weight as a matrix [out, in]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.walk import constant_of, shape_of, walk_nodes

Kind = Literal[
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Gather",
    "LSTM",
    "GRU",
    "RNN",
    "Attention",
    "EmbedLayerNormalization",
]


@dataclass(frozen=True)
class Layer:
    """A node that multiplies with, or looks up in, a constant weight.

    name: unique in the model (the node's). op: the operator, kind: how to read it.
    weight: the constant; weights: all of them (W and R of a recurrent layer, the three
        tables of EmbedLayerNormalization), `weight` first; weight_shape: of `weight`.
    parameters, bytes: of all weights, without bias.
    graph_path: () in the main graph, otherwise the (node.attribute, ...) it lies in.
    out_axis: the axis of `weight` along which outputs lie (within a group, where groups > 1).
    shared: one of the weights is used elsewhere too, or is an output of the graph.
    """

    name: str
    op: str
    node: ir.Node
    weight: ir.Value
    weight_shape: tuple[int, ...]
    parameters: int
    bytes: int
    graph_path: tuple[str, ...]
    out_axis: int
    bias: ir.Value | None
    kind: Kind
    shared: bool
    weights: tuple[ir.Value, ...]
    groups: int = 1


@dataclass(frozen=True)
class Unquantizable:
    """A node that looks like a linear layer, and why it is none that can be compressed."""

    name: str
    op: str
    graph_path: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Form:
    """How an operator holds its weights: input numbers, ranks, and where the bias is."""

    kind: Kind
    domain: str
    weights: tuple[int, ...]
    ranks: tuple[int, ...]
    bias: int | None
    out_axis: Callable[[ir.Node], int]


def _transposed(node: ir.Node) -> int:
    return 0 if _int(node, "transB", 0) else 1


_FORMS: dict[tuple[str, str], _Form] = {
    (form.domain, form.kind): form
    for form in (
        _Form("Conv", "", (1,), (3, 4, 5), 2, lambda _: 0),
        _Form("ConvTranspose", "", (1,), (3, 4, 5), 2, lambda _: 1),
        _Form("Gemm", "", (1,), (2,), 2, _transposed),
        _Form("MatMul", "", (1,), (2,), None, lambda _: 1),
        _Form("Gather", "", (0,), (2,), None, lambda _: 0),
        _Form("LSTM", "", (1, 2), (3,), 3, lambda _: 1),
        _Form("GRU", "", (1, 2), (3,), 3, lambda _: 1),
        _Form("RNN", "", (1, 2), (3,), 3, lambda _: 1),
        _Form("Attention", "com.microsoft", (1,), (2,), 2, lambda _: 1),
        _Form("EmbedLayerNormalization", "com.microsoft", (2, 3, 4), (2,), None, lambda _: 0),
    )
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators that hold weights already compressed by somebody.
_ALREADY_QUANTIZED = _words(
    "QLinearConv QLinearMatMul ConvInteger MatMulInteger QGemm QAttention QEmbedLayerNormalization "
    "MatMulNBits MatMulBnb4 MatMulFpQ4 GatherBlockQuantized DynamicQuantizeMatMul "
    "DynamicQuantizeLSTM MatMulIntegerToFloat"
)
_OTHER_LINEAR = _words(
    "FusedConv FusedGemm FusedMatMul TransposeMatMul NhwcConv Einsum DeformConv MultiHeadAttention "
    "GroupQueryAttention DecoderMaskedMultiHeadAttention MoE QMoE"
)


def find_layers(model: ir.Model) -> tuple[Layer, ...]:
    """The linear layers with constant float weights, in graph order, main graph first.

    Looks into subgraphs and functions. What is left out has its reason in `find_unquantizable`.
    """
    found = (_read(path, node) for path, node in walk_nodes(model))
    return tuple(layer for layer in found if isinstance(layer, Layer))


def find_unquantizable(model: ir.Model) -> tuple[Unquantizable, ...]:
    """The nodes that multiply matrices but are no `Layer`, each with the reason."""
    found = (_read(path, node) for path, node in walk_nodes(model))
    return tuple(item for item in found if isinstance(item, Unquantizable))


def is_quantized(node: ir.Node) -> bool:
    """Whether this operator computes with, or stores, already quantized numbers."""
    return node.op_type in _ALREADY_QUANTIZED or node.op_type.startswith(("QLinear", "QMoE"))


def weight_matrix(layer: Layer, index: int = 0) -> NDArray[Any]:
    """The weight `layer.weights[index]` as it multiplies: [out, in], float32 (or float64).

    Conv [out, in / groups * kernel], groups one below the other; Gemm times its alpha;
    recurrent layers [directions * gates * hidden, in]; tables one row per entry.
    """
    tensor = constant_of(layer.weights[index])
    if tensor is None:
        raise ValueError(f"the weight of layer {layer.name!r} is no longer constant")
    array: NDArray[Any] = tensor.numpy()
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if layer.kind == "ConvTranspose":
        inputs, outputs = array.shape[0] // layer.groups, array.shape[1]
        grouped = array.reshape(layer.groups, inputs, outputs, -1)
        return grouped.transpose(0, 2, 1, 3).reshape(layer.groups * outputs, -1)
    if layer.kind in ("LSTM", "GRU", "RNN"):
        return array.reshape(-1, array.shape[-1])
    if layer.kind in ("Gemm", "MatMul", "Attention"):
        matrix = array if layer.out_axis == 0 else array.T
        alpha = _alpha(layer.node)
        return np.ascontiguousarray(matrix if alpha == 1.0 else matrix * matrix.dtype.type(alpha))
    return array.reshape(array.shape[0], -1)


def matrix_to_weight(layer: Layer, matrix: NDArray[Any], index: int = 0) -> NDArray[Any]:
    """The inverse of `weight_matrix`: the array to store, in the weight's own shape.

    The element type is the matrix's, so that integers [out, in] can be laid out too
    (a Gemm's alpha is divided out of floats only).
    """
    tensor = constant_of(layer.weights[index])
    if tensor is None:
        raise ValueError(f"the weight of layer {layer.name!r} is no longer constant")
    shape = shape_of(tensor)
    if layer.kind == "ConvTranspose":
        inputs, outputs = shape[0] // layer.groups, shape[1]
        grouped = matrix.reshape(layer.groups, outputs, inputs, -1)
        return np.ascontiguousarray(grouped.transpose(0, 2, 1, 3)).reshape(shape)
    if layer.kind in ("Gemm", "MatMul", "Attention"):
        alpha = _alpha(layer.node)
        if alpha != 1.0 and np.issubdtype(matrix.dtype, np.floating):
            matrix = matrix / matrix.dtype.type(alpha)
        return np.ascontiguousarray(matrix if layer.out_axis == 0 else matrix.T)
    return matrix.reshape(shape)


def _read(path: tuple[str, ...], node: ir.Node) -> Layer | Unquantizable | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    form = _FORMS.get((domain, node.op_type))
    if form is None or len(node.inputs) <= form.weights[0]:
        return _other(path, node)
    values = [node.inputs[number] for number in form.weights if number < len(node.inputs)]
    tensors = [constant_of(value) for value in values]
    if form.kind == "Gather" and not _is_table(node, tensors[0]):
        return None
    reason = _why_not(node, form, values[0], tensors[0])
    if reason:
        return Unquantizable(node.name or "", node.op_type, path, reason)
    weights, held = [], []
    for value, tensor in zip(values, tensors, strict=True):
        if value is not None and tensor is not None:
            weights.append(value)
            held.append(tensor)
    if form.kind in ("LSTM", "GRU", "RNN") and len(weights) != len(form.weights):
        return Unquantizable(
            node.name or "", node.op_type, path, "its recurrent weights are computed at run time"
        )
    bias = node.inputs[form.bias] if form.bias and form.bias < len(node.inputs) else None
    return Layer(
        name=node.name or "",
        op=node.op_type,
        node=node,
        weight=weights[0],
        weight_shape=shape_of(held[0]),
        parameters=sum(tensor.size for tensor in held),
        bytes=sum(tensor.nbytes for tensor in held),
        graph_path=path,
        out_axis=form.out_axis(node),
        bias=bias if constant_of(bias) is not None else None,
        kind=form.kind,
        shared=any(len(value.uses()) > 1 or value.is_graph_output() for value in weights),
        weights=tuple(weights),
        groups=_int(node, "group", 1) if form.kind in ("Conv", "ConvTranspose") else 1,
    )


def _why_not(
    node: ir.Node, form: _Form, value: ir.Value | None, tensor: ir.TensorProtocol | None
) -> str:
    """The reason why this is no layer, '' when it is one."""
    if tensor is None:
        return _why_not_constant(node, value)
    if not tensor.dtype.is_floating_point():
        return f"its weights are {tensor.dtype.name.lower()}, not floating point"
    if tensor.dtype.bitwidth < 16:
        return f"its weights are stored in 8 bits or fewer already ({tensor.dtype.name.lower()})"
    shape = shape_of(tensor)
    rank = len(shape)
    if form.kind == "MatMul" and rank != 2:
        return f"its weight has {rank} axes (a batch of matrices); only 2 are handled"
    if rank not in form.ranks:
        return f"its weight has {rank} axes, which this operator does not allow"
    if math.prod(shape) == 0:
        return "its weight is empty"
    if form.kind == "Gemm" and _int(node, "transA", 0):
        return "its input is transposed (transA), which is not handled"
    if form.kind == "Gemm" and _alpha(node) == 0.0:
        return "its weight is multiplied by zero (alpha)"
    groups = _int(node, "group", 1)
    if groups < 1 or shape[0] % groups:
        return f"its weight cannot be split into {groups} groups"
    return ""


def _why_not_constant(node: ir.Node, value: ir.Value | None) -> str:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its weights are quantized already"
    if node.op_type == "MatMul":
        if constant_of(node.inputs[0]) is not None:
            return "its constant is the left operand, which is not handled"
        return "it multiplies two activations and has no weights"
    if value is not None and value.is_graph_input():
        return "its weights are an input of the graph or function"
    return "its weights are computed at run time"


def _other(path: tuple[str, ...], node: ir.Node) -> Unquantizable | None:
    if is_quantized(node):
        return Unquantizable(node.name or "", node.op_type, path, "it is quantized already")
    if node.op_type in _OTHER_LINEAR:
        reason = f"the operator {node.op_type} is not handled"
        return Unquantizable(node.name or "", node.op_type, path, reason)
    return None


def _is_table(node: ir.Node, tensor: ir.TensorProtocol | None) -> bool:
    """Whether a Gather looks up rows of a constant matrix of floats (an embedding)."""
    return (
        tensor is not None
        and tensor.dtype.is_floating_point()
        and len(tensor.shape) == 2
        and _int(node, "axis", 0) in (0, -2)
    )


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INT:
        return default
    return attribute.as_int()


def _alpha(node: ir.Node) -> float:
    attribute = node.attributes.get("alpha") if node.op_type == "Gemm" else None
    if attribute is None or attribute.is_ref():
        return 1.0
    return attribute.as_float()
