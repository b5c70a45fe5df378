"""Rotations folded into pairs of layers with nothing but a linear path between them.

W_o V = (W_o Q)(Q^T V) for an orthogonal Q. Between the values of attention and the output
projection lie a split into heads and a weighted sum over positions, which mix no channels of a
head: turning every head by one Hadamard matrix behind random signs spreads channels that reach
far over all of the head, and costs nothing (QuaRot, Ashkboos et al. 2024, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import Editor
from packlight.graph.layers import Layer, find_layers
from packlight.graph.rewrite.single import int_of, is_standard
from packlight.graph.rewrite.smooth import is_scalable, rank_of, store_constant
from packlight.graph.walk import constant_of, shape_of
from packlight.maths.rotation import Rotation, largest_order, random_rotation, rotate

SMALLEST = 4
"""Order of a Hadamard matrix below which nothing is spread worth the while."""


@dataclass(frozen=True)
class Constant:
    """Channels low to high, along one axis of the constant that a node reads as an input."""

    node: ir.Node
    number: int
    axis: int
    low: int
    high: int


@dataclass(frozen=True)
class Pair:
    """A layer whose outputs reach other layers by a linear path that keeps channels apart.

    name: of the first layer at the end. source: the one at the beginning. layers: those at the
    end. size: so many channels in a row may be mixed, every such block in the same way.
    constants: what makes the channels, and weights that take them up: all are turned.
    """

    name: str
    source: str
    layers: tuple[str, ...]
    size: int
    constants: tuple[Constant, ...]


def rotate_pairs(model: ir.Model, *, seed: int = 0) -> list[str]:
    """Turn the channels between all pairs of layers that allow it, in place.

    The outputs of the model stay the same but for float rounding.
    Returns the names of the pairs.
    """
    edit = Editor(model)
    done = []
    for number, pair in enumerate(find_pairs(model)):
        rotation = random_rotation(pair.size, seed=seed + number)
        for constant in pair.constants:
            _turn(edit, constant, rotation)
        done.append(pair.name)
    return done


def find_pairs(model: ir.Model) -> tuple[Pair, ...]:
    """All pairs of the main graph, in graph order; a layer is at the end of one at most."""
    ends = {layer.node: layer for layer in find_layers(model) if is_scalable(layer)}
    found: list[Pair] = []
    for layer in ends.values():
        for value, constants in _starts(layer):
            pair = _followed(layer, value, constants, ends)
            if pair is not None:
                found.append(pair)
                if value is layer.node.outputs[0]:
                    break  # the whole of it: its parts are turned already
    return tuple(found)


def _starts(layer: Layer) -> Iterator[tuple[ir.Value, tuple[Constant, ...]]]:
    """Values that hold a layer's outputs, whole or one part of them, and what makes them."""
    node, outputs = layer.node, layer.weight_shape[layer.out_axis]
    parts = [(node, 1, layer.out_axis)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if layer.bias is None or not _is_vector(layer.bias, outputs):
            return
        parts.append((node, 2, -1))
    value = node.outputs[0]
    yield value, tuple(Constant(*part, 0, outputs) for part in parts)
    while (after := _only_reader(value)) is not None and is_standard(after, "Add", "Reshape"):
        number = 1 if after.inputs[0] is value else 0
        if after.op_type == "Add":
            if not _is_vector(after.inputs[number], outputs):
                return
            parts.append((after, number, -1))
        elif number == 0 or _target(after) not in (None, outputs):
            return
        value = after.outputs[0]
    rank = rank_of(value)
    if after is None or rank is None or not is_standard(after, "Split"):
        return
    if int_of(after, "axis", 0) not in (-1, rank - 1):
        return
    sizes = _split_sizes(after, outputs)
    # The sum says that the last axis holds all outputs, whatever shapes came between.
    if sum(sizes) != outputs:
        return
    low = 0
    for output, size in zip(after.outputs, sizes, strict=True):
        yield output, tuple(Constant(*part, low, low + size) for part in parts)
        low += size


def _followed(
    source: Layer,
    value: ir.Value,
    constants: tuple[Constant, ...],
    ends: Mapping[ir.Node, Layer],
) -> Pair | None:
    """Follow channels along the last axis of a value to the layers that take them up."""
    common = size = constants[0].high - constants[0].low
    pending: list[tuple[ir.Value, int, int | None]] = [(value, -1, size)]
    turned = list(constants)
    layers: list[str] = []
    passed: set[ir.Node] = set()
    while pending:
        value, axis, known = pending.pop()
        uses = tuple(value.uses())
        if value.is_graph_output() or not uses:
            return None
        for node, number in uses:
            if is_standard(node, "Shape", "Size"):
                continue  # reads no numbers
            # What is reached twice would multiply channels with themselves, or add them up.
            if node in passed or node.graph is not source.node.graph:
                return None
            passed.add(node)
            layer = ends.get(node) if number == 0 and axis == -1 else None
            if layer is not None:
                # Its weight says how many channels there are, where no shape did.
                size = layer.weight_shape[1 - layer.out_axis]
                if known not in (None, size):
                    return None
                common = math.gcd(common, size)
                layers.append(layer.name)
                turned.append(Constant(node, 1, 1 - layer.out_axis, 0, size))
            elif is_standard(node, "Add"):
                if axis != -1 or known is None or not _is_vector(node.inputs[1 - number], known):
                    return None
                turned.append(Constant(node, 1 - number, -1, 0, known))
                pending.append((node.outputs[0], axis, known))
            else:
                after = _passed(node, number, axis, known)
                if after is None:
                    return None
                common = math.gcd(common, after[1] or 0)
                pending += [(output, *after) for output in node.outputs if output.uses()]
    if not layers or largest_order(common) < SMALLEST:
        return None
    order = {layer.name: place for place, layer in enumerate(ends.values())}
    layers.sort(key=lambda name: order[name])
    return Pair(layers[0], source.name, tuple(layers), common, tuple(turned))


def _passed(
    node: ir.Node, number: int, axis: int, size: int | None
) -> tuple[int, int | None] | None:
    """Where channels lie behind a node that mixes none of them; None if it does, or may.

    Axes are counted from the last one, -1; size: the length of the axis, None where it is not
    known. All outputs have it in the same place.
    """
    source, result = node.inputs[number], node.outputs[0]
    before, after = rank_of(source), rank_of(result)
    if not is_standard(node) or source is None or before is None or after is None:
        return None
    if any(output.is_graph_output() for output in node.outputs):
        return None
    if node.op_type in ("Mul", "Div"):
        # The same factor for all channels of a position.
        fits = node.op_type == "Mul" or number == 0
        return (axis, size) if fits and _is_one(node.inputs[1 - number], axis) else None
    if node.op_type == "MatMul":
        # P V, and V^T P^T: a weighted sum over positions, for every channel the same.
        other = node.inputs[1 - number]
        if other is source or min(before, rank_of(other) or 0) < 2:
            return None
        return (axis, size) if axis == (-1 if number == 1 else -2) else None
    if number != 0:
        return None
    if node.op_type == "Identity":
        return axis, size
    if node.op_type == "Transpose":
        permutation = node.attributes.get("perm")
        order = list(permutation.as_ints()) if permutation is not None else [*range(before)][::-1]
        return order.index(before + axis) - before, size
    if node.op_type == "Reshape":
        # Cut or joined where blocks end: the lengths before and behind are multiples of theirs.
        return (axis, _target(node)) if axis == -1 and size is not None else None
    if node.op_type == "Expand":
        kept = size is not None and _target(node) in (1, size)
        return (axis, size) if axis == -1 and kept else None
    moved = _shifted(node, axis, before, after)
    return None if moved is None else (moved, size)


def _target(node: ir.Node) -> int | None:
    """The length of the last axis that a Reshape or Expand makes, where it is known."""
    size = _size(node.outputs[0], -1)
    if size is not None:
        return size
    shape = node.inputs[1]
    producer = shape.producer() if shape is not None else None
    if producer is not None and is_standard(producer, "Concat"):
        shape = producer.inputs[-1]
    tensor = constant_of(shape)
    last = int(tensor.numpy().reshape(-1)[-1]) if tensor is not None and tensor.size else 0
    return last if last > 0 else None


def _shifted(node: ir.Node, axis: int, before: int, after: int) -> int | None:
    """Channels behind a node that adds, drops, cuts or splits other axes than theirs."""
    if node.op_type in ("Gather", "Split"):
        touched = [int_of(node, "axis", 0)]
    elif node.op_type in ("Squeeze", "Unsqueeze", "Slice"):
        place = 3 if node.op_type == "Slice" else 1
        tensor = constant_of(node.inputs[place]) if len(node.inputs) > place else None
        if tensor is None:
            return None
        touched = [int(one) for one in tensor.numpy().reshape(-1)]
    else:
        return None
    if node.op_type == "Unsqueeze":
        kept = [place for place in range(after) if place not in {one % after for one in touched}]
        return kept[before + axis] - after
    places = {one % before for one in touched}
    mine = before + axis
    if mine in places:
        return None
    behind = sum(place > mine for place in places)
    if node.op_type == "Squeeze":
        return axis + behind
    return axis - (after - before) if behind else axis


def _turn(edit: Editor, constant: Constant, rotation: Rotation) -> None:
    """Replace A by A Q along one axis of a constant, block by block."""
    tensor = constant_of(constant.node.inputs[constant.number])
    assert tensor is not None
    array = np.moveaxis(tensor.numpy().astype(np.float64), constant.axis, -1).copy()
    part = array[..., constant.low : constant.high]
    blocks = part.reshape(*part.shape[:-1], -1, len(rotation.signs))
    array[..., constant.low : constant.high] = rotate(blocks, rotation).reshape(part.shape)
    turned = np.moveaxis(array, -1, constant.axis)
    store_constant(edit, constant.node, constant.number, turned, "rotated")


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the numbers of a value, where there is just one."""
    readers = [node for node, _ in value.uses() if not is_standard(node, "Shape", "Size")]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _is_vector(value: ir.Value | None, channels: int) -> bool:
    """Whether a value is a float constant of one number a channel, the same everywhere."""
    tensor = constant_of(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return tensor.size == channels and shape_of(tensor)[-1:] == (channels,)


def _split_sizes(node: ir.Node, channels: int) -> list[int]:
    """The lengths that a Split makes of its input's last axis; 0 where one is not known."""
    given = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is not None:
        return [int(size) for size in given.numpy()]
    source, count = node.inputs[0], len(node.outputs)
    producer = source.producer() if source is not None else None
    whole = _size(source, -1)
    if whole is None and producer is not None and is_standard(producer, "Reshape"):
        whole = _target(producer)
    even = whole == channels and channels % count == 0
    return [channels // count if even else 0] * count


def _is_one(value: ir.Value | None, axis: int) -> bool:
    """Whether a value is the same along an axis, counted from the last."""
    rank = rank_of(value)
    return rank is not None and (rank < -axis or _size(value, axis) == 1)


def _size(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis, counted from the last, where it is a known number."""
    if value is None or value.shape is None or len(value.shape) < -axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None
