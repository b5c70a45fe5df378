"""Follows every axis through a graph, node by node, by the table of rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from packlight.graph.coupling.links import Channels, Heads, Links, Unfollowable
from packlight.graph.coupling.rules import RULES
from packlight.graph.coupling.shapes import know_shapes
from packlight.graph.save import copy_model
from packlight.graph.walk import constant_of, ensure_names


@dataclass(frozen=True)
class Followed:
    """A copy of a model with all shapes that can be known, and what is known of its channels."""

    model: ir.Model
    links: Links
    channels: Channels


def follow(model: ir.Model, *, heads: Heads = "whole") -> Followed:
    """Find out which positions of all tensors go together; the model is not changed."""
    copy = copy_model(model)
    ensure_names(copy)
    know_shapes(copy)
    links = Links()
    for value in copy.graph.inputs:
        _stay(links, value, f"the model's input {value.name!r} keeps its shape")
    for node in copy.graph:
        rule = RULES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rule is None:
            _stay_around(links, node, f"the operator {node.op_type} ({node.name!r}) has no rule")
            continue
        try:
            rule(links, node)
        except Unfollowable as error:
            _stay_around(links, node, str(error))
    for value in copy.graph.outputs:
        _stay(links, value, f"the model's output {value.name!r} keeps its shape")
    return Followed(copy, links, links.solve(heads))


def _stay_around(links: Links, node: ir.Node, reason: str) -> None:
    for value in [*node.inputs, *node.outputs, *_captured(node)]:
        if value is not None:
            _stay(links, value, reason)
    for number, value in enumerate(node.inputs):
        if constant_of(value) is not None:
            links.stay(links.input(node, number), reason)


def _stay(links: Links, value: ir.Value, reason: str) -> None:
    try:
        links.stay(links.value(value), reason)
    except Unfollowable:
        return  # a tensor without a known rank has no positions, and whoever reads it will say so


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the graph around that the bodies of a node read."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        graphs: list[ir.Graph] = []
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                for value in inner.inputs:
                    if value is not None and value.graph is not graph:
                        yield value
            yield from (value for value in graph.outputs if value.graph is not graph)
