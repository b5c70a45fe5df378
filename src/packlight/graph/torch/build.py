"""Makes programs of graphs: every node's function and attributes are resolved once, here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import onnx_ir as ir

from packlight.errors import UnsupportedOperator, UnusableModel
from packlight.graph.torch.bodies import Body, find_body
from packlight.graph.torch.lookup import find_operator
from packlight.graph.torch.run import Program, Step, run_program
from packlight.graph.torch.values import tensor_from
from packlight.graph.walk import constant_of

MOST_NODES = 1_000_000
"""What a graph may come to with its functions written out: a few lines can describe billions."""


@dataclass(frozen=True)
class Surroundings:
    """What a graph's nodes are looked up in.

    functions: the model's own. opsets: versions by domain. bound: inside a function, the
    attributes that its caller gave. left: how many more nodes may be made ready, one number.
    """

    functions: Mapping[tuple[str, str, str], ir.Function]
    opsets: Mapping[str, int]
    bound: Mapping[str, ir.Attr] = field(default_factory=dict)
    left: list[int] = field(default_factory=lambda: [MOST_NODES])

    def version(self, domain: str) -> int:
        """The operator set's version; a domain that is not listed counts as version 1."""
        return self.opsets.get(domain) or (self.opsets.get("ai.onnx", 1) if not domain else 1)


