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
from packlight.graph.edit import store_array
from packlight.graph.layers import Layer, find_layers, matrix_to_weight, weight_matrix
from packlight.graph.patches import in_plain_order, kernel_order
from packlight.graph.renormalize import find_normalizations
from packlight.graph.rewrite.packing import own_bias
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.channels import ChannelOrder, order_channels
from packlight.maths.moments import Moments, refit_kept
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


def refit_readers(
    model: ir.Model,
    pruned: ir.Model,
    groups: Sequence[CoupledGroup],
    gone: Mapping[str, Sequence[int]],
    moments: Mapping[str, Moments],
) -> None:
    """Fit the layers of `pruned` that read removed channels, in place, each by itself.

    What reaches them is taken to be what reached them in `model`, less the channels: quick, since
    nothing is run, and enough to tell what a group of channels is worth.
    """
    before = {layer.name: layer for layer in find_layers(model)}
    lost: dict[str, list[NDArray[np.intp]]] = {}
    for group in groups:
        for member in group.readers if gone.get(group.name) else ():
            if member.lines is not None:
                lost.setdefault(member.node, []).append(member.lines[list(gone[group.name])])
    for layer in find_layers(pruned):
        seen = moments.get(layer.name)
        old = before.get(layer.name)
        if layer.name not in lost or seen is None or old is None or layer.groups > 1:
            continue
        if layer.shared or not layer.weight.is_initializer():
            continue
        plain = in_plain_order(old, seen)
        matrix = weight_matrix(old).astype(np.float64)
        columns = np.concatenate([part.ravel() for part in lost[layer.name]])
        kept = np.setdiff1d(np.arange(matrix.shape[1]), columns)
        if weight_matrix(layer).shape != (len(matrix), len(kept)):
            continue  # it has lost outputs too: another group's affair
        second = plain.second
        if own_bias(layer) is not None:
            second = second - np.outer(plain.mean, plain.mean)
        fitted = refit_kept(matrix, second, second, kept.tolist(), damping=1e-3)
        store_array(layer.weight, matrix_to_weight(layer, fitted.astype(np.float32)))
        if layer.bias is not None and own_bias(layer) is not None:
            bias = constant_of(layer.bias)
            assert bias is not None
            beta = float_of(layer.node, "beta", 1.0) if layer.kind == "Gemm" else 1.0
            shift = (matrix @ plain.mean - fitted @ plain.mean[kept]) / (beta or 1.0)
            old_bias = bias.numpy()
            store_array(layer.bias, old_bias + shift.reshape(old_bias.shape))


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
