"""Which positions of a graph's tensors go together, which must stay, and what follows from it.

Every axis of known size of every tensor has as many *positions*, numbered through the whole
graph. Rules (one an operator) say three things of them: these go `together`; these `stay`; this
axis is the `product` of those (a Reshape that splits 64 channels into 4 heads of 16). A channel
is a set of positions that go together.

Of a product only one factor can carry the channels: removing a head removes 16 positions in a
row, removing a channel of the head size every 16th. Which one it is, is decided last, when all
else is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from packlight.graph.walk import constant_of, shape_of

Positions = NDArray[np.intp]
Axes = list[Positions | None]
"""The positions along each axis of a tensor; None where its size is known at run time only."""

Role = Literal["makes", "reads", "follows"]
Heads = Literal["whole", "inside"]


class Unfollowable(Exception):
    """A rule cannot say what a node does with channels; the message is the reason, in words."""


@dataclass(frozen=True)
class Weight:
    """An axis of a constant along which a layer's outputs ("makes") or inputs ("reads") lie.

    unless: positions, as many as along the axis; where they turn out to be the same channels,
        the layer filters each channel by itself (a depthwise kernel) and only "follows".
    """

    node: ir.Node
    number: int
    axis: int
    role: Role
    unless: Positions | None = None


@dataclass(frozen=True, eq=False)
class _Product:
    merged: Positions
    factors: tuple[Positions, ...]
    reason: str


@dataclass(frozen=True)
class Channels:
    """What all rules together say.

    label: [positions], which channel each position belongs to.
    reason: [channels], the number in `reasons` of why it must stay, -1 where it may go.
    """

    label: Positions
    reason: NDArray[np.intp]
    reasons: tuple[str, ...]


class Links:
    """Collects what the rules say of one graph; see the module."""

    def __init__(self) -> None:
        self.weights: list[Weight] = []
        self._count = 0
        self._axes: dict[ir.Value | tuple[ir.Node, int], Axes] = {}
        self._pairs: list[tuple[Positions, Positions]] = []
        self._stay: list[tuple[Positions, str]] = []
        self._products: list[_Product] = []
        self._heads: list[Positions] = []
        self._copies: list[Positions] = []

    def value(self, value: ir.Value) -> Axes:
        """The positions along each axis of a value. Raises Unfollowable for an unknown rank."""
        return self._axes_at(value, value)

    def input(self, node: ir.Node, number: int) -> Axes:
        """The positions of an input. A constant vector is each reader's own: equal ones are merged
        in a file, and must not couple channels that have nothing to do with each other.
        """
        value = node.inputs[number] if number < len(node.inputs) else None
        if value is None:
            raise Unfollowable(f"{node.op_type} {node.name!r} lacks its input {number}")
        own = constant_of(value) is not None and not is_matrix(value)
        return self._axes_at((node, number) if own else value, value)

    def has(self, node: ir.Node, number: int) -> bool:
        """Whether an optional input is there."""
        return number < len(node.inputs) and node.inputs[number] is not None

    def output(self, node: ir.Node, number: int = 0) -> Axes:
        """The positions along each axis of a node's output."""
        return self.value(node.outputs[number])

    def outputs(self, node: ir.Node) -> list[Axes]:
        """The positions of the first output, and of the others that anything reads."""
        first, *others = node.outputs
        used = [value for value in others if value.uses() or value.is_graph_output()]
        return [self.value(value) for value in (first, *used)]

    def new(self, size: int) -> Positions:
        """Positions of no tensor: a factor that is seen in a product only."""
        self._count += size
        return np.arange(self._count - size, self._count)

    def together(self, *axes: Positions | None) -> None:
        """Position by position, these axes are the same channels; unknown axes say nothing."""
        known = [axis for axis in axes if axis is not None]
        for other in known[1:]:
            if len(other) != len(known[0]):
                raise Unfollowable(f"axes of {len(known[0])} and {len(other)} do not fit")
            self._pairs.append((known[0], other))

    def stay(self, axes: Iterable[Positions | None], reason: str) -> None:
        """None of these positions can be removed, for this reason."""
        self._stay += [(axis, reason) for axis in axes if axis is not None and len(axis)]

    def product(
        self, merged: Positions | None, factors: Sequence[Positions | None], reason: str
    ) -> None:
        """Axis `merged` runs over all combinations of the factors, the last one fastest.

        reason: why the factors that do not carry the channels stay.
        """
        if merged is None or any(factor is None for factor in factors):
            self.stay([merged, *factors], "an axis is split into parts of unknown sizes")
            return
        known = tuple(factor for factor in factors if factor is not None and len(factor) != 1)
        if math.prod(len(factor) for factor in known) != len(merged):
            raise Unfollowable("the sizes of an axis and of its parts do not fit")
        if len(known) == 1:
            self.together(merged, known[0])
        elif known:
            self._products.append(_Product(merged, known, reason))

    def heads(self, axis: Positions | None) -> None:
        """Products of activations are computed for each position of this axis by itself."""
        if axis is not None and len(axis) > 1:
            self._heads.append(axis)

    def copies(self, axis: Positions) -> None:
        """These positions all hold the same: whichever is removed, the same is gained."""
        self._copies.append(axis)

    def weight(
        self,
        node: ir.Node,
        number: int,
        axis: int,
        role: Role,
        unless: Positions | None = None,
    ) -> None:
        """Note that a layer's outputs or inputs lie along this axis of its input `number`."""
        self.weights.append(Weight(node, number, axis, role, unless))

    def known(self) -> list[tuple[ir.Value | tuple[ir.Node, int], Axes]]:
        """All tensors that were looked at, in this order: values, and each reader's vectors."""
        return list(self._axes.items())

    def solve(self, heads: Heads = "whole") -> Channels:
        """All that follows. heads: whether whole heads go, or the same channel of all of them."""
        label = self._merge(self._pairs, np.arange(self._count))
        reasons: dict[str, int] = {}
        pinned = np.full(self._count, -1)
        for positions, told in reversed(self._stay):  # the first in graph order is told
            pinned[label[positions]] = reasons.setdefault(told, len(reasons))
        pending = list(self._products)
        while pending:
            copy = self._flags(self._copies, label)
            head = self._flags(self._heads, label)
            # Heads that share keys are (groups of heads) x (copies in a group).
            groups = [item for item in self._products if head[label[item.merged]].all()]
            head |= self._flags([axis for item in groups for axis in item.factors], label)
            forced = [item for item in pending if len(_able(item, label, pinned)) < 2]
            now = forced or pending[:1]
            pairs: list[tuple[Positions, Positions]] = []
            kept: list[tuple[Positions, int]] = []
            for item in now:
                able = _able(item, label, pinned)
                if not able:
                    why = _reason_of(item, label, pinned)
                    kept += [(axis, why) for axis in (item.merged, *item.factors)]
                    continue
                best = max(
                    able,
                    key=lambda k, item=item: _worth(  # type: ignore[misc]
                        label[item.factors[k]], pinned, head, copy, heads
                    ),
                )
                table = item.merged.reshape([len(factor) for factor in item.factors])
                rows = np.moveaxis(table, best, 0).reshape(len(item.factors[best]), -1)
                pairs.append((np.repeat(item.factors[best], rows.shape[1]), rows.ravel()))
                why = reasons.setdefault(item.reason, len(reasons))
                kept += [(f, why) for k, f in enumerate(item.factors) if k != best]
            for positions, why in kept:
                at = label[positions]
                pinned[at] = np.where(pinned[at] < 0, why, pinned[at])
            merged = self._merge([(label[a], label[b]) for a, b in pairs], label)
            pinned = _carry(pinned, label, merged)
            label = merged
            pending = [item for item in pending if item not in now]
        return Channels(label, pinned, tuple(reasons))

    def _axes_at(self, key: ir.Value | tuple[ir.Node, int], value: ir.Value) -> Axes:
        if key not in self._axes:
            tensor = constant_of(value)
            shape = shape_of(tensor) if tensor is not None else value.shape
            if shape is None:
                raise Unfollowable(f"the number of axes of {value.name!r} is not known")
            self._axes[key] = [self.new(n) if isinstance(n, int) else None for n in shape]
        return self._axes[key]

    def _flags(self, axes: Sequence[Positions], label: Positions) -> NDArray[np.bool_]:
        flags = np.zeros(self._count, dtype=bool)
        for axis in axes:
            flags[label[axis]] = True
        return flags

    def _merge(self, pairs: Sequence[tuple[Positions, Positions]], label: Positions) -> Positions:
        """The labels after these pairs (of labels) have become one; the lowest of each stands."""
        if not pairs or not self._count:
            return label
        first = np.concatenate([a for a, _ in pairs])
        second = np.concatenate([b for _, b in pairs])
        ones = np.ones(len(first), dtype=np.int8)
        graph = coo_array((ones, (first, second)), shape=(self._count, self._count))
        found = connected_components(graph, directed=False)[1]
        lowest = np.full(self._count, self._count)
        np.minimum.at(lowest, found, np.arange(self._count))
        merged: Positions = lowest[found][label]
        return merged


