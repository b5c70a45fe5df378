"""Activation smoothing folded into the graph (SmoothQuant, Xiao et al. 2023, equation 3).

Y = X W = (X / s) (s W): channels of X that reach far are brought down by s, and the rows of W
that they meet take s up. The division costs nothing where whatever computes X can take it:
the gain and bias of a LayerNormalization, the constant behind an RMS normalization, or the
columns of a linear layer before, also through attention (P (V / s) = (P V) / s), a gate or a Relu.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import Editor, drop_unused
from packlight.graph.layers import Layer, find_layers
from packlight.graph.rewrite.single import int_of, is_standard
from packlight.graph.walk import constant_of, shape_of
from packlight.maths.balance import equalizing_scales
from packlight.maths.moments import Moments

LARGEST = 1e4
"""Scales stay within 1 / LARGEST and LARGEST, so that folded constants keep their digits."""

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_HOMOGENEOUS = ("Identity", "LeakyRelu", "Relu")

Axes = tuple[int, ...]
"""The axes of a tensor along which its channels lie, outer first."""


@dataclass(frozen=True)
class Group:
    """Layers that read one activation whose channels can be scaled before them for nothing.

    name: of the first layer. layers: all that read it. channels: how many inputs they have.
    source: the node that takes up the scales. divided: constants to divide, as (node, input,
    axis of the constant along which channels lie; -1: the last, broadcast where need be).
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    source: str
    divided: tuple[tuple[ir.Node, int, int], ...]


def smooth(
    model: ir.Model,
    ranges: Mapping[str, NDArray[Any]],
    *,
    strength: float | Mapping[str, float] = 0.5,
) -> list[str]:
    """Move range from activations into weights wherever it costs nothing, in place.

    The outputs of the model stay the same but for float rounding.
    ranges: by layer, [in], how far each channel of its input reaches; groups without are left.
    strength: 0 (columns of weights get like ranges) to 1 (channels of activations do), for
        all groups or by a group's name; a group that is not named stays as it is.
    Returns the names of the groups that were smoothed.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    scales = {}
    for group in find_groups(model):
        alpha = strength.get(group.name) if isinstance(strength, Mapping) else strength
        seen = [np.asarray(ranges[name], np.float64) for name in group.layers if name in ranges]
        if alpha is None or not seen:
            continue
        weights = [weight_of(layers[name]) for name in group.layers]
        scales[group.name] = scales_of(weights, seen, strength=alpha)
    return smooth_by(model, scales)


def smooth_by(model: ir.Model, scales: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Divide activations by these scales and multiply the weights that read them, in place.

    scales: by a group's name, [in]; a group that is not named stays as it is.
    Returns the names of the groups that were smoothed.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    edit = Editor(model)
    done = []
    for group in find_groups(model):
        if group.name not in scales:
            continue
        scale = np.clip(scales[group.name], 1 / LARGEST, LARGEST)
        for node, number, axis in group.divided:
            _divide(edit, node, number, axis, scale)
        for name in group.layers:
            _multiply(edit, layers[name], scale)
        done.append(group.name)
    return done


def scales_of(
    weights: list[NDArray[np.float64]], ranges: list[NDArray[np.float64]], *, strength: float
) -> NDArray[np.float64]:
    """The scales [in] of a group: weights [out, in] and ranges [in] of all its layers."""
    reach = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0)
    scale = equalizing_scales(np.max(ranges, axis=0), reach, strength=strength)
    clipped: NDArray[np.float64] = np.clip(np.asarray(scale), 1 / LARGEST, LARGEST)
    return clipped


def ranges_of_moments(moments: Mapping[str, Moments]) -> dict[str, NDArray[np.float64]]:
    """How far each channel of a layer's input reaches, as the root of its mean square."""
    return {
        name: np.sqrt(np.diag(found.second))
        for name, found in moments.items()
        if found.count > 0 and not found.grouped
    }


def find_groups(model: ir.Model) -> tuple[Group, ...]:
    """All groups of the main graph, in graph order; a layer is in one at most."""
    sinks = {layer.node: layer for layer in find_layers(model) if is_scalable(layer)}
    found: list[Group] = []
    taken: set[str] = set()
    for node in model.graph:
        start = _source(node, sinks)
        group = _reached(node, start, sinks) if start else None
        if group is not None and not taken & set(group.layers):
            taken |= set(group.layers)
            found.append(group)
    return tuple(found)


