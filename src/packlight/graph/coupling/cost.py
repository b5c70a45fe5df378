"""What channels cost: multiply-accumulates of a graph without some of them, before it is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.groups import CoupledGroup
from packlight.graph.layers import find_layers
from packlight.graph.walk import constant_of, shape_of


def macs_of_channels(
    model: ir.Model,
    groups: Sequence[CoupledGroup],
    macs: Mapping[str, int | None] | None = None,
) -> dict[str, float]:
    """Multiply-accumulates for one sample that removing one channel saves, by group.

    macs: of each layer of `model`, where they are known already (`count_macs`).
    Removing several saves a little less than their sum, where one layer makes the channels of
    one group and reads those of another: `macs_without` says how many are left.
    """
    macs = count_macs(model) if macs is None else macs
    saved = {}
    for group in groups:
        total = 0.0
        for name, weights in _shapes(model).items():
            whole = sum(math.prod(shape) for shape in weights.values())
            for member in group.members:
                shape = weights.get(member.number) if member.node == name else None
                if shape is not None and whole:
                    share = math.prod(shape) / whole
                    width = member.positions.shape[1] / shape[member.axis]
                    total += (macs.get(name) or 0) * share * width
        saved[group.name] = total
    return saved


def macs_without(
    model: ir.Model,
    groups: Sequence[CoupledGroup],
    removed: Mapping[str, Sequence[int]],
    macs: Mapping[str, int | None] | None = None,
) -> dict[str, int | None]:
    """Multiply-accumulates of each layer for one sample, by name, without these channels.

    removed: as for `remove_channels`. macs: as for `macs_of_channels`. None where a layer's
    figure is not known. Exact unless heads of attention go in front of a layer that works on
    each head by itself.
    """
    left = shapes_without(model, groups, removed)
    before = {name: _elements(weights) for name, weights in _shapes(model).items()}
    found: dict[str, int | None] = {}
    for name, count in (count_macs(model) if macs is None else macs).items():
        whole = before.get(name, 0)
        found[name] = count * _elements(left[name]) // whole if count and whole else count
    return found


def shapes_without(
    model: ir.Model, groups: Sequence[CoupledGroup], removed: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, list[int]]]:
    """By layer the shapes of its weights without these channels, by the number of its input.

    removed: as for `remove_channels`. Layers in subgraphs are not named.
    """
    left = _shapes(model)
    for group in groups:
        gone = len(set(removed.get(group.name, ())))
        for member in group.members if gone else ():
            shape = left.get(member.node, {}).get(member.number)
            if shape is not None:
                shape[member.axis] -= gone * member.positions.shape[1]
    return left


def _shapes(model: ir.Model) -> dict[str, dict[int, list[int]]]:
    """The shapes of each layer's weights, by the number of the node's input."""
    found: dict[str, dict[int, list[int]]] = {}
    for layer in find_layers(model):
        if layer.graph_path:
            continue
        for number, value in enumerate(layer.node.inputs):
            tensor = constant_of(value)
            if value in layer.weights and tensor is not None:
                found.setdefault(layer.name, {})[number] = list(shape_of(tensor))
    return found


def _elements(weights: Mapping[int, Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in weights.values())
