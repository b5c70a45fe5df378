"""Makes Reshape targets constant that are computed from shapes, and merges slices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from packlight.graph.rewrite.single import int_of, is_standard, unique_value_name
from packlight.graph.walk import constant_of, walk_graphs

Element = int | tuple[ir.Value, int]
"""One entry of a shape vector: a number, or an axis of a tensor."""

_DEPTH = 16


def fix_reshapes(model: ir.Model) -> bool:
    """Give Reshapes constant targets where all but one axis are known or copied, in place.

    Exporters compute `x.view(x.size(0), -1)` with Shape, Gather, Unsqueeze and Concat; the
    same is Reshape(x, [0, n]), whatever the batch is.
    """
    changed = False
    for _, graph in walk_graphs(model):
        if not isinstance(graph, ir.Graph):
            continue
        for node in list(graph):
            if not is_standard(node, "Reshape") or len(node.inputs) != 2:
                continue
            source, target = node.inputs
            if source is None or constant_of(target) is not None or int_of(node, "allowzero", 0):
                continue
            vector = _shape_vector(target, _DEPTH)
            fixed = _fixed(vector, source) if vector is not None else None
            if fixed is not None:
                base = f"{node.outputs[0].name}_shape"
                node.replace_input_with(1, _initializer(model, graph, base, fixed))
                changed = True
    return changed


def merge_slices(model: ir.Model) -> bool:
    """Merge a Slice of a Slice along other axes into one, in place."""
    changed = False
    for _, graph in walk_graphs(model):
        if not isinstance(graph, ir.Graph):
            continue
        for node in list(graph):
            inner = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
            if inner is None or inner.graph is not graph or len(inner.outputs[0].uses()) != 1:
                continue
            if inner.outputs[0].is_graph_output():
                continue
            first, second = _slice_numbers(inner), _slice_numbers(node)
            if first is None or second is None or set(first[2]) & set(second[2]):
                continue
            node.replace_input_with(0, inner.inputs[0])
            node.resize_inputs(5)
            for number, (ours, theirs) in enumerate(zip(first, second, strict=True)):
                base = f"{node.outputs[0].name}_{('starts', 'ends', 'axes', 'steps')[number]}"
                value = _initializer(model, graph, base, [*ours, *theirs])
                node.replace_input_with(number + 1, value)
            graph.remove(inner, safe=True)
            changed = True
    return changed


def _shape_vector(value: ir.Value | None, depth: int) -> list[Element] | None:
    """The entries of a vector of integers that is made from shapes and constants."""
    if value is None or depth == 0:
        return None
    tensor = constant_of(value)
    if tensor is not None:
        if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > 64:
            return None
        return [int(number) for number in tensor.numpy().reshape(-1)]
    node = value.producer()
    if node is None or not is_standard(node):
        return None
    if node.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"):
        # Scalars and vectors of one entry are the same to us.
        return _shape_vector(node.inputs[0], depth - 1)
    if node.op_type == "Concat":
        parts = [_shape_vector(part, depth - 1) for part in node.inputs]
        if any(part is None for part in parts):
            return None
        return [element for part in parts if part is not None for element in part]
    if node.op_type == "Shape":
        return _axes_of(node)
    vector = _shape_vector(node.inputs[0], depth - 1)
    if vector is None:
        return None
    if node.op_type == "Gather" and int_of(node, "axis", 0) == 0:
        places = constant_of(node.inputs[1])
        if places is None or any(abs(int(i)) > len(vector) for i in places.numpy().reshape(-1)):
            return None
        chosen = [int(i) for i in places.numpy().reshape(-1)]
        return [vector[i] for i in chosen] if all(i < len(vector) for i in chosen) else None
    if node.op_type == "Slice":
        numbers = _slice_numbers(node)
        if numbers is None or numbers[2] != [0] or numbers[3] != [1]:
            return None
        return vector[numbers[0][0] : numbers[1][0]]
    return None


def _axes_of(node: ir.Node) -> list[Element] | None:
    source = node.inputs[0]
    if source is None or source.shape is None or {"start", "end"} & set(node.attributes):
        return None
    return [
        axis if isinstance(axis, int) else (source, number)
        for number, axis in enumerate(source.shape)
    ]


def _fixed(vector: list[Element], source: ir.Value) -> list[int] | None:
    """The vector as a Reshape target: 0 copies an axis of `source`, one -1 is worked out."""
    target: list[int] = []
    rank = len(source.shape) if source.shape is not None else 0
    for place, element in enumerate(vector):
        if isinstance(element, int):
            target.append(element)
        elif element == (source, place) and place < rank:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _slice_numbers(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Starts, ends, axes and steps of a Slice, when all are constant."""
    if not is_standard(node, "Slice") or len(node.inputs) < 3:
        return None
    numbers: list[list[int] | None] = []
    for place in range(1, 5):
        value = node.inputs[place] if place < len(node.inputs) else None
        tensor = constant_of(value)
        if value is not None and tensor is None:
            return None
        found = None if tensor is None else [int(i) for i in np.ravel(tensor.numpy())]
        numbers.append(found)
    starts, ends, axes, steps = numbers
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    if any(axis < 0 for axis in axes):
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None:
            return None
        axes = [axis % len(shape) for axis in axes]
    return starts, ends, axes, steps if steps is not None else [1] * len(starts)


def _initializer(model: ir.Model, graph: ir.Graph, base: str, numbers: list[int]) -> ir.Value:
    name = unique_value_name(model, base)
    array = np.array(numbers, dtype=np.int64)
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value
