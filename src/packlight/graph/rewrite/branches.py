"""Residual branches: whole parts of a graph that can be left out; their Add goes on without."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from packlight.errors import WrongUsage
from packlight.graph.coupling.shapes import infer_shapes, know_shapes
from packlight.graph.layers import find_layers
from packlight.graph.rewrite.noops import remove_unused
from packlight.graph.rewrite.single import bypass, is_standard, unique_value_name
from packlight.graph.save import copy_model
from packlight.graph.walk import constant_of, ensure_names

_SAME_TWICE = ("Relu", "Clip")
"""Activations that change nothing where they have been before."""


@dataclass(frozen=True)
class Branch:
    """The nodes that compute one summand of an Add whose other summand goes past them.

    name: of the Add. shortcut: the value that is left when the branch goes. number: which input
    of the Add the branch is. layers, nodes: the names of what goes with it, in graph order.
    parameters: of the layers.
    """

    name: str
    shortcut: str
    number: int
    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    parameters: int


def find_branches(model: ir.Model) -> tuple[Branch, ...]:
    """The residual branches of the main graph, in graph order.

    An Add of two equal shapes where one summand is computed from the other, or both from the
    same value (a projection as shortcut): then the one with more parameters is the branch.
    Nothing else reads what is in a branch, and at least one layer lies in it.
    """
    copy = copy_model(model)
    ensure_names(copy)
    know_shapes(copy)
    return tuple(branch for node in copy.graph if (branch := _branch_of(copy, node)) is not None)


def remove_part(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of a model without these residual branches (names from `find_branches`).

    Each Add is replaced by its shortcut. An activation behind it stays, unless the shortcut has
    been through the same one, which changes nothing twice. What nothing else reads takes over the
    names of the sum and of what the activation gave, so that it is known what it stands for.
    Inputs and outputs keep their names, types and shapes. Raises WrongUsage for a name that is no
    branch, and where one cannot go because its shortcut is itself an input or output of the model.
    """
    known = {branch.name: branch for branch in find_branches(model)}
    for name in names:
        if name not in known:
            raise WrongUsage(
                f"The model has no residual branch {name!r}: take a name that find_branches gives."
            )
    copy = copy_model(model)
    ensure_names(copy)
    nodes = {node.name: node for node in copy.graph}
    inner = {inside for name in names for inside in known[name].nodes}
    for name in dict.fromkeys(names):
        if name in inner:
            continue  # it lies in a larger branch that goes as well
        node = nodes[name]
        shortcut = node.inputs[1 - known[name].number]
        assert shortcut is not None
        if not _take_out(node, shortcut, inner):
            raise WrongUsage(
                f"The branch {name!r} cannot be removed, because its sum is an output of the "
                "model and its shortcut has a name of its own: leave this branch."
            )
    remove_unused(copy)
    infer_shapes(copy)
    for value, before in zip(copy.graph.outputs, model.graph.outputs, strict=True):
        value.shape = before.shape.copy() if before.shape is not None else None
    return copy


