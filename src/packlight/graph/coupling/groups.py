"""The coupled groups of channels of a model: what must be removed together, and what stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.coupling.follow import Followed, follow
from packlight.graph.coupling.links import Heads, Positions, Role, Weight
from packlight.graph.layers import Layer, find_layers
from packlight.graph.walk import constant_of


@dataclass(frozen=True, eq=False)
class Member:
    """A constant of which every channel of a group has its share.

    constant: as input `number` of the node `node`, which is read along `axis`.
    positions: [size, k], of each channel along that axis.
    role: "makes": a layer whose outputs are the channels; "reads": one whose inputs they are;
        "follows": anything else that must be cut along (bias, scale, slope, depthwise kernel).
    lines: [size, m], of each channel in `weight_matrix(layer, index)` of the layer `node`: the
        columns for "reads" (and for "makes" of a Gather's table, whose rows are entries), the
        rows for "makes"; None where the node is no such layer, and for "follows".
    """

    constant: ir.Value
    node: str
    number: int
    axis: int
    positions: NDArray[np.intp]
    role: Role
    lines: NDArray[np.intp] | None = None
    index: int = 0


@dataclass(frozen=True, eq=False)
class Lane:
    """Where the channels of a group lie in a tensor: along `axis`, at positions [size, k]."""

    value: str
    axis: int
    positions: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class CoupledGroup:
    """Channels that lie along the same axes of the same tensors: each can go, all with itself.

    name: of the first layer that makes them; a second group of that layer has "#2" behind it.
    size: so many channels, each removable without the others.
    members: constants, in graph order. lanes: tensors, in graph order.
    pinned: why none of them can be removed, '' where they can.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    lanes: tuple[Lane, ...]
    pinned: str = ""

    @property
    def makers(self) -> tuple[Member, ...]:
        """Layers whose outputs are the channels."""
        return tuple(member for member in self.members if member.role == "makes")

    @property
    def readers(self) -> tuple[Member, ...]:
        """Layers whose inputs are the channels."""
        return tuple(member for member in self.members if member.role == "reads")


@dataclass(frozen=True)
class _Share:
    """So many positions on an axis (by its number), and what that makes of the channel there."""

    axis: int
    count: int
    role: Role


@dataclass(frozen=True)
class _Axis:
    """An axis of a constant (as an input of a node) or of a value, and its positions."""

    place: ir.Value | tuple[ir.Node, int]
    axis: int
    positions: Positions
    weight: Weight | None = None


def find_groups(model: ir.Model, *, heads: Heads = "whole") -> tuple[CoupledGroup, ...]:
    """All channels of the main graph of a simplified float model that layers make, in groups.

    heads: where a layer makes the channels of several heads of attention, whether whole heads
    are the channels, or ("inside") the channels of a head's size, the same of every head.
    Groups divide the channels: no two have the same position of a weight. Biases and other
    vectors that several nodes share are each node's own. Bodies of If and Loop are not looked
    into: what they read stays.
    """
    return groups_of(follow(model, heads=heads), model)


def groups_of(found: Followed, model: ir.Model) -> tuple[CoupledGroup, ...]:
    """The groups in what was followed, with the constants of `model`, whose copy that was."""
    channels = found.channels
    axes = _axes(found)
    shares, makers = _shares(axes, channels.label)
    gathered: dict[tuple[int, tuple[_Share, ...]], list[int]] = {}
    for channel in sorted(makers, key=lambda c: (makers[c], c)):
        key = (int(channels.reason[channel]), shares[channel])
        gathered.setdefault(key, []).append(channel)
    layers = {layer.name: layer for layer in find_layers(found.model) if not layer.graph_path}
    originals = dict(zip(found.model.graph, model.graph, strict=True))
    taken: dict[str, int] = {}
    groups = []
    for (reason, common), members in gathered.items():
        first = axes[makers[members[0]][0]]
        assert first.weight is not None
        base = first.weight.node.name or ""
        taken[base] = taken.get(base, 0) + 1
        constants: list[Member] = []
        lanes: list[Lane] = []
        for share in common:
            item = axes[share.axis]
            positions = _positions(channels.label[item.positions], members, share.count)
            if isinstance(item.place, ir.Value):
                lanes.append(Lane(item.place.name or "", item.axis, positions))
                continue
            node, place = item.place
            value = originals[node].inputs[place]
            assert value is not None
            lines, index = _lines(layers.get(node.name or ""), item, share.role, positions)
            constants.append(
                Member(
                    value, node.name or "", place, item.axis, positions, share.role, lines, index
                )
            )
        groups.append(
            CoupledGroup(
                name=base if taken[base] == 1 else f"{base}#{taken[base]}",
                size=len(members),
                members=tuple(constants),
                lanes=tuple(lanes),
                pinned=channels.reasons[reason] if reason >= 0 else "",
            )
        )
    return tuple(groups)


def channels_of(found: Followed, group: CoupledGroup) -> list[Positions]:
    """The numbers of a group's channels in what was followed."""
    item = group.makers[0]
    node = next(node for node in found.model.graph if node.name == item.node)
    axis = found.links.input(node, item.number)[item.axis]
    assert axis is not None
    channels: Positions = found.channels.label[axis[item.positions[:, 0]]]
    return list(channels)


def _axes(found: Followed) -> list[_Axis]:
    """Every axis of the constants (once for each reader) and values, in graph order."""
    weights = {(item.node, item.number, item.axis): item for item in found.links.weights}
    looked_at = dict(found.links.known())
    axes = []
    for given in found.model.graph.inputs:
        known = looked_at.get(given, [])
        axes += [_Axis(given, k, p) for k, p in enumerate(known) if p is not None]
    for node in found.model.graph:
        for number, value in enumerate(node.inputs):
            if value is None or constant_of(value) is None:
                continue
            here = (node, number)
            axes_here = looked_at.get(here) or looked_at.get(value) or []
            axes += [
                _Axis(here, k, p, weights.get((node, number, k)))
                for k, p in enumerate(axes_here)
                if p is not None
            ]
        for result in node.outputs:
            if constant_of(result) is None:
                known = looked_at.get(result, [])
                axes += [_Axis(result, k, p) for k, p in enumerate(known) if p is not None]
    return axes


def _shares(
    axes: list[_Axis], label: Positions
) -> tuple[dict[int, tuple[_Share, ...]], dict[int, tuple[int, int]]]:
    """For each channel the axes it has positions on, how many and in which role; and for those
    that a layer makes, the first axis and position that do.
    """
    shares: dict[int, list[_Share]] = {}
    makers: dict[int, tuple[int, int]] = {}
    for number, item in enumerate(axes):
        found, first, count = np.unique(
            label[item.positions], return_index=True, return_counts=True
        )
        weight = item.weight
        for channel, at, often in zip(found.tolist(), first.tolist(), count.tolist(), strict=True):
            role: Role = "follows"
            if weight is not None:
                alone = weight.unless is not None and label[weight.unless[at]] == channel
                role = "follows" if alone else weight.role
            shares.setdefault(channel, []).append(_Share(number, often, role))
            if role == "makes":
                makers.setdefault(channel, (number, at))
    return {channel: tuple(shares[channel]) for channel in makers}, makers


def _positions(labels: Positions, channels: list[int], count: int) -> NDArray[np.intp]:
    """Where each channel lies along an axis with these labels: [channels, count]."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], channels)
    return np.asarray(order[starts[:, None] + np.arange(count)], dtype=np.intp)


def _lines(
    layer: Layer | None, item: _Axis, role: str, positions: NDArray[np.intp]
) -> tuple[NDArray[np.intp] | None, int]:
    """Rows or columns of the layer's matrix that belong to positions of an axis of its weight."""
    if layer is None or role == "follows" or isinstance(item.place, ir.Value):
        return None, 0
    value = item.place[0].inputs[item.place[1]]
    if value not in layer.weights:
        return None, 0
    index = layer.weights.index(value)
    tensor = constant_of(value)
    assert tensor is not None
    shape = tuple(tensor.shape.numpy())
    taps = int(np.prod(shape[2:]))
    if layer.kind in ("LSTM", "GRU", "RNN"):
        if role == "reads":
            return positions, index
        offsets = np.arange(shape[0]) * shape[1]
        return _spread(positions[:, :, None] + offsets), index
    if layer.kind == "Conv" and role == "reads":
        return _spread(positions[:, :, None] * taps + np.arange(taps)), index
    if layer.kind == "ConvTranspose":
        inputs = shape[0] // layer.groups
        if role == "reads":
            return _spread((positions % inputs)[:, :, None] * taps + np.arange(taps)), index
        offsets = np.arange(layer.groups) * shape[1]
        return _spread(positions[:, :, None] + offsets), index
    return positions, index


def _spread(lines: NDArray[np.intp]) -> NDArray[np.intp]:
    flat = lines.reshape(len(lines), -1)
    return np.array([np.unique(row) for row in flat], dtype=np.intp)
