"""A layer as a graph of its own, to be timed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.layers import Layer
from packlight.graph.walk import constant_of, shape_of


def layer_alone(model: ir.Model, layer: Layer, shape: Sequence[int]) -> ir.Model | None:
    """A model that computes this layer and nothing else, on an input "x" of that shape.

    None where more than its first input is computed at run time, or it lies in a subgraph.
    """
    constants = [None if value is None else constant_of(value) for value in layer.node.inputs[1:]]
    given = [value is not None for value in layer.node.inputs[1:]]
    known = [tensor is not None for tensor in constants]
    if layer.graph_path or given != known:
        return None
    dtype = layer.weight.dtype or ir.DataType.FLOAT
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    values: list[ir.Value | None] = [x]
    for number, tensor in enumerate(constants):
        if tensor is None:
            values.append(None)
            continue
        value = ir.Value(
            name=f"constant{number}",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(shape_of(tensor)),
            const_value=tensor,
        )
        values.append(value)
    node = ir.Node(
        layer.node.domain,
        layer.node.op_type,
        values,
        list(layer.node.attributes.values()),
        name=layer.name,
    )
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(dtype)
    graph = ir.Graph(
        [x],
        [node.outputs[0]],
        nodes=[node],
        initializers=[value for value in values[1:] if value is not None],
        opset_imports=dict(model.graph.opset_imports),
        name="alone",
    )
    found = ir.Model(graph, ir_version=model.ir_version)
    infer_shapes(found)
    return found
