"""Reads vectors of integers entry by entry: shapes, axes, sizes, bounds."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from packlight.graph.rewrite.single import int_of, is_standard
from packlight.graph.walk import constant_of

Entry = int | tuple[ir.Value, int] | None
"""A number that stands in the file, an axis of a tensor read at run time, or something else."""

_DEPTH = 16
_LONGEST = 64

# Nodes that rearrange a vector's entries, and the inputs that say how long an axis shall be.
_CARRIES = ("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape")
_TARGETS = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)}


def integers(node: ir.Node, number: int) -> list[int] | None:
    """The numbers of a constant input; None where it is absent or computed."""
    value = node.inputs[number] if number < len(node.inputs) else None
    tensor = constant_of(value)
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return [int(entry) for entry in tensor.numpy().reshape(-1)]


def axes_of(node: ir.Node, number: int, rank: int) -> list[int] | None:
    """The axes that a node names in its input `number` or its attribute `axes`, from 0.

    [] where it names none; None where they are computed at run time.
    """
    given = node.inputs[number] if number < len(node.inputs) else None
    if given is not None:
        axes = integers(node, number)
    else:
        attribute = node.attributes.get("axes")
        axes = list(attribute.as_ints()) if attribute is not None else []
    return None if axes is None else [axis % rank if rank else 0 for axis in axes]


def entries(value: ir.Value | None, depth: int = _DEPTH) -> list[Entry] | None:
    """The entries of a vector that is made of constants and of shapes; None where it is not."""
    if value is None or depth == 0:
        return None
    tensor = constant_of(value)
    if tensor is not None:
        if not tensor.dtype.is_integer() or tensor.size > _LONGEST:
            return None
        return [int(number) for number in tensor.numpy().reshape(-1)]
    node = value.producer()
    if node is None or not is_standard(node):
        return None
    if node.op_type in _CARRIES:
        return entries(node.inputs[0], depth - 1)
    if node.op_type == "Concat":
        parts = [_entries_or_unknown(part, depth - 1) for part in node.inputs]
        return (
            [entry for part in parts if part is not None for entry in part]
            if all(part is not None for part in parts)
            else None
        )
    if node.op_type == "Shape":
        source = node.inputs[0]
        return None if source is None else [(source, axis) for axis in _shape_axes(node)]
    if node.op_type in ("Gather", "Slice"):
        vector = entries(node.inputs[0], depth - 1)
        places = None if vector is None else _picked(node, len(vector))
        return None if vector is None or places is None else [vector[i] for i in places]
    return [None] if value.shape is not None and len(value.shape) == 0 else None


def _entries_or_unknown(value: ir.Value | None, depth: int) -> list[Entry] | None:
    found = entries(value, depth)
    if found is None and value is not None and value.shape is not None:
        size = value.shape[0] if len(value.shape) == 1 else None
        return [None] * size if isinstance(size, int) and size <= _LONGEST else None
    return found


def measured_axes(node: ir.Node) -> set[int]:
    """Axes whose sizes a Shape node hands to anything else than a shape of another tensor.

    Where only shapes are made of them, they follow when channels are removed; arithmetic on
    them would not (a scale of attention computed from a head's size).
    """
    return {axis for axis, read in _readers(node.outputs[0], _shape_axes(node), _DEPTH) if read}


def _readers(value: ir.Value, axes: list[int], depth: int) -> Iterator[tuple[int, bool]]:
    for use in value.uses():
        after, number = use.node, use.idx
        if is_standard(after) and (after.op_type, number) in _TARGETS:
            continue
        if depth and is_standard(after, "Gather", "Slice") and number == 0:
            places = _picked(after, len(axes))
            if places is not None:
                yield from _readers(after.outputs[0], [axes[i] for i in places], depth - 1)
                continue
        elif depth and is_standard(after, "Concat", *_CARRIES) and number in (0, *_concat(after)):
            yield from _readers(after.outputs[0], axes, depth - 1)
            continue
        yield from ((axis, True) for axis in axes)
    if value.is_graph_output():
        yield from ((axis, True) for axis in axes)


def _concat(node: ir.Node) -> range:
    return range(len(node.inputs) if node.op_type == "Concat" else 0)


def _shape_axes(node: ir.Node) -> list[int]:
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    start, end = int_of(node, "start", 0), int_of(node, "end", rank)
    return list(range(rank))[start:end]


def _picked(node: ir.Node, length: int) -> list[int] | None:
    """Which entries of a vector a Gather or Slice takes; None where that is not constant."""
    if node.op_type == "Gather":
        places = integers(node, 1)
        if places is None or any(not -length <= place < length for place in places):
            return None
        return [place % length for place in places]
    starts, ends = integers(node, 1), integers(node, 2)
    if starts is None or ends is None or len(starts) != 1:
        return None
    step = integers(node, 4) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    return None if step is None else list(range(length))[starts[0] : ends[0] : step[0]]
