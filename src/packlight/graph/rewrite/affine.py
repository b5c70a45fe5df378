"""Folds scales and shifts that follow a linear layer into its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.rewrite.single import (
    bypass,
    float_of,
    int_of,
    is_standard,
    unique_value_name,
)
from packlight.graph.walk import constant_of, shape_of, walk_graphs

# A BatchNormalization that no layer precedes takes up scales and shifts like a layer:
# gamma is its weight, beta its bias.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization")

Vector = NDArray[np.float64]


def fold_batch_norm(model: ir.Model) -> bool:
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it, in place.

    Ioffe and Szegedy (2015), inference: gamma (y - mean) / sqrt(variance + epsilon) + beta.
    """
    return _fold(model, frozenset({"BatchNormalization"}))


def fold_scale_shift(model: ir.Model) -> bool:
    """Fold Mul, Div, Add and Sub by a constant per channel into the layer before them."""
    return _fold(model, frozenset({"Mul", "Div", "Add", "Sub"}))


def follows_layer(node: ir.Node) -> bool:
    """Whether this node could be folded into the linear layer whose output it reads."""
    layers = [_layer_before(node, value) for value in node.inputs if value is not None]
    return any(layer is not None for layer in layers)


def _fold(model: ir.Model, operators: frozenset[str]) -> bool:
    changed = False
    for _, graph in walk_graphs(model):
        if not isinstance(graph, ir.Graph):
            continue  # a function's body has no initializers to put new weights into
        for node in list(graph):
            if is_standard(node, *operators):
                changed |= _fold_one(model, node)
    return changed


def _fold_one(model: ir.Model, node: ir.Node) -> bool:
    for side, value in enumerate(node.inputs):
        layer = _layer_before(node, value) if value is not None else None
        if layer is None or value is None:
            continue
        weight = constant_of(layer.inputs[1])
        if weight is None:
            continue
        channels = _channels(layer, shape_of(weight))
        rank = len(shape_of(weight))
        if layer.op_type == "BatchNormalization":
            rank = len(value.shape) if value.shape is not None else 0
        scale_shift = _scale_shift(node, side, channels, rank)
        folded = scale_shift and _rescaled(layer, weight, channels, *scale_shift)
        if not folded:
            continue
        new_weight, new_bias = folded
        if new_weight is not None:
            _set_constant(model, layer, 1, new_weight, weight.dtype)
        _set_constant(model, layer, 2, new_bias, weight.dtype)
        if layer.op_type == "Gemm":
            layer.attributes.pop("beta", None)
        bypass(node, value)
        return True
    return False


def _layer_before(node: ir.Node, value: ir.Value) -> ir.Node | None:
    """The foldable layer that computes `value`, which only `node` may read."""
    layer = value.producer()
    if layer is None or not is_standard(layer, *_LAYERS):
        return None
    if layer.op_type == "BatchNormalization" and (
        node.op_type == "BatchNormalization" or len(layer.outputs) != 1 or value.shape is None
    ):
        return None
    if layer.graph is not node.graph or len(value.uses()) != 1 or value.is_graph_output():
        return None
    if len(layer.inputs) < 2 or constant_of(layer.inputs[1]) is None:
        return None
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    return layer if bias is None or constant_of(bias) is not None else None


def _channels(layer: ir.Node, shape: tuple[int, ...]) -> int:
    if layer.op_type in ("Conv", "BatchNormalization"):
        return shape[0]
    if layer.op_type == "ConvTranspose":
        return shape[1] * int_of(layer, "group", 1)
    return shape[0] if int_of(layer, "transB", 0) else shape[1]


