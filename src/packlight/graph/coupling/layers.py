"""Rules for linear layers and products of activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from packlight.graph.coupling.links import Axes, Links, Positions, Unfollowable
from packlight.graph.coupling.pointwise import IN_SPACE, broadcast
from packlight.graph.rewrite.single import int_of
from packlight.graph.walk import constant_of


def conv(links: Links, node: ir.Node) -> None:
    """W [out, in / groups, *kernel]: group by group, inputs into outputs."""
    _convolve(links, node, out_axis=0)


def conv_transpose(links: Links, node: ir.Node) -> None:
    """W [in, out / groups, *kernel]."""
    _convolve(links, node, out_axis=1)


def _convolve(links: Links, node: ir.Node, out_axis: int) -> None:
    before, weight, after = links.input(node, 0), links.input(node, 1), links.output(node)
    inputs, outputs, rows, columns = before[1], after[1], weight[out_axis], weight[1 - out_axis]
    if inputs is None or outputs is None or rows is None or columns is None:
        raise Unfollowable(f"the number of channels of {node.op_type} {node.name!r} is not known")
    links.together(before[0], after[0])
    links.stay([*before[2:], *weight[2:], *after[2:]], IN_SPACE)
    groups = int_of(node, "group", 1)
    if groups == 1:
        links.together(rows, outputs)
        links.together(columns, inputs)
    else:
        why = f"{node.op_type} {node.name!r} computes in groups of equal size"
        group = links.new(groups)
        into = links.new(len(inputs) // groups)
        out = links.new(len(outputs) // groups)
        links.product(inputs, [group, into], why)
        links.product(outputs, [group, out], why)
        if out_axis == 0:
            links.product(rows, [group, out], why)
            links.together(columns, into)
        else:
            links.product(columns, [group, into], why)
            links.together(rows, out)
    if links.has(node, 2):
        links.together(*links.input(node, 2), outputs)
    if constant_of(node.inputs[1]) is not None:
        # In groups, axis 0 of the weight runs over all outputs (inputs, when transposed): where
        # whole groups go, these go with what their group reads (makes).
        other = outputs if out_axis else inputs
        own = rows if out_axis == 0 else columns
        per_group = other.reshape(groups, -1)[:, 0].repeat(len(own) // groups)
        unless = None if groups == 1 else per_group
        links.weight(node, 1, 0, "reads" if out_axis else "makes", unless)
        links.weight(node, 1, 1, "makes" if out_axis else "reads")


def gemm(links: Links, node: ir.Node) -> None:
    """A [rows, in] times B [in, out] plus C, each as it lies."""
    first, second, after = links.input(node, 0), links.input(node, 1), links.output(node)
    left, right = int_of(node, "transA", 0), int_of(node, "transB", 0)
    links.together(first[1 - left], second[right])
    links.together(first[left], after[0])
    links.together(second[1 - right], after[1])
    if links.has(node, 2):
        broadcast(links, links.input(node, 2), after, node)
    _operand(links, node, 1, makes=1 - right, reads=right)
    _operand(links, node, 0, makes=left, reads=1 - left)


def matmul(links: Links, node: ir.Node) -> None:
    """[..., rows, in] times [..., in, out]; the axes before are broadcast."""
    first, second, after = links.input(node, 0), links.input(node, 1), links.output(node)
    links.together(first[-1], second[-2] if len(second) > 1 else second[0])
    rows: Axes = [first[-2]] if len(first) > 1 else []
    columns: Axes = [second[-1]] if len(second) > 1 else []
    made = after[len(after) - len(rows) - len(columns) :]
    for axis, result in zip([*rows, *columns], made, strict=True):
        links.together(axis, result)
    batch = after[: len(after) - len(made)]
    broadcast(links, first[:-2], batch, node)
    broadcast(links, second[:-2], batch, node)
    if constant_of(node.inputs[0]) is None and constant_of(node.inputs[1]) is None:
        for axis in batch[1:]:
            links.heads(axis)
    if len(second) == 2:
        _operand(links, node, 1, makes=1, reads=0)
    if len(first) == 2:
        _operand(links, node, 0, makes=0, reads=1)


def _operand(links: Links, node: ir.Node, number: int, *, makes: int, reads: int) -> None:
    if constant_of(node.inputs[number]) is not None:
        links.weight(node, number, makes, "makes")
        links.weight(node, number, reads, "reads")


def recurrent(links: Links, node: ir.Node) -> None:
    """LSTM, GRU, RNN: W [directions, gates x hidden, in], R [directions, gates x hidden, hidden].

    A hidden unit goes from both directions: their outputs lie side by side in one tensor.
    """
    before, into = links.input(node, 0), links.input(node, 1)
    back = links.input(node, 2)
    hidden = back[2]
    links.together(before[-1], into[2])
    why = f"{node.op_type} {node.name!r} runs over them"
    inputs = [links.input(node, k) for k in range(len(node.inputs)) if links.has(node, k)]
    outputs = links.outputs(node)
    for axes in [before, *inputs[3:], *outputs]:
        links.stay(axes[:-1], why)
    _gated(links, into[1], hidden)
    _gated(links, back[1], hidden)
    for number in (3, 7):
        if links.has(node, number):
            _gated(links, links.input(node, number)[1], hidden)
    for number in (5, 6):
        if links.has(node, number):
            links.together(links.input(node, number)[-1], hidden)
    for axes in outputs:
        links.together(axes[-1], hidden)
    for number in (1, 2):
        if constant_of(node.inputs[number]) is not None:
            links.weight(node, number, 1, "makes")
            links.weight(node, number, 2, "reads")


def _gated(links: Links, axis: Positions | None, hidden: Positions | None) -> None:
    """The axis holds all hidden units once for each gate."""
    if axis is None or hidden is None:
        raise Unfollowable("the number of hidden units is not known")
    links.together(axis, np.tile(hidden, len(axis) // len(hidden)))
