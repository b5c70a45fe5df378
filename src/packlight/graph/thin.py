"""Removes the channels that are missed least, and fits what is left to the original.

A channel is as important as what the layers that read it lose when it is gone and the rest is
fitted again (`packlight.maths.channels`); groups of channels come from
`packlight.graph.coupling`, what is left is mended by `packlight.graph.repair`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.coupling.groups import CoupledGroup, Member
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.patches import kernel_order
from packlight.graph.renormalize import find_normalizations
from packlight.maths.channels import ChannelOrder, order_channels
from packlight.maths.moments import Moments
from packlight.maths.readers import ChannelReader


def order_groups(
    model: ir.Model,
    groups: Sequence[CoupledGroup],
    moments: Mapping[str, Moments],
    *,
    gains: Mapping[str, float] | None = None,
    damping: float = 1e-3,
) -> dict[str, ChannelOrder]:
    """For each group that can lose channels the order in which they go, by the group's name.

    moments: of what reaches the layers of `model`, in kernel order. gains: of each layer, what an
    error at its output does to the model's output, as a factor of its power; without it errors
    count as shares of the power of the layer's own output.
    Left out are groups that are pinned, and those that no layer with moments reads.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    orders = {}
    for group in groups:
        if group.pinned or group.size < 2:
            continue
        readers = []
        for member in group.readers:
            layer, seen = layers.get(member.node), moments.get(member.node)
            if layer is None or seen is None or seen.count == 0 or member.lines is None:
                continue
            readers.append(_reader(layer, member, seen, (gains or {}).get(layer.name)))
        if readers:
            orders[group.name] = order_channels(readers, damping=damping)
    return orders


def gone_of(orders: Mapping[str, ChannelOrder], keep: Mapping[str, int]) -> dict[str, list[int]]:
    """The channels to remove so that each group keeps so many."""
    return {
        name: sorted(orders[name].removed[: orders[name].channels - count])
        for name, count in keep.items()
        if count < orders[name].channels
    }


def rows_left(
    model: ir.Model, groups: Sequence[CoupledGroup], gone: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.intp]]:
    """By layer that loses outputs, the rows of its `weight_matrix` that stay, ascending.

    And by node of batch normalization that is left, the channels that stay.
    """
    layers = {layer.name: layer for layer in (*find_layers(model), *find_normalizations(model))}
    lost: dict[str, list[NDArray[np.intp]]] = {}
    for group in groups:
        for member in group.members:
            layer = layers.get(member.node)
            if layer is None or not gone.get(group.name):
                continue
            if member.role == "makes" and member.lines is not None:
                lost.setdefault(member.node, []).append(member.lines[list(gone[group.name])])
            elif member.constant is layer.weight and member.axis == layer.out_axis == 0:
                # Depthwise kernels and normalization are cut along with what passes through them.
                lost.setdefault(member.node, []).append(member.positions[list(gone[group.name])])
    return {
        name: np.setdiff1d(
            np.arange(layers[name].weight_shape[layers[name].out_axis]),
            np.concatenate([part.ravel() for part in parts]),
        )
        for name, parts in lost.items()
    }


def _reader(layer: Layer, member: Member, seen: Moments, gain: float | None) -> ChannelReader:
    """A layer as the maths of channels sees it; its errors weigh as they should."""
    order = kernel_order(layer)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    covariance = seen.second
    if layer.bias is not None:
        covariance = covariance - np.outer(seen.mean, seen.mean)
    if gain is None:
        power = float(np.einsum("oi,ij,oj->", matrix, covariance, matrix))
        gain = 1.0 / power if power > 0 else 0.0
    assert member.lines is not None
    columns = [tuple(int(place[line]) for line in lines) for lines in member.lines]
    return ChannelReader(matrix, covariance * gain, columns)
