"""Removes channels from a graph, for good: weights, shapes and counts become smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.errors import UnusableModel, WrongUsage
from packlight.graph.coupling.follow import Followed, follow
from packlight.graph.coupling.groups import CoupledGroup, channels_of, groups_of
from packlight.graph.coupling.links import Heads
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.edit import Editor
from packlight.graph.rewrite.mend import Cut, mend
from packlight.graph.rewrite.noops import remove_unused
from packlight.graph.walk import constant_of


def remove_channels(
    model: ir.Model, removed: Mapping[str, Sequence[int]], *, heads: Heads = "whole"
) -> ir.Model:
    """A copy of a model without these channels of its coupled groups.

    removed: for each group (its name from `find_groups(model, heads=heads)`) numbers of
    channels, 0 to size - 1. Weights and whatever else goes along are cut, shapes, sizes and
    counts mended. What is left computes what the model computes when the removed channels are
    0 wherever a layer reads them. Raises WrongUsage for an unknown or pinned group, numbers
    it does not have, and when no channel would be left.
    """
    found = follow(model, heads=heads)
    groups = {group.name: group for group in groups_of(found, found.model)}
    gone = np.zeros(len(found.channels.label), dtype=bool)
    for name, numbers in removed.items():
        chosen = _check(groups.get(name), name, numbers)
        if len(chosen):
            gone[np.asarray(channels_of(found, groups[name]))[chosen]] = True
    stays: NDArray[np.bool_] = ~gone[found.channels.label]
    expected = _expected_shapes(found, stays)
    _cut(found, stays)
    _check_shapes(found.model, model, expected)
    return found.model


def _check(group: CoupledGroup | None, name: str, numbers: Sequence[int]) -> NDArray[np.intp]:
    """The numbers, each once, in order."""
    if group is None:
        raise WrongUsage(
            f"The model has no group of channels {name!r}: take a name that find_groups gives."
        )
    chosen = np.unique(np.asarray(numbers, dtype=np.intp))
    if not len(chosen):
        return chosen
    if group.pinned:
        raise WrongUsage(
            f"The channels of group {name!r} cannot be removed, because {group.pinned}: "
            "leave this group out."
        )
    if chosen[0] < 0 or chosen[-1] >= group.size:
        wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
        raise WrongUsage(
            f"Group {name!r} has no channel {wrong}: it has {group.size}, numbered from 0."
        )
    if len(chosen) == group.size:
        raise WrongUsage(
            f"All {group.size} channels of group {name!r} would be removed: leave one at least."
        )
    return chosen


def _expected_shapes(found: Followed, stays: NDArray[np.bool_]) -> dict[str, list[int | None]]:
    return {
        place.name or "": [None if axis is None else int(stays[axis].sum()) for axis in axes]
        for place, axes in found.links.known()
        if isinstance(place, ir.Value) and constant_of(place) is None
    }


def _cut(found: Followed, stays: NDArray[np.bool_]) -> None:
    """Cut the constants and mend the nodes of the copy that was followed, in place."""
    graph = found.model.graph
    axes = dict(found.links.known())
    edit = Editor(found.model)
    cut = Cut(edit, graph, axes, stays)
    shared: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        kept = [cut.input(node, number) for number in range(len(node.inputs))]
        mend(cut, node)
        for number, axes_kept in enumerate(kept):
            value = node.inputs[number]
            if value is None or all(axis is None or axis.all() for axis in axes_kept):
                continue
            tensor = constant_of(value)
            if tensor is None:
                continue
            own = (node, number) in axes
            if own or value not in shared:
                array = tensor.numpy()
                for place, axis in enumerate(axes_kept):
                    if axis is not None and not axis.all():
                        array = array.compress(axis, axis=place)
                new = edit.constant(graph, array, value.name or "weight", dtype=tensor.dtype)
                if own:
                    node.replace_input_with(number, new)
                    continue
                shared[value] = new
            node.replace_input_with(number, shared[value])
    remove_unused(found.model)


def _check_shapes(
    pruned: ir.Model, model: ir.Model, expected: Mapping[str, Sequence[int | None]]
) -> None:
    """Infer all shapes anew, hold them to what was expected, and give the interface back."""
    infer_shapes(pruned)
    values = [value for node in pruned.graph for value in node.outputs]
    for value in [*pruned.graph.inputs, *values]:
        wanted = expected.get(value.name or "")
        if wanted is None or value.shape is None:
            continue
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        fits = len(sizes) == len(wanted) and all(
            a is None or b is None or a == b for a, b in zip(sizes, wanted, strict=True)
        )
        if not fits:
            raise UnusableModel(
                f"Without its channels, tensor {value.name!r} has the shape {sizes}, where "
                f"{list(wanted)} was expected: please report this model, and prune others."
            )
    for mine, theirs in (
        (pruned.graph.inputs, model.graph.inputs),
        (pruned.graph.outputs, model.graph.outputs),
    ):
        for value, before in zip(mine, theirs, strict=True):
            value.shape = before.shape.copy() if before.shape is not None else None
