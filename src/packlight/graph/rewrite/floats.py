"""Stores and computes in 32-bit floats what a model has in 64 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from packlight.graph.rewrite.single import is_standard, unique_value_name
from packlight.graph.walk import initializers_of, walk_graphs, walk_nodes

# Attributes that name an element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def narrow_floats(model: ir.Model) -> bool:
    """Turn float64 constants and values into float32, in place; inputs and outputs keep theirs.

    Raises ValueError when a number does not fit into float32.
    """
    double = ir.DataType.DOUBLE
    found = any(
        value.dtype == double for _, graph in walk_graphs(model) for value in initializers_of(graph)
    ) or any(_holds_double(node) for _, node in walk_nodes(model))
    if not found and all(value.dtype != double for value in model.graph.inputs):
        return False
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            if value.const_value is not None and value.const_value.dtype == double:
                value.const_value = _narrowed(value.const_value, value.name)
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in graph:
            _narrow_attributes(node)
    inner: list[ir.Value] = []
    for path, graph in walk_graphs(model):
        inner += [value for node in graph for value in node.outputs]
        inner += list(graph.inputs) if path else []
    outputs = [value for value in model.graph.outputs if value.dtype == double]
    for value in inner:
        if value.dtype == double:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in [value for value in model.graph.inputs if value.dtype == double]:
        _cast_input(model, value)
    for value in outputs:
        _cast_output(model, value)
    return True


def _holds_double(node: ir.Node) -> bool:
    for key, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            if attribute.as_tensor().dtype == ir.DataType.DOUBLE:
                return True
        elif _names_double(node, key, attribute):
            return not all(value.is_graph_output() for value in node.outputs)
    return False


def _names_double(node: ir.Node, key: str, attribute: ir.Attr) -> bool:
    if key not in _TYPE_ATTRIBUTES or attribute.type != ir.AttributeType.INT:
        return False
    return is_standard(node) and attribute.as_int() == ir.DataType.DOUBLE


def _narrow_attributes(node: ir.Node) -> None:
    for key, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == ir.DataType.DOUBLE:
                node.attributes[key] = ir.AttrTensor(key, _narrowed(tensor, tensor.name))
        elif _names_double(node, key, attribute):
            node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT.value)


def _narrowed(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    wide = tensor.numpy()
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if np.isinf(narrow).sum() != np.isinf(wide).sum():
        raise ValueError(f"tensor {name!r} holds numbers too large for 32 bits")
    return ir.Tensor(narrow, name=name)


def _cast_input(model: ir.Model, value: ir.Value) -> None:
    if not value.uses():
        return
    node = _cast(ir.DataType.FLOAT, value)
    node.outputs[0].name = unique_value_name(model, f"{value.name}_float32")
    node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    for user, number in list(value.uses()):
        if user is not node:
            user.replace_input_with(number, node.outputs[0])
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.append(node)
    else:
        model.graph.insert_before(first, node)


def _cast_output(model: ir.Model, value: ir.Value) -> None:
    if value.producer() is None:
        return
    name = value.name
    value.name = unique_value_name(model, f"{name}_float32")
    node = _cast(ir.DataType.DOUBLE, value)
    node.outputs[0].name = name
    node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    for number, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[number] = node.outputs[0]
    model.graph.append(node)


def _cast(to: ir.DataType, value: ir.Value) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", to.value)], num_outputs=1)
    node.outputs[0].type = ir.TensorType(to)
    return node
