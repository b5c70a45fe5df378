"""The constants of a model, each under a name of its own."""

from __future__ import annotations

import onnx_ir as ir

from packlight.graph.walk import constant_of, initializers_of, walk_graphs


def name_constants(model: ir.Model) -> dict[ir.Value, str]:
    """Names of all initializers and outputs of Constant nodes, those of inner graphs too.

    Constants of functions are left out: each serves many callers.

    Graphs inside nodes may use a name that another graph uses for something else: the later
    one gets a number behind it. Copies of a model give the same names.
    """
    names: dict[ir.Value, str] = {}
    taken: set[str] = set()
    for path, graph in walk_graphs(model):
        if path and path[0].startswith("function "):
            continue
        constants = initializers_of(graph)
        constants += [
            output for node in graph for output in node.outputs if constant_of(output) is not None
        ]
        for value in constants:
            name, number = str(value.name), 2
            while name in taken:
                name, number = f"{value.name}_{number}", number + 1
            taken.add(name)
            names[value] = name
    return names


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, also of weights that old exporters list as inputs."""
    if value is not None and value.is_initializer():
        return value.const_value
    return constant_of(value)