def is_scalable(layer: Layer) -> bool:
    """Whether a layer's weight is its own float32 constant of the main graph."""
    return (
        layer.kind in ("Gemm", "MatMul")
        and not layer.graph_path
        and not layer.shared
        and layer.weight.is_initializer()
        and layer.weight.dtype == ir.DataType.FLOAT
    )


def _source(
    node: ir.Node, sinks: Mapping[ir.Node, Layer]
) -> tuple[int, tuple[tuple[ir.Node, int, int], ...]] | None:
    """(channels, constants to divide) of a node that can take up scales of its output."""
    layer = sinks.get(node)
    if layer is not None:
        outputs = layer.weight_shape[layer.out_axis]
        parts = [(node, 1, layer.out_axis)]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            if layer.bias is None:
                return None
            parts.append((node, 2, -1))
        return outputs, tuple(parts)
    rank = rank_of(node.outputs[0]) if node.outputs else None
    if rank is None:
        return None
    if node.op_type in _NORMS and node.domain in ("", "ai.onnx"):
        if int_of(node, "axis", -1) not in (-1, rank - 1) or read_beyond_first(node):
            return None
        numbers = [i for i in range(1, len(node.inputs)) if node.inputs[i] is not None]
        tensors = [constant_of(node.inputs[i]) for i in numbers]
        if any(t is None or t.dtype != ir.DataType.FLOAT for t in tensors) or not tensors:
            return None
        size = tensors[0].size  # type: ignore[union-attr]
        if any(t is not None and t.size != size for t in tensors):
            return None
        return size, tuple((node, number, -1) for number in numbers)
    if is_standard(node, "Mul"):
        for number in (0, 1):
            tensor = constant_of(node.inputs[number])
            other = rank_of(node.inputs[1 - number])
            if tensor is None or other is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            axes = shape_of(tensor)
            if 1 <= len(axes) <= other and axes[-1] == tensor.size > 1:
                return tensor.size, ((node, number, -1),)
    return None


def _reached(
    source: ir.Node,
    start: tuple[int, tuple[tuple[ir.Node, int, int], ...]],
    sinks: Mapping[ir.Node, Layer],
) -> Group | None:
    """Follow the channels of a node's output until layers take them up; None if others do."""
    channels, divided = start[0], list(start[1])
    value = source.outputs[0]
    rank = rank_of(value)
    if rank is None:
        return None
    pending: list[tuple[ir.Value, Axes]] = [(value, (rank - 1,))]
    layers: list[str] = []
    passed: set[ir.Node] = set()
    while pending:
        value, axes = pending.pop()
        uses = tuple(value.uses())
        if value.is_graph_output() or not uses:
            return None
        for node, number in uses:
            if is_standard(node, "Shape", "Size"):
                continue  # reads no numbers
            # A node that is reached twice would multiply the channels with themselves.
            if node in passed or node.graph is not source.graph:
                return None
            passed.add(node)
            layer = sinks.get(node)
            if layer is not None and number == 0:
                if not _lie_last(value, axes) or layer.weight_shape[1 - layer.out_axis] != channels:
                    return None
                layers.append(layer.name)
                continue
            if is_standard(node, "Add"):
                if not _lie_last(value, axes) or not _adds_constant(node, number, channels):
                    return None
                divided.append((node, 1 - number, -1))
                pending.append((node.outputs[0], axes))
                continue
            after = _passed(node, number, axes, channels)
            if after is None or read_beyond_first(node):
                return None
            pending.append((node.outputs[0], after))
    if not layers:
        return None
    order = {layer.name: place for place, layer in enumerate(sinks.values())}
    layers.sort(key=lambda name: order[name])
    return Group(layers[0], tuple(layers), channels, str(source.name), tuple(divided))