def with_stand_ins(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of a model that gives for each of these branches what should stand for its sum.

    Without the branch f the sum f + r(p) with r, an activation that changes nothing twice, is
    gone, and the layer before gives p in its stead, which r reads. To hold it to f + r(p) would
    ask for 0 where p is below: it is held to f + p, which is told under the name of the sum.
    All else of the model is as it was, but for the name of the sum.
    """
    copy = copy_model(model)
    if not names:
        return copy
    known = {branch.name: branch for branch in find_branches(model)}
    ensure_names(copy)
    stand: dict[ir.Value, ir.Value] = {}
    for node in list(copy.graph):
        if node.name not in names or node.name not in known:
            continue
        number = known[node.name].number
        branch, shortcut = node.inputs[number], node.inputs[1 - number]
        assert shortcut is not None
        total = node.outputs[0]
        twice = _done_twice(total, shortcut)
        if twice is None:
            continue
        name = total.name or ""
        total.name = unique_value_name(copy, f"{name}_whole")
        linear = ir.node("Add", [branch, stand.get(twice.source, twice.source)])
        stood = linear.outputs[0]
        stood.name, stood.type, stood.shape = name, total.type, total.shape
        stand[total] = stood
        copy.graph.insert_after(node, linear)
    return copy


def _take_out(node: ir.Node, shortcut: ir.Value, gone: Collection[str]) -> bool:
    """Replace a sum by its shortcut, names included; False where the graph needs the sum."""
    total = node.outputs[0]
    twice = _done_twice(total, shortcut)
    source = shortcut if twice is None else twice.source
    alone = (
        all(use.node is node or (use.node.name or "") in gone for use in shortcut.uses())
        and not shortcut.is_graph_output()
    )
    if twice is not None:
        alone = alone and len(list(source.uses())) == 1 and not source.is_graph_output()
    name = total.name
    if not bypass(node, shortcut):
        return False
    given = None if twice is None else twice.behind.outputs[0].name
    if twice is not None and not bypass(twice.behind, shortcut):
        given = None
    if alone and source.producer() is not None:
        if given is not None:
            shortcut.name = given
        if not source.is_graph_output():
            source.name = name
    return True


@dataclass(frozen=True)
class _Twice:
    """An activation of `source` that the shortcut is, and the same one `behind` the sum."""

    source: ir.Value
    behind: ir.Node


def _done_twice(total: ir.Value, shortcut: ir.Value) -> _Twice | None:
    """Where the sum is read by one node alone, which does what made its shortcut."""
    uses = list(total.uses())
    before = shortcut.producer()
    if len(uses) != 1 or total.is_graph_output() or before is None:
        return None
    behind, source = uses[0].node, before.inputs[0]
    same = (
        is_standard(before, *_SAME_TWICE)
        and is_standard(behind, before.op_type)
        and before.inputs[1:] == behind.inputs[1:]
        and before.attributes == behind.attributes
    )
    return _Twice(source, behind) if same and source is not None else None


def _branch_of(model: ir.Model, node: ir.Node) -> Branch | None:
    if not is_standard(node, "Add") or any(constant_of(value) is not None for value in node.inputs):
        return None
    first, second = node.inputs
    if first is None or second is None or first is second or not _same_shape(first, second):
        return None
    sides = [_only_for(node, value) for value in (first, second)]
    found = []
    for number, inside in enumerate(sides):
        shortcut = node.inputs[1 - number]
        assert shortcut is not None
        reads = _read_by(inside)
        other = _read_by(sides[1 - number])
        if shortcut in reads or (reads & other):
            branch = _describe(model, node, number, inside, shortcut)
            if branch.layers:
                found.append(branch)
    return max(found, key=lambda branch: branch.parameters, default=None)


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None)
        for a, b in zip(first.shape, second.shape, strict=True)
    )


def _only_for(node: ir.Node, value: ir.Value) -> set[ir.Node]:
    """The nodes whose results are needed for this input of `node` alone."""
    inside: set[ir.Node] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        producer = current.producer()
        if producer is None or producer in inside or producer.op_type == "Constant":
            continue
        users = {use.node for out in producer.outputs for use in out.uses()}
        needed = users - inside - {node}
        if needed or any(out.is_graph_output() for out in producer.outputs):
            continue
        if node in users and producer is not value.producer():
            continue
        inside.add(producer)
        pending += [part for part in producer.inputs if part is not None]
    return inside


def _read_by(nodes: set[ir.Node]) -> set[ir.Value]:
    """Values computed outside that these nodes read, without constants."""
    made = {value for node in nodes for value in node.outputs}
    return {
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value not in made and constant_of(value) is None
    }


def _describe(
    model: ir.Model, node: ir.Node, number: int, inside: set[ir.Node], shortcut: ir.Value
) -> Branch:
    layers = [layer for layer in find_layers(model) if layer.node in inside]
    return Branch(
        name=node.name or "",
        shortcut=shortcut.name or "",
        number=number,
        layers=tuple(layer.name for layer in layers),
        nodes=tuple(item.name or "" for item in model.graph if item in inside),
        parameters=sum(layer.parameters for layer in layers),
    )