def build_program(
    nodes: Iterable[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    around: Surroundings,
) -> tuple[Program, tuple[ir.Value, ...]]:
    """A program, and the values it takes after its inputs: constants, and what lies around.

    Raises UnsupportedOperator for a node whose operator is not known, UnusableModel where
    functions call each other without end.
    """
    places: dict[ir.Value, int] = {value: place for place, value in enumerate(inputs)}
    captured: list[ir.Value] = []
    drafts: list[tuple[Callable[..., Any], list[int], list[int], str]] = []
    count = len(places)

    def place_of(value: ir.Value | None) -> int:
        nonlocal count
        if value is None or value.name == "":
            return -1
        if value not in places:
            captured.append(value)
            places[value] = count
            count += 1
        return places[value]

    for node in nodes_to_run(nodes):
        around.left[0] -= 1
        if around.left[0] < 0:
            raise UnusableModel(
                f"The graph has more than {MOST_NODES} nodes with its functions written out: "
                "they call each other too often, export the model again."
            )
        run, around_it = _resolve(node, around)
        read = [place_of(value) for value in node.inputs]
        while not around_it and read and read[-1] == -1:
            read.pop()
        read += [place_of(value) for value in around_it]
        made = []
        for value in node.outputs:
            places[value] = count
            made.append(count)
            count += 1
        drafts.append((run, read, made, label_of(node)))
    results = [place_of(value) for value in outputs]
    steps = _with_last_uses(drafts, {*results})
    given = (*(places[value] for value in inputs), *(places[value] for value in captured))
    return Program(tuple(steps), count + 1, given, tuple(results)), tuple(captured)


def label_of(node: ir.Node) -> str:
    """The node as messages name it."""
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{name!r} ({domain}{node.op_type})"


def nodes_to_run(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """All nodes but constants, which are read where they are used, like initializers."""
    return [
        node
        for node in nodes
        if node.op_type != "Constant"
        or node.domain not in ("", "ai.onnx")
        or constant_of(node.outputs[0]) is None
    ]


def _with_last_uses(
    drafts: Sequence[tuple[Callable[..., Any], list[int], list[int], str]], kept: set[int]
) -> list[Step]:
    """The steps, each with the values that nobody needs after it."""
    seen = kept | {-1}
    steps = []
    for run, read, made, label in reversed(drafts):
        ending = {*read, *made} - seen
        seen |= ending
        steps.append(Step(run, tuple(read), tuple(made), tuple(sorted(ending)), label))
    return steps[::-1]


def _resolve(
    node: ir.Node, around: Surroundings
) -> tuple[Callable[..., Any], tuple[ir.Value, ...]]:
    """What runs a node, and the values it reads besides its inputs."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    attributes = _attributes_of(node, around)
    own = around.functions.get((domain, node.op_type, node.overload))
    if own is not None:
        body = Body(own, around.functions, around.opsets)
        return _call(node, body, attributes, around)
    version = node.version or around.version(domain)
    function = find_operator(domain, node.op_type, version)
    if function is None:
        found = find_body(node, domain, version, around.opsets)
        if found is None:
            raise UnsupportedOperator(
                f"Node {label_of(node)} uses an operator that packlight cannot turn into "
                f"PyTorch (version {version} of {domain or 'ai.onnx'}): the model cannot be healed."
            )
        if isinstance(found, Body):
            return _call(node, found, attributes, around)
        return _LateBody(found, attributes), ()
    return _bind(node, function, attributes, around)


def _bind(
    node: ir.Node,
    function: Callable[..., Any],
    attributes: Mapping[str, ir.Attr],
    around: Surroundings,
) -> tuple[Callable[..., Any], tuple[ir.Value, ...]]:
    """An operator's function with a node's attributes, and the values that its graphs read."""
    known = _keywords_of(function)
    keywords: dict[str, Any] = {}
    captured: list[ir.Value] = []
    for name, attribute in attributes.items():
        if name not in known and "**" not in known:
            if name not in _IGNORED:
                raise UnsupportedOperator(
                    f"Node {label_of(node)} has an attribute {name!r} that packlight does not "
                    "know: the model cannot be healed."
                )
        elif attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            program, values = build_program(graph, graph.inputs, graph.outputs, around)
            keywords[name] = _Graph(program, tuple(graph.outputs), len(captured), len(values))
            captured += values
        else:
            keywords[name] = _value_of(attribute)
    if "outputs" in known:
        keywords["outputs"] = len(node.outputs)
    if "node" in known:
        keywords["node"] = node
    if "taken" in known:
        keywords["taken"] = len(node.inputs)
    return (partial(function, **keywords) if keywords else function), tuple(captured)


# Attributes that say how to compute, not what, and those of old versions that nobody read.
_IGNORED = frozenset({"consumed_inputs", "is_test"})


@cache
def _keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a built-in of PyTorch, which takes inputs only
        return frozenset()
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return frozenset([one.name for one in parameters] + ["**"] * open_ended)


@dataclass(frozen=True)
class _Graph:
    """A graph inside a node, called with its inputs and all that the node captured."""

    program: Program
    results: tuple[ir.Value, ...]
    start: int
    count: int

    def __call__(self, given: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
        own = captured[self.start : self.start + self.count]
        return run_program(self.program, [*given, *own])


def _attributes_of(node: ir.Node, around: Surroundings) -> dict[str, ir.Attr]:
    """A node's attributes, with those that refer to a function's replaced."""
    found = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            bound = around.bound.get(str(attribute.ref_attr_name))
            if bound is not None:
                found[name] = bound
        else:
            found[name] = attribute
    return found


def _value_of(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return tensor_from(attribute.as_tensor())
    if attribute.type in (
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    ):
        return tuple(attribute.value)
    if attribute.type == ir.AttributeType.TENSORS:
        return tuple(tensor_from(one) for one in attribute.as_tensors())
    return attribute.value


def _call(
    node: ir.Node, body: Body, attributes: Mapping[str, ir.Attr], around: Surroundings
) -> tuple[Callable[..., Any], tuple[ir.Value, ...]]:
    """A call of a function; its constants are captured like those of a graph inside a node."""
    program, captured = _program_of(body, attributes, around.left)
    inputs = len(body.function.inputs)
    return partial(_run_body, program, inputs, len(node.inputs)), captured


def _program_of(
    body: Body, attributes: Mapping[str, ir.Attr], left: list[int]
) -> tuple[Program, tuple[ir.Value, ...]]:
    function = body.function
    own = {name: one for name, one in function.attributes.items() if one.value is not None}
    defaults = {**body.defaults, **own}
    opsets = {**body.opsets, **function.opset_imports}
    around = Surroundings(body.functions, opsets, {**defaults, **attributes}, left)
    return build_program(function, function.inputs, function.outputs, around)


def _run_body(program: Program, inputs: int, given: int, *arguments: Any) -> Any:
    own = arguments[:given]
    values = [*own, *[None] * (inputs - len(own)), *arguments[given:]]
    results = run_program(program, values)
    return results[0] if len(results) == 1 else tuple(results)


class _LateBody:
    """A function body that depends on the types it is called with: made when first called."""

    def __init__(self, find: Callable[..., Body], attributes: Mapping[str, ir.Attr]) -> None:
        self._find = find
        self._attributes = attributes
        self._made: dict[Any, tuple[Program, list[Any], int]] = {}

    def __call__(self, *arguments: Any) -> Any:
        key = tuple((getattr(one, "dtype", None), getattr(one, "ndim", 0)) for one in arguments)
        if key not in self._made:
            body = self._find(arguments)
            program, captured = _program_of(body, self._attributes, [MOST_NODES])
            held = [tensor_from(constant_of(value)) for value in captured]  # type: ignore[arg-type]
            self._made[key] = (program, held, len(body.function.inputs))
        program, held, inputs = self._made[key]
        return _run_body(program, inputs, len(arguments), *arguments, *held)
