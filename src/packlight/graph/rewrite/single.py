"""Small helpers that several rewrites of a graph share."""

from __future__ import annotations

import onnx_ir as ir

from packlight.graph.walk import initializers_of, walk_graphs


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether `node` is one of these operators of the ONNX standard (any, when none is named)."""
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def int_of(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INT:
        return default
    return attribute.as_int()


def float_of(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.FLOAT:
        return default
    return attribute.as_float()


def text_of(node: ir.Node, name: str, default: str) -> str:
    """A text attribute, or the operator's default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The axes of `value` when all of them are known numbers."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def bypass(node: ir.Node, source: ir.Value) -> bool:
    """Take out `node`, whose first output equals `source`; False where the graph needs it.

    The names of the graph's outputs stay: when the node's output is one, whatever
    computes `source` takes over its name, unless `source` is an input, a constant, an
    output itself, or belongs to an outer graph.
    """
    output = node.outputs[0]
    if output.is_graph_output():
        producer = source.producer()
        if producer is None or source.is_graph_output() or producer.graph is not node.graph:
            return False
        name, kind, shape = output.name, output.type, output.shape
        output.name = None
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        source.name, source.type, source.shape = name, kind, shape
    else:
        output.replace_all_uses_with(source)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def unique_value_name(model: ir.Model, base: str) -> str:
    """`base`, or `base_2`, ...: a name that no value of the model has."""
    taken: set[str | None] = set()
    for _, graph in walk_graphs(model):
        taken.update(value.name for value in [*graph.inputs, *initializers_of(graph)])
        taken.update(value.name for node in graph for value in node.outputs)
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
