"""Rules for operators that work element by element, on windows in space, or over whole axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from packlight.graph.coupling.links import Axes, Links, Unfollowable
from packlight.graph.coupling.vectors import axes_of, entries
from packlight.graph.rewrite.single import int_of

IN_SPACE = "they are positions in space"


def elementwise(links: Links, node: ir.Node) -> None:
    """Each element by itself; shorter shapes are broadcast from the right."""
    results = links.outputs(node)
    inputs = [links.input(node, k) for k in range(len(node.inputs)) if links.has(node, k)]
    for axes in [*inputs, *results]:
        broadcast(links, axes, results[0], node)


def broadcast(links: Links, axes: Axes, onto: Axes, node: ir.Node) -> None:
    """Axes of equal size go together, from the right; one of length 1 is spread and stays."""
    for axis, result in zip(reversed(axes), reversed(onto), strict=False):
        if axis is None and result is None:
            continue
        if axis is not None and result is not None and len(axis) == len(result):
            links.together(axis, result)
        elif axis is not None and len(axis) == 1:
            links.stay([axis], f"{node.op_type} {node.name!r} spreads it over others")
        else:
            links.stay([axis, result], f"{node.op_type} {node.name!r} meets an unknown size")


def over_axis(default: int, *, behind_until: int = 0) -> Callable[[Links, ir.Node], None]:
    """A rule for operators that work along one axis, which stays; the others are untouched.

    behind_until: before this operator set they worked over all axes behind it too.
    """

    def rule(links: Links, node: ir.Node) -> None:
        elementwise(links, node)
        axes = links.input(node, 0)
        imports = node.graph.opset_imports if node.graph is not None else {}
        old = imports.get("", behind_until) < behind_until
        if axes:
            first = int_of(node, "axis", 1 if old else default) % len(axes)
            mixed = axes[first:] if old else [axes[first]]
            links.stay(mixed, f"{node.op_type} {node.name!r} mixes them")

    return rule


def from_axis(default: int) -> Callable[[Links, ir.Node], None]:
    """A rule for operators that take statistics over an axis and all behind it."""

    def rule(links: Links, node: ir.Node) -> None:
        before = links.input(node, 0)
        first = int_of(node, "axis", default) % len(before)
        why = f"{node.op_type} {node.name!r} takes statistics over them"
        broadcast(links, before, links.output(node), node)
        for number in range(1, len(node.inputs)):
            if links.has(node, number):
                broadcast(links, links.input(node, number), before, node)
        links.stay(before[first:], why)
        for other in links.outputs(node)[1:]:
            links.stay(other, why)

    return rule


def per_channel(links: Links, node: ir.Node) -> None:
    """BatchNormalization, InstanceNormalization: a scale, shift and statistics a channel."""
    before, after = links.input(node, 0), links.output(node)
    for axis, result in zip(before, after, strict=True):
        links.together(axis, result)
    for number in range(1, len(node.inputs)):
        links.together(before[1], *links.input(node, number))
    if node.op_type == "InstanceNormalization":
        links.stay(before[2:], IN_SPACE)


def group_norm(links: Links, node: ir.Node) -> None:
    """Statistics over the channels of a group: whole groups can go."""
    before, after = links.input(node, 0), links.output(node)
    for axis, result in zip(before, after, strict=True):
        links.together(axis, result)
    if before[1] is None:
        raise Unfollowable("the number of channels is not known")
    count = int_of(node, "num_groups", 1)
    group = links.new(count)
    links.together(before[1], np.repeat(group, len(before[1]) // count))
    links.stay(before[2:], f"{node.op_type} {node.name!r} takes statistics over them")
    for number in (1, 2):
        (axis,) = links.input(node, number)
        per_group = axis is not None and len(axis) == count != len(before[1])
        links.together(group if per_group else before[1], axis)


def pool(links: Links, node: ir.Node) -> None:
    """Windows in space, each channel by itself."""
    before, after = links.input(node, 0), links.output(node)
    links.together(before[0], after[0])
    links.together(before[1], after[1])
    links.stay([*before[2:], *after[2:]], IN_SPACE)
    for other in links.outputs(node)[1:]:
        links.stay(other, f"{node.op_type} {node.name!r} numbers them")


def sample_grid(links: Links, node: ir.Node) -> None:
    """Points in space, each channel by itself."""
    pool(links, node)
    places = links.input(node, 1)
    links.together(places[0], links.input(node, 0)[0])
    links.stay(places[1:], IN_SPACE)


def resize(links: Links, node: ir.Node) -> None:
    """Space is scaled; axes that keep their size are untouched."""
    before, after = links.input(node, 0), links.output(node)
    attribute = node.attributes.get("axes")
    named = [axis % len(before) for axis in attribute.as_ints()] if attribute else None
    for axis, result in zip(before, after, strict=True):
        if axis is not None and result is not None and len(axis) == len(result):
            links.together(axis, result)
        else:
            links.stay([axis, result], IN_SPACE)
    links.stay([*before[2:], *after[2:]], IN_SPACE)
    if links.has(node, 3):
        vector = entries(node.inputs[3])
        places = named if named is not None else list(range(len(before)))
        for place, entry in zip(places, vector or [None] * len(places), strict=True):
            if entry is None:
                links.stay([after[place]], f"a size that Resize {node.name!r} makes is computed")
            elif isinstance(entry, tuple):
                links.together(links.value(entry[0])[entry[1]], after[place])


def reduce(links: Links, node: ir.Node) -> None:
    """A sum, mean or largest over some axes, which stay; the others are untouched."""
    before, after = links.input(node, 0), links.output(node)
    axes = axes_of(node, 1, len(before))
    if axes is None:
        raise Unfollowable(f"the axes of {node.op_type} {node.name!r} are computed at run time")
    if not axes:
        axes = [] if int_of(node, "noop_with_empty_axes", 0) else list(range(len(before)))
    _reduced(links, node, before, after, axes)


def arg_reduce(links: Links, node: ir.Node) -> None:
    """The place of the largest or smallest along one axis, which stays."""
    before, after = links.input(node, 0), links.output(node)
    _reduced(links, node, before, after, [int_of(node, "axis", 0) % len(before)])


def _reduced(links: Links, node: ir.Node, before: Axes, after: Axes, axes: list[int]) -> None:
    links.stay([before[axis] for axis in axes], f"{node.op_type} {node.name!r} mixes them")
    keep = bool(int_of(node, "keepdims", 1))
    rest = [axis for number, axis in enumerate(before) if number not in axes]
    results = [axis for number, axis in enumerate(after) if not keep or number not in axes]
    for axis, result in zip(rest, results, strict=True):
        links.together(axis, result)


def last_two(links: Links, node: ir.Node) -> None:
    """A triangle of the last two axes, which stay."""
    before, after = links.input(node, 0), links.output(node)
    for axis, result in zip(before, after, strict=True):
        links.together(axis, result)
    links.stay(before[-2:], f"{node.op_type} {node.name!r} cuts a triangle out of them")


def nothing(links: Links, node: ir.Node) -> None:
    """An operator whose results are sizes, counters or constants: no channels pass through it."""
