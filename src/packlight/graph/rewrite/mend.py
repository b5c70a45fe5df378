"""Mends what a node says of sizes after channels were removed: one function an operator.

Constants that hold channels are cut elsewhere; here are numbers that count or name channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.coupling.layout import pad_amounts, slice_bounds
from packlight.graph.coupling.links import Axes, Positions
from packlight.graph.coupling.vectors import integers
from packlight.graph.edit import Editor
from packlight.graph.rewrite.single import int_of
from packlight.graph.walk import constant_of

Kept = NDArray[np.bool_]


class Cut:
    """A graph of which channels were removed: its axes as they were, and what is kept of them."""

    def __init__(
        self,
        edit: Editor,
        graph: ir.Graph,
        axes: Mapping[ir.Value | tuple[ir.Node, int], Axes],
        stays: Kept,
    ) -> None:
        self.edit, self.graph = edit, graph
        self._axes, self._stays = axes, stays

    def input(self, node: ir.Node, number: int) -> list[Kept | None]:
        """For each axis of an input, which positions are kept; None where it was not followed."""
        value = node.inputs[number] if number < len(node.inputs) else None
        found = self._axes.get((node, number))
        return self._kept(found if found is not None or value is None else self._axes.get(value))

    def axis(self, node: ir.Node, number: int, axis: int) -> Kept | None:
        """The same of one axis of an input."""
        axes = self.input(node, number)
        return axes[axis] if axis < len(axes) else None

    def output(self, node: ir.Node, number: int = 0) -> list[Kept | None]:
        """The same of an output."""
        return self._kept(self._axes.get(node.outputs[number]))

    def replace(self, node: ir.Node, number: int, numbers: Sequence[int]) -> None:
        """Give a node other numbers as its input."""
        before = node.inputs[number] if number < len(node.inputs) else None
        name = f"{before.name if before is not None else node.name}_pruned"
        while len(node.inputs) <= number:
            node.resize_inputs(len(node.inputs) + 1)
        kind = constant_of(before)
        dtype = kind.numpy().dtype if kind is not None else np.dtype(np.int64)
        array = np.array(numbers, dtype=dtype)
        node.replace_input_with(number, self.edit.constant(self.graph, array, name))

    def _kept(self, axes: Axes | None) -> list[Kept | None]:
        return [self._of(axis) for axis in axes or ()]

    def _of(self, axis: Positions | None) -> Kept | None:
        return None if axis is None else self._stays[axis]


def mend(cut: Cut, node: ir.Node) -> None:
    """Make a node's own numbers fit the channels that are left, in place."""
    rule = _MENDS.get(node.op_type)
    if rule is not None:
        rule(cut, node)


def _groups(attribute: str) -> Callable[[Cut, ir.Node], None]:
    def rule(cut: Cut, node: ir.Node) -> None:
        count = int_of(node, attribute, 1)
        kept = cut.axis(node, 0, 1)
        if count > 1 and kept is not None and not kept.all():
            left = int(kept.reshape(count, -1).any(axis=1).sum())
            node.attributes[attribute] = ir.AttrInt64(attribute, left)

    return rule


def _target(number: int) -> Callable[[Cut, ir.Node], None]:
    """A rule for nodes that are told the shape of their output."""

    def rule(cut: Cut, node: ir.Node) -> None:
        value = node.inputs[number] if number < len(node.inputs) else None
        kept = cut.output(node)
        if value is None or all(axis is None or axis.all() for axis in kept):
            return
        sizes: list[int | None] = [
            None if axis is None or axis.all() else int(axis.sum()) for axis in kept
        ]
        attribute = node.attributes.get("axes") if node.op_type == "Resize" else None
        if attribute is not None:
            sizes = [sizes[axis] for axis in attribute.as_ints()]
        node.replace_input_with(number, _rewritten(cut, value, sizes))

    return rule


