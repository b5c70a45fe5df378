"""Batch normalization that no layer takes in, seen as a layer of its own and fitted again.

In inference it is y = a x + b for each channel, a = scale / sqrt(variance + epsilon) and
b = bias - a mean: a depthwise layer of one tap. After pruning, what reaches it has other
statistics; they are estimated again, and a and b are those of least E|t - a x - b|^2, t being
what the original gives there.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import store_array
from packlight.graph.layers import Layer
from packlight.graph.rewrite.single import float_of, int_of
from packlight.graph.walk import constant_of
from packlight.maths.moments import Moments, refit_to_targets


def find_normalizations(model: ir.Model) -> tuple[Layer, ...]:
    """BatchNormalization nodes of the main graph with constants of their own, as depthwise layers.

    weight: the scale, bias: the bias. weight_shape: (channels, 1), and 1 for each axis of space,
    where the rank of what reaches the node is known.
    """
    found = []
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        source, scale, bias, mean, variance = node.inputs[:5]
        values = (scale, bias, mean, variance)
        if source is None or int_of(node, "training_mode", 0) or not all(map(_is_own, values)):
            continue
        assert scale is not None
        tensor = constant_of(scale)
        assert tensor is not None
        rank = 2 if source.shape is None else len(source.shape)
        shape = (tensor.size, 1, *(1,) * (rank - 2))
        found.append(
            Layer(
                name=str(node.name),
                op=node.op_type,
                node=node,
                weight=scale,
                weight_shape=shape,
                parameters=tensor.size,
                bytes=tensor.nbytes,
                graph_path=(),
                out_axis=0,
                bias=bias,
                kind="Conv",
                shared=False,
                weights=(scale,),
                groups=tensor.size,
            )
        )
    return tuple(found)


def fit_normalization(layer: Layer, cross: Moments, own: Moments, damping: float) -> None:
    """Give a normalization, in place, its statistics, and the scale and bias nearest to t.

    cross: moments E[t x] and own: E[x x], both of one row and column for each channel. damping:
    pull towards the factor that is there, as a share of the channel's variance.
    """
    scale, _, _, variance = (_array(value) for value in layer.node.inputs[1:5])
    epsilon = float_of(layer.node, "epsilon", 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    x, t = own.mean[:, 0], cross.mean[:, 0]
    spread = np.maximum(own.second[:, 0, 0] - x * x, 0.0)
    joint = cross.second[:, 0, 0] - t * x
    fitted = refit_to_targets(
        factor[:, None, None], joint[:, None, None], spread[:, None, None], damping=damping
    )[:, 0, 0]
    found = (fitted * np.sqrt(spread + epsilon), t, x, spread)
    for value, array in zip(layer.node.inputs[1:5], found, strict=True):
        assert value is not None
        store_array(value, array)


def _is_own(value: ir.Value | None) -> bool:
    """Whether a constant is there, and for one node only."""
    return (
        value is not None
        and constant_of(value) is not None
        and value.is_initializer()
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _array(value: ir.Value | None) -> NDArray[np.float64]:
    tensor = constant_of(value)
    assert tensor is not None
    return tensor.numpy().astype(np.float64)