def _scale_shift(
    node: ir.Node, side: int, channels: int, rank: int
) -> tuple[Vector, Vector] | None:
    """(scale, shift), both [channels], of node(y) = y * scale + shift; None when it is not so."""
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        training = int_of(node, "training_mode", 0) or len(node.outputs) != 1
        if side != 0 or training or not int_of(node, "spatial", 1) or len(node.inputs) != 5:
            return None
        constants = [constant_of(value) for value in node.inputs[1:]]
        if any(tensor is None or tensor.size != channels for tensor in constants):
            return None
        gamma, beta, mean, variance = (
            tensor.numpy().reshape(-1).astype(np.float64) for tensor in constants if tensor
        )
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + float_of(node, "epsilon", 1e-5))
            return scale, beta - mean * scale
    constant = constant_of(node.inputs[1 - side]) if len(node.inputs) == 2 else None
    if constant is None or "axis" in node.attributes or not constant.dtype.is_floating_point():
        return None
    vector = _per_channel(constant, channels, rank)
    if vector is None:
        return None
    if node.op_type == "Mul":
        return vector, zeros
    if node.op_type == "Add":
        return ones, vector
    if node.op_type == "Sub":
        return (ones, -vector) if side == 0 else (-ones, vector)
    if side == 0 and (vector != 0).all():  # Div
        return 1.0 / vector, zeros
    return None


def _per_channel(tensor: ir.TensorProtocol, channels: int, rank: int) -> Vector | None:
    """The constant as [channels], when broadcasting it varies along the channel axis alone."""
    axes = shape_of(tensor)
    if len(axes) > rank:
        return None
    aligned = (1,) * (rank - len(axes)) + axes
    if any(axis != 1 for number, axis in enumerate(aligned) if number != 1):
        return None
    if aligned[1] not in (1, channels):
        return None
    return np.broadcast_to(tensor.numpy().reshape(-1).astype(np.float64), (channels,))


def _rescaled(
    layer: ir.Node, weight: ir.TensorProtocol, channels: int, scale: Vector, shift: Vector
) -> tuple[NDArray[Any] | None, NDArray[Any]] | None:
    """New weight (None: unchanged) and bias, computed in float64; None when they overflow."""
    array: NDArray[Any] = weight.numpy()
    old_bias = constant_of(layer.inputs[2]) if len(layer.inputs) > 2 else None
    bias = np.zeros(channels)
    if old_bias is not None:
        found = old_bias.numpy().astype(np.float64)
        if found.size not in (1, channels) or (found.ndim > 1 and found.shape[0] != 1):
            return None
        bias = np.broadcast_to(found.reshape(-1), (channels,))
        if layer.op_type == "Gemm":
            bias = bias * float_of(layer, "beta", 1.0)
    new_bias = (bias * scale + shift).astype(array.dtype)
    if not np.isfinite(new_bias.astype(np.float64)).all():
        return None
    if (scale == 1.0).all():
        return None, new_bias
    wide = array.astype(np.float64)
    if layer.op_type == "ConvTranspose":
        groups = int_of(layer, "group", 1)
        grouped = wide.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
        wide = grouped * scale.reshape(groups, 1, array.shape[1], 1)
    elif layer.op_type == "Gemm" and not int_of(layer, "transB", 0):
        wide = wide * scale
    else:
        wide = wide * scale.reshape(-1, *[1] * (array.ndim - 1))
    new_weight = wide.reshape(array.shape).astype(array.dtype)
    if not np.isfinite(new_weight.astype(np.float64)).all():
        return None
    return new_weight, new_bias


def _set_constant(
    model: ir.Model, layer: ir.Node, number: int, array: NDArray[Any], dtype: ir.DataType
) -> None:
    old = layer.inputs[number] if number < len(layer.inputs) else None
    alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    if old is not None and alone and old.is_initializer():
        old.const_value = ir.Tensor(array, dtype=dtype, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    base = (old.name if old is not None else None) or f"{layer.name or layer.op_type}.bias"
    name = unique_value_name(model, base)
    value = ir.Value(
        name=name,
        type=ir.TensorType(dtype),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, dtype=dtype, name=name),
    )
    if layer.graph is None:
        raise ValueError(f"node {layer.name!r} belongs to no graph")
    layer.graph.register_initializer(value)
    if number >= len(layer.inputs):
        layer.resize_inputs(number + 1)
    layer.replace_input_with(number, value)
