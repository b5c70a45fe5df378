"""Walks over every graph of a model: the main one, those inside nodes, and functions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def walk_graphs(model: ir.Model) -> Iterator[tuple[tuple[str, ...], ir.Graph | ir.Function]]:
    """Every graph with where it is: () the main one, then (node.attribute, ...) and functions."""
    pending: list[tuple[tuple[str, ...], ir.Graph | ir.Function]] = [((), model.graph)]
    pending += [
        ((f"function {function.domain}::{function.name}",), function)
        for function in model.functions.values()
    ]
    while pending:
        path, graph = pending.pop(0)
        yield path, graph
        for node in graph:
            for key, attribute in node.attributes.items():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    pending.append(((*path, f"{node.name}.{key}"), attribute.as_graph()))
                elif attribute.type == ir.AttributeType.GRAPHS:
                    pending += [
                        ((*path, f"{node.name}.{key}[{index}]"), body)
                        for index, body in enumerate(attribute.as_graphs())
                    ]


def walk_nodes(model: ir.Model) -> Iterator[tuple[tuple[str, ...], ir.Node]]:
    """Every node of every graph, with where that graph is."""
    for path, graph in walk_graphs(model):
        for node in graph:
            yield path, node


def initializers_of(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    """The initializers of a graph; a function has none."""
    return list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The axes of a constant tensor."""
    return tuple(tensor.shape.numpy())


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` always is: an initializer, or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant":
        return None
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:
        return None


def ensure_names(model: ir.Model) -> None:
    """Give every node a name of its own, in place: unnamed ones get their first output's."""
    taken: set[str] = set()
    for _, graph in walk_graphs(model):
        for node in graph:
            wanted = node.name or next((o.name for o in node.outputs if o.name), None)
            base = wanted or f"{node.op_type}_{len(taken)}"
            name, number = base, 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name)
            if node.name != name:
                node.name = name
