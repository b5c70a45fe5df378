"""The vectors that a linear layer's weight matrix is multiplied with, cut out of activations.

Columns stand in the order in which kernels walk them: kernel taps outside, channels inside.
Two columns that an x86 kernel adds in one saturating step are then neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer
from packlight.maths.moments import Moments, reorder_moments


def kernel_order(layer: Layer) -> NDArray[np.intp]:
    """Order in which a kernel takes the columns of `weight_matrix(layer)`: matrix[:, order].

    A Conv's matrix is [out, channels * taps]; in kernel order it is [out, taps * channels].
    """
    if layer.kind != "Conv":
        return np.arange(layer.weight_shape[1 - layer.out_axis])
    channels, taps = layer.weight_shape[1], math.prod(layer.weight_shape[2:])
    return np.arange(channels * taps).reshape(channels, taps).T.ravel()


def in_plain_order(layer: Layer, moments: Moments) -> Moments:
    """The same moments in the order of `weight_matrix` instead of the kernel's."""
    order = kernel_order(layer)
    place = np.argsort(order)
    if np.array_equal(place, np.arange(len(place))):
        return moments
    return reorder_moments(moments, place)


def rows_reaching(
    layer: Layer, activation: NDArray[Any], limit: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """At most `limit` of the vectors that reach a layer, [rows, in], columns in kernel order.

    activation: the layer's input; Conv [n, channels, *space], Gemm and MatMul [..., in].
    Where there are more than `limit`, positions are drawn, none twice. A Conv with groups gets
    [groups, rows, in]: the same positions of each group's channels.
    """
    if layer.kind != "Conv":
        rows = activation.reshape(-1, activation.shape[-1])
        picked = _draw(len(rows), limit, generator)
        return np.asarray(rows[picked], dtype=np.float32)
    kernel = layer.weight_shape[2:]
    rank = len(kernel)
    strides = ints(layer.node, "strides", [1] * rank)
    dilations = ints(layer.node, "dilations", [1] * rank)
    space = activation.shape[2:]
    pads = conv_pads(layer.node, space, kernel, strides, dilations)
    sizes = [
        (space[i] + pads[i] + pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    ]
    count = activation.shape[0] * math.prod(sizes)
    place = np.unravel_index(_draw(count, limit, generator), (activation.shape[0], *sizes))
    padded = np.pad(activation, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    taps = []
    for tap in np.ndindex(*kernel):
        at = tuple(place[1 + i] * strides[i] + tap[i] * dilations[i] for i in range(rank))
        taps.append(padded[(place[0], slice(None), *at)])
    if layer.groups == 1:
        return np.concatenate(taps, axis=1).astype(np.float32, copy=False)
    stack = np.stack(taps, axis=1).reshape(len(place[0]), len(taps), layer.groups, -1)
    grouped = stack.transpose(2, 0, 1, 3).reshape(layer.groups, len(place[0]), -1)
    return grouped.astype(np.float32, copy=False)


def rows_leaving(
    layer: Layer, activation: NDArray[Any], limit: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """What a layer gives where `rows_reaching` looks with an equal generator: [rows, out].

    activation: a tensor shaped like the layer's output; Conv [n, out, *space], Gemm and MatMul
    [..., out]. A Conv with groups gets [groups, rows, out / groups].
    """
    if layer.kind == "Conv":
        activation = np.moveaxis(activation, 1, -1)
    rows = activation.reshape(-1, activation.shape[-1])
    drawn = rows[_draw(len(rows), limit, generator)]
    if layer.groups > 1:
        drawn = drawn.reshape(len(drawn), layer.groups, -1).transpose(1, 0, 2)
    return np.asarray(drawn, dtype=np.float32)


def conv_pads(
    node: ir.Node,
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[int]:
    """Begin and end pads of a Conv, [2 * rank], with `auto_pad` worked out."""
    rank = len(kernel)
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if mode == "NOTSET":
        return ints(node, "pads", [0] * 2 * rank)
    if mode == "VALID":
        return [0] * 2 * rank
    begin, end = [], []
    for i in range(rank):
        output = math.ceil(space[i] / strides[i])
        reach = dilations[i] * (kernel[i] - 1) + 1
        total = max((output - 1) * strides[i] + reach - space[i], 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    """An attribute that is a list of integers."""
    attribute = node.attributes.get(name)
    return list(attribute.as_ints()) if attribute is not None else default


def _draw(count: int, limit: int, generator: np.random.Generator) -> NDArray[np.intp]:
    if count <= limit:
        return np.arange(count)
    # With replacement, then without the doubles: a permutation of millions would cost more.
    return np.unique(generator.integers(0, count, limit)).astype(np.intp)