def _passed(node: ir.Node, number: int, axes: Axes, channels: int) -> Axes | None:
    """Where the channels lie behind a node that scales as its input does; None if it does not."""
    if not is_standard(node):
        return None
    source = node.inputs[number]
    before, after = rank_of(source), rank_of(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op_type in _HOMOGENEOUS:
        return axes
    if node.op_type in ("Mul", "Div"):
        # Linear in this operand, whatever the other is, when no axis moves by broadcasting.
        other = node.inputs[1 - number]
        fits = other is not source and before == after and (node.op_type == "Mul" or number == 0)
        return axes if fits else None
    if node.op_type == "MatMul":
        # P V: the rows of V are summed up, its columns and matrices stay apart.
        left = node.inputs[0]
        fits = number == 1 and rank_of(left) == before and left is not source
        return axes if fits and before - 2 not in axes else None
    if number != 0:
        return None
    if node.op_type == "Transpose":
        permutation = node.attributes.get("perm")
        order = list(permutation.as_ints()) if permutation is not None else [*range(before)][::-1]
        return tuple(order.index(axis) for axis in axes)
    if node.op_type == "Reshape":
        return _reshaped(node, axes, channels)
    if node.op_type in ("Squeeze", "Unsqueeze", "Gather", "Slice"):
        return _shifted(node, axes, before, after)
    return None


def _reshaped(node: ir.Node, axes: Axes, channels: int) -> Axes | None:
    """Channels that fill the last axes, in order, fill the last axes of the result too."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None and source.shape is not None and result.shape is not None
    rank = len(source.shape)
    if axes != tuple(range(rank - len(axes), rank)):
        return None
    total = 1
    found: list[int] = []
    for axis in reversed(range(len(result.shape))):
        size = result.shape[axis]
        if not isinstance(size, int):
            return None
        total *= size
        found.insert(0, axis)
        if total == channels:
            return tuple(found)
    return None


def _shifted(node: ir.Node, axes: Axes, before: int, after: int) -> Axes | None:
    """Channels behind a node that adds, drops or cuts other axes, all of them before theirs."""
    if node.op_type == "Gather":
        touched = [int_of(node, "axis", 0)]
    else:
        place = 3 if node.op_type == "Slice" else 1
        tensor = constant_of(node.inputs[place]) if len(node.inputs) > place else None
        if tensor is None:
            return None
        touched = [int(axis) for axis in tensor.numpy().reshape(-1)]
    rank = after if node.op_type == "Unsqueeze" else before
    shift = after - before
    places = tuple(axis + shift for axis in axes)
    mine = places if node.op_type == "Unsqueeze" else axes
    return places if all(axis % rank < min(mine) for axis in touched) else None


def _adds_constant(node: ir.Node, number: int, channels: int) -> bool:
    """Whether an Add adds a constant that is one number a channel, or one for all."""
    tensor = constant_of(node.inputs[1 - number])
    rank = rank_of(node.inputs[number])
    if tensor is None or rank is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    axes = shape_of(tensor)
    return len(axes) <= rank and (not axes or axes[-1] in (1, channels))


def _lie_last(value: ir.Value, axes: Axes) -> bool:
    rank = rank_of(value)
    return rank is not None and axes == (rank - 1,)


def rank_of(value: ir.Value | None) -> int | None:
    """How many axes a value has, None where that is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def read_beyond_first(node: ir.Node) -> bool:
    """Whether outputs of a node besides its first one are read."""
    return any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def weight_of(layer: Layer) -> NDArray[np.float64]:
    """A layer's weight as it is now, [out, in] in float64; a Gemm's alpha is left out."""
    tensor = constant_of(layer.node.inputs[1])
    assert tensor is not None
    array = tensor.numpy().astype(np.float64)
    return array.T if layer.out_axis else array


def _divide(edit: Editor, node: ir.Node, number: int, axis: int, scale: NDArray[Any]) -> None:
    tensor = constant_of(node.inputs[number])
    assert tensor is not None
    array = tensor.numpy().astype(np.float64)
    if axis >= 0:
        store_constant(edit, node, number, array / _along(scale, array.ndim, axis))
    else:
        store_constant(edit, node, number, array / scale)


def _multiply(edit: Editor, layer: Layer, scale: NDArray[np.float64]) -> None:
    tensor = constant_of(layer.node.inputs[1])
    assert tensor is not None
    array = tensor.numpy().astype(np.float64) * _along(scale, 2, 1 - layer.out_axis)
    store_constant(edit, layer.node, 1, array)


def _along(scale: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    return scale.reshape([-1 if place == axis else 1 for place in range(rank)])


def store_constant(
    edit: Editor,
    node: ir.Node,
    number: int,
    array: NDArray[np.float64],
    suffix: str = "smoothed",
) -> None:
    """Let a node read this constant; one that nothing else reads keeps its name."""
    old = node.inputs[number]
    assert old is not None and isinstance(node.graph, ir.Graph)
    narrow = np.ascontiguousarray(array, dtype=np.float32)
    if old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(narrow, name=old.name)
        old.shape = ir.Shape(narrow.shape)
        return
    node.replace_input_with(number, edit.constant(node.graph, narrow, f"{old.name}_{suffix}"))
    drop_unused([old])
