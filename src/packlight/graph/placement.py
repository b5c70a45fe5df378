"""Where numbers become 8-bit: which nodes run in integers, and which tensors carry codes.

A runtime fuses DequantizeLinear -> operator -> QuantizeLinear into one integer kernel only
where it has such a kernel; the table below says for which operators that is worth while.
A tensor between two integer nodes is stored as codes once and never becomes float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from packlight.graph.layers import Layer
from packlight.graph.rewrite.single import float_of, is_standard
from packlight.graph.walk import constant_of

LINEAR = frozenset({"Conv", "Gemm", "MatMul"})

# The codes pass through unchanged: the output has the scale of the input.
MOVES_CODES = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)

# Integer kernels with a scale of their own for the output.
COMPUTES = frozenset(
    {
        "Add",
        "AveragePool",
        "Concat",
        "GlobalAveragePool",
        "LeakyRelu",
        "Mul",
        "Sigmoid",
    }
)

# As the last integer nodes before float ones these gain nothing and cost precision.
_POINTLESS_AT_THE_END = frozenset(
    {"Add", "Concat", "Flatten", "LeakyRelu", "Mul", "Reshape", "Sigmoid", "Squeeze", "Unsqueeze"}
)


@dataclass(frozen=True)
class Placement:
    """What runs in integers.

    nodes: names of the integer nodes. tensors: values stored as codes, in graph order.
    same_scale: value -> the value whose scale it shares (through nodes that move codes).
    clamped: names of Relu and Clip nodes that the range of their output replaces.
    """

    nodes: frozenset[str]
    tensors: tuple[str, ...]
    same_scale: dict[str, str]
    clamped: frozenset[str]


def place_quantization(model: ir.Model, layers: Iterable[Layer]) -> Placement:
    """Decide which nodes and tensors are 8-bit when `layers` (static Conv, Gemm, MatMul) are."""
    chosen = {layer.node.name for layer in layers if not layer.graph_path}
    order = list(model.graph)
    integer = {node.name for node in order if node.name in chosen}
    coded = {_data_inputs(node)[0] for node in order if node.name in integer}
    clamped: dict[str, ir.Node] = {}
    for node in order:
        if node.name not in integer and _joins(node, coded):
            integer.add(node.name)
        if node.name in integer:
            value, clamp = _result(node)
            if clamp is not None:
                clamped[str(node.name)] = clamp
            coded.add(value)
    _prune(order, integer, chosen)
    tensors: list[ir.Value] = []
    same: dict[str, str] = {}
    for node in order:
        if node.name not in integer:
            continue
        tensors += _data_inputs(node)
        value, _ = _result(node)
        if node.op_type in ("Gemm", "MatMul") and not _read_by(value, integer):
            clamped.pop(str(node.name), None)
            continue
        tensors.append(value)
        if node.op_type in MOVES_CODES:
            same[str(value.name)] = str(node.inputs[0].name)  # type: ignore[union-attr]
    names = dict.fromkeys(str(value.name) for value in tensors)
    return Placement(
        nodes=frozenset(map(str, integer)),
        tensors=tuple(names),
        same_scale=same,
        clamped=frozenset(str(clamp.name) for name, clamp in clamped.items() if name in integer),
    )


def root_of(name: str, same_scale: dict[str, str]) -> str:
    """The tensor whose scale `name` shares."""
    while name in same_scale:
        name = same_scale[name]
    return name


def _result(node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
    """The value that holds a node's result once a following clamp is swallowed, and the clamp."""
    value = node.outputs[0]
    uses = tuple(value.uses())
    if node.op_type in (*LINEAR, "Add") and len(uses) == 1 and not value.is_graph_output():
        reader = uses[0].node
        if reader.graph is node.graph and uses[0].idx == 0 and _clamps_around_zero(reader):
            return reader.outputs[0], reader
    return value, None


def _clamps_around_zero(node: ir.Node) -> bool:
    """Whether the range of a node's output does all that the node does.

    Ranges always contain 0: a Clip from 1 to 6 would let through what lies below 1.
    """
    if not is_standard(node, "Relu", "Clip"):
        return False
    low = [float_of(node, "min", -math.inf)]
    high = [float_of(node, "max", math.inf)]
    for ends, value in zip((low, high), node.inputs[1:], strict=False):
        if value is None:
            continue
        tensor = constant_of(value)
        if tensor is None or tensor.size != 1:
            return False
        ends.append(float(tensor.numpy().reshape(-1)[0]))
    return low[-1] <= 0 <= high[-1]


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations."""
    count = len(node.inputs) if node.op_type in ("Add", "Mul", "Concat") else 1
    return [value for value in node.inputs[:count] if value is not None]


def _joins(node: ir.Node, coded: set[ir.Value]) -> bool:
    """Whether a node runs in integers because all it reads is stored as codes."""
    if not is_standard(node, *MOVES_CODES, *COMPUTES):
        return False
    if node.op_type == "Pad" and not _pads_zeros(node):
        return False
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return False
    return all(value in coded for value in _data_inputs(node))


def _pads_zeros(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return True
    value = node.attributes.get("value")
    if value is not None:
        return value.as_float() == 0.0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        tensor = constant_of(node.inputs[2])
        return tensor is not None and not tensor.numpy().any()
    return True


def _prune(order: list[ir.Node], integer: set[str | None], chosen: set[str | None]) -> None:
    """Take back nodes at the end of an integer island that gain nothing there."""
    for node in reversed(order):
        if node.name not in integer or node.name in chosen:
            continue
        value, _ = _result(node)
        pointless = node.op_type in _POINTLESS_AT_THE_END or _comes_as_floats(node)
        pointless = pointless and not _read_by(value, integer)
        if pointless or value.is_graph_output():
            integer.discard(node.name)


def _comes_as_floats(node: ir.Node) -> bool:
    """Whether a node only moves what a Gemm or MatMul gives, which as the last gives floats.

    Queries, keys and values on their way to attention keep their precision so.
    """
    source: ir.Node | None = node
    while source is not None and source.op_type in MOVES_CODES - {"MaxPool"}:
        value = source.inputs[0]
        source = value.producer() if value is not None else None
    return source is not node and source is not None and source.op_type in ("Gemm", "MatMul")


def _read_by(value: ir.Value, integer: set[str | None]) -> bool:
    return any(use.node.name in integer for use in value.uses())
