"""Where a quantized graph holds codes, and what they are read with.

Codes of weights stand as DequantizeLinear(codes, scale) or Mul(Cast(codes), scale), biases as
DequantizeLinear(int32, input scale * weight scale). What else is made of integer constants
(codebooks, bytes that several codes share, looked-up rows) is not read here: it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from packlight.graph.torch.naming import constant_tensor

CODES = frozenset({"INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8"})


@dataclass(frozen=True)
class CodeSite:
    """Codes of a weight. zero: their zero points, None for 0. axis, block: of the scale, as
    DequantizeLinear has them; None where it broadcasts by itself. readers: the nodes that
    compute with what is decoded.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None
    block: int
    readers: tuple[ir.Node, ...]


@dataclass(frozen=True)
class BiasSite:
    """An int32 bias, whose scale is that of its layer's input times that of its weight."""

    codes: ir.Value
    scale: ir.Value
    input_scale: ir.Value
    weight_scale: ir.Value


def constant_nodes(graph: ir.Graph) -> tuple[set[ir.Node], set[ir.Node]]:
    """The nodes of which every input is constant; and those that decode codes among them."""
    constant: set[ir.Node] = set()
    decoding: set[ir.Node] = set()
    for node in graph:
        values = [value for value in node.inputs if value is not None]
        if not values or not all(_is_constant(value, constant) for value in values):
            continue
        constant.add(node)
        if any(is_coded(value) or value.producer() in decoding for value in values):
            decoding.add(node)
    return constant, decoding


def is_coded(value: ir.Value | None) -> bool:
    """Whether a value is a constant of integers of 8 bits or fewer."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype.name in CODES


def find_code_sites(graph: ir.Graph, constant: set[ir.Node]) -> list[CodeSite]:
    """The codes of weights in a graph, in the order of its nodes. constant: its constant nodes."""
    found = []
    for codes in list(graph.initializers.values()):
        if not is_coded(codes):
            continue
        uses = list(codes.uses())
        sites = [site for use in uses if (site := _site(codes, use.node, use.idx, constant))]
        first = sites[0] if sites else None
        # Codes that are also read in another way, a zero point say, are not a weight's alone.
        if first is None or len(sites) < len(uses):
            continue
        if all(_reading(site) == _reading(first) for site in sites):
            readers = dict.fromkeys(node for site in sites for node in site.readers)
            found.append(CodeSite(codes, *_reading(first), tuple(readers)))
    return found


def _reading(site: CodeSite) -> tuple[ir.Value, ir.Value | None, int | None, int]:
    return site.scale, site.zero, site.axis, site.block


def _site(codes: ir.Value, node: ir.Node, place: int, constant: set[ir.Node]) -> CodeSite | None:
    if place != 0 or node not in constant:
        return None
    (decoded,) = node.outputs
    if node.op_type == "DequantizeLinear":
        scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if scale is None:
            return None
        axis, block = _integer(node, "axis", 1), _integer(node, "block_size", 0)
        return CodeSite(codes, scale, zero, axis, block, _readers(decoded, constant))
    if node.op_type != "Cast" or len(decoded.uses()) != 1:
        return None
    (use,) = decoded.uses()
    other = use.node.inputs[1 - use.idx] if use.node.op_type == "Mul" else None
    if other is None or constant_tensor(other) is None:
        return None
    return CodeSite(codes, other, None, None, 0, _readers(use.node.outputs[0], constant))


def _readers(value: ir.Value, constant: set[ir.Node]) -> tuple[ir.Node, ...]:
    """The nodes that compute with a constant, behind those that pass it on."""
    found: dict[ir.Node, None] = {}
    pending = [value]
    while pending:
        for use in pending.pop().uses():
            if use.node in constant:
                pending += use.node.outputs
            else:
                found[use.node] = None
    return tuple(found)


def find_bias_sites(
    graph: ir.Graph, sites: Iterable[CodeSite]
) -> tuple[list[BiasSite], set[ir.Value]]:
    """The int32 biases of layers that read codes; and scales that others rely on, which stay."""
    scales = {reader: site.scale for site in sites for reader in site.readers}
    found, bound = [], set()
    for node in graph:
        bias = _decoder(node.inputs[2]) if len(node.inputs) > 2 else None
        tensor = constant_tensor(bias.inputs[0]) if bias is not None else None
        if bias is None or tensor is None or tensor.dtype != ir.DataType.INT32:
            continue
        codes, scale = bias.inputs[0], bias.inputs[1]
        given = _decoder(node.inputs[0])
        input_scale = None if given is None else given.inputs[1]
        if node in scales and codes is not None and scale is not None and input_scale is not None:
            found.append(BiasSite(codes, scale, input_scale, scales[node]))
        elif input_scale is not None:
            bound.add(input_scale)
    return found, bound


def is_scale_only(value: ir.Value) -> bool:
    """Whether a constant is read as a scale of codes, and as nothing else."""
    if value.is_graph_output():
        return False
    for use in value.uses():
        node = use.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and use.idx == 1:
            continue
        other = node.inputs[1 - use.idx] if node.op_type == "Mul" else None
        producer = None if other is None else other.producer()
        if producer is None or producer.op_type not in ("DequantizeLinear", "Cast"):
            return False
    return True


def separate_biases(model: ir.Model) -> None:
    """Give every DequantizeLinear of an int32 constant codes and a scale of its own, in place.

    Equal constants are stored once in a file; what is learned need not stay equal.
    """
    graph = model.graph
    for node in graph:
        tensor = constant_tensor(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.dtype != ir.DataType.INT32:
            continue
        for place in (0, 1):
            value = node.inputs[place]
            held = constant_tensor(value)
            if value is not None and held is not None and len(value.uses()) > 1:
                node.replace_input_with(place, _copy(graph, value, held))


def scales_of_activations(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Constant scales of QuantizeLinear, with one of the tensors each of them rounds."""
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 2:
            continue
        value, scale = node.inputs[0], node.inputs[1]
        if value is None or scale is None or constant_tensor(scale) is None:
            continue
        found.setdefault(scale, value)
    return found


def _copy(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    number = 2
    while f"{value.name}_{number}" in graph.initializers:
        number += 1
    name = f"{value.name}_{number}"
    held = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    copy = ir.Value(name=name, type=ir.TensorType(held.dtype), shape=held.shape, const_value=held)
    graph.register_initializer(copy)
    return copy


def _decoder(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_constant(value: ir.Value, constant: set[ir.Node]) -> bool:
    return constant_tensor(value) is not None or value.producer() in constant


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