def is_matrix(value: ir.Value) -> bool:
    """Whether a constant has two axes or more longer than one: shared ones are meant to be."""
    tensor = constant_of(value)
    return tensor is not None and sum(size > 1 for size in shape_of(tensor)) > 1


def _able(item: _Product, label: Positions, pinned: Positions) -> list[int]:
    """The factors that may carry the channels of a product."""
    if (pinned[label[item.merged]] >= 0).all():
        return []
    return [k for k, f in enumerate(item.factors) if (pinned[label[f]] < 0).any()]


def _worth(
    channels: Positions,
    pinned: Positions,
    head: NDArray[np.bool_],
    copy: NDArray[np.bool_],
    heads: Heads,
) -> tuple[bool, bool, int]:
    """How good a carrier a factor is: no copies; heads (or none); then the most channels."""
    free = len(np.unique(channels[pinned[channels] < 0]))
    is_head = bool(head[channels].any())
    return not copy[channels].all(), is_head == (heads == "whole"), free


def _reason_of(item: _Product, label: Positions, pinned: Positions) -> int:
    """Why no factor can carry the channels: what holds the longest of them."""
    if (pinned[label[item.merged]] >= 0).all():
        return int(pinned[label[item.merged]][0])
    return int(pinned[label[max(item.factors, key=len)]].max())


def _carry(pinned: Positions, before: Positions, after: Positions) -> Positions:
    """Reasons of merged channels: any of its parts' reasons holds for the whole."""
    carried = np.full_like(pinned, -1)
    np.maximum.at(carried, after, pinned[before])
    return carried
