"""Cross-layer equalization: the same function, with channels of like ranges (Nagel et al. 2019).

Between two linear layers with at most a positively homogeneous activation in between,
f(s x) = s f(x), a channel can be scaled down behind the first and up again in the second.
A tensor whose channels have like ranges uses all its codes for every channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.layers import Layer, find_layers
from packlight.graph.walk import constant_of
from packlight.maths.balance import equalize_channels

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})

SWEEPS = 8
"""A layer in the middle of a chain belongs to two pairs: after a few sweeps they agree."""


def equalize(model: ir.Model) -> int:
    """Balance the channels of neighbouring layers, in place; give the number of pairs.

    The outputs of the model stay the same but for float rounding.
    """
    pairs = _pairs(find_layers(model))
    weights = {
        layer.name: constant_of(layer.weight).numpy().astype(np.float64)  # type: ignore[union-attr]
        for pair in pairs
        for layer in pair
    }
    biases = {
        first.name: constant_of(first.bias).numpy().astype(np.float64)  # type: ignore[union-attr]
        for first, _ in pairs
        if first.bias is not None
    }
    for _ in range(SWEEPS if pairs else 0):
        for first, second in pairs:
            w, v = weights[first.name], weights[second.name]
            rows = np.abs(w).max(axis=_others(w, first.out_axis))
            axis = _in_axis(second)
            columns = np.abs(v).max(axis=_others(v, axis))
            scale = np.asarray(equalize_channels(rows, columns))
            weights[first.name] = w / _along(scale, w.ndim, first.out_axis)
            weights[second.name] = v * _along(scale, v.ndim, axis)
            if first.name in biases:
                biases[first.name] = biases[first.name] / scale
    layers = {layer.name: layer for pair in pairs for layer in pair}
    for name, array in weights.items():
        _store(layers[name].weight, array)
    for name, array in biases.items():
        bias = layers[name].bias
        assert bias is not None
        _store(bias, array)
    return len(pairs)


def _pairs(layers: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Layers that follow one another with nothing but homogeneous nodes between them."""
    able = {layer.node: layer for layer in layers if _scalable(layer)}
    pairs = []
    for first in able.values():
        if first.groups != 1 and first.weight_shape[1] != 1:
            continue
        value = first.node.outputs[0]
        while True:
            readers = value.uses()
            if len(readers) != 1 or value.is_graph_output():
                break
            (use,) = readers
            second = able.get(use.node)
            if second is not None and use.idx == 0:
                if _channels_in(second) == first.weight_shape[first.out_axis]:
                    pairs.append((first, second))
                break
            if use.node.op_type not in HOMOGENEOUS or use.node.domain not in ("", "ai.onnx"):
                break
            if len(use.node.outputs) != 1:
                break
            value = use.node.outputs[0]
    return pairs


def _scalable(layer: Layer) -> bool:
    """Whether a layer's weight and bias are its own float32 constants."""
    if layer.kind not in ("Conv", "Gemm") or layer.graph_path or layer.shared:
        return False
    if layer.kind == "Conv" and layer.groups != 1 and layer.weight_shape[1] != 1:
        return False
    tensors = [layer.weight]
    inputs = layer.node.inputs
    if len(inputs) > 2 and inputs[2] is not None:
        if layer.bias is None or len(layer.bias.uses()) != 1:
            return False
        if constant_of(layer.bias).size != layer.weight_shape[layer.out_axis]:  # type: ignore[union-attr]
            return False
        tensors.append(layer.bias)
    return all(
        value.is_initializer() and value.dtype == ir.DataType.FLOAT and not value.is_graph_output()
        for value in tensors
    )


def _in_axis(layer: Layer) -> int:
    """The axis of the weight along which its input channels lie (a depthwise kernel's: 0)."""
    if layer.kind == "Conv":
        return 0 if layer.groups != 1 else 1
    return 1 - layer.out_axis


def _channels_in(layer: Layer) -> int:
    return layer.weight_shape[_in_axis(layer)]


def _others(array: np.ndarray, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(array.ndim) if i != axis)


def _along(scale: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _store(value: ir.Value, array: np.ndarray) -> None:
    kept = constant_of(value)
    assert kept is not None
    shaped = np.ascontiguousarray(array.reshape(tuple(kept.shape.numpy())), dtype=np.float32)
    value.const_value = ir.Tensor(shaped, name=value.name)