def _rewritten(cut: Cut, value: ir.Value, sizes: Sequence[int | None]) -> ir.Value:
    """A shape vector with other sizes where they are given; what is read at run time stays."""
    tensor = constant_of(value)
    if tensor is not None:
        array = tensor.numpy().copy()
        flat = array.reshape(-1)
        for place, size in enumerate(sizes):
            # 0 copies and -1 is worked out: both follow by themselves.
            if size is not None and flat[place] > 0:
                flat[place] = size
        return cut.edit.constant(cut.graph, array, f"{value.name}_pruned")
    node = value.producer()
    if node is None or all(size is None for size in sizes):
        return value
    if node.op_type == "Concat":
        parts: list[ir.Value | None] = []
        for part in node.inputs:
            length = _length(part)
            parts.append(None if part is None else _rewritten(cut, part, sizes[:length]))
            sizes = sizes[length:]
        return _copied(cut, node, parts)
    if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        source = node.inputs[0]
        assert source is not None
        return _copied(cut, node, [_rewritten(cut, source, sizes), *node.inputs[1:]])
    return value


def _copied(cut: Cut, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node.outputs[0]
    new = cut.edit.node(node.op_type, inputs, f"{node.name}_pruned")
    for key, attribute in node.attributes.items():
        new.attributes[key] = attribute
    new.outputs[0].type = node.outputs[0].type
    cut.graph.insert_after(node, new)
    return new.outputs[0]


def _length(value: ir.Value | None) -> int:
    tensor = constant_of(value)
    if tensor is not None:
        return int(tensor.size)
    assert value is not None and value.shape is not None
    (length,) = value.shape
    assert isinstance(length, int)
    return length


def _split(cut: Cut, node: ir.Node) -> None:
    rank = len(cut.input(node, 0))
    number = int_of(node, "axis", 0) % max(rank, 1)
    kept = cut.axis(node, 0, number)
    if kept is None or kept.all():
        return
    parts = [cut.output(node, place)[number] for place in range(len(node.outputs))]
    node.attributes.pop("num_outputs", None)
    cut.replace(node, 1, [int(part.sum()) for part in parts if part is not None])


def _slice(cut: Cut, node: ir.Node) -> None:
    axes = cut.input(node, 0)
    bounds = slice_bounds(node, len(axes))
    if bounds is None or all(axes[a] is None or axes[a].all() for a in bounds):  # type: ignore[union-attr]
        return
    for number, (axis, (start, end, step)) in enumerate(list(bounds.items())):
        kept = axes[axis]
        if kept is None or kept.all():
            continue
        low, high, _ = slice(start, end, step).indices(len(kept))
        for place, bound in ((1, low), (2, high)):
            numbers = integers(node, place)
            assert numbers is not None
            numbers[number] = int(kept[:bound].sum())
            cut.replace(node, place, numbers)


def _hidden(cut: Cut, node: ir.Node) -> None:
    kept = cut.axis(node, 2, 2)
    if kept is not None and "hidden_size" in node.attributes:
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(kept.sum()))


def _pad(cut: Cut, node: ir.Node) -> None:
    before, after = cut.input(node, 0), cut.output(node)
    amounts = pad_amounts(node, len(before))
    if amounts is None or all(axis is None or axis.all() for axis in after):
        return
    lows, highs = [], []
    for old, new, (low, high) in zip(before, after, amounts, strict=True):
        if old is not None and new is not None:
            low, high = int(new[:low].sum()), int(new[low + len(old) :].sum())
        lows.append(low)
        highs.append(high)
    named = node.inputs[3] if len(node.inputs) > 3 else None
    axes = range(len(before))
    if named is not None:
        axes = [axis % len(before) for axis in integers(node, 3) or ()]  # type: ignore[assignment]
    cut.replace(node, 1, [*(lows[axis] for axis in axes), *(highs[axis] for axis in axes)])


def _gather(cut: Cut, node: ir.Node) -> None:
    rank = len(cut.input(node, 0))
    number = int_of(node, "axis", 0) % max(rank, 1)
    kept = cut.axis(node, 0, number)
    places = integers(node, 1)
    if kept is None or kept.all() or places is None:
        return
    picked = cut.output(node)[number]
    assert picked is not None
    new = np.cumsum(kept) - 1
    cut.replace(
        node, 1, [int(new[place]) for place, stays in zip(places, picked, strict=True) if stays]
    )


_MENDS: dict[str, Callable[[Cut, ir.Node], None]] = {
    "Conv": _groups("group"),
    "ConvTranspose": _groups("group"),
    "GroupNormalization": _groups("num_groups"),
    "GRU": _hidden,
    "LSTM": _hidden,
    "RNN": _hidden,
    "ConstantOfShape": _target(0),
    "Expand": _target(1),
    "Reshape": _target(1),
    "Resize": _target(3),
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}
