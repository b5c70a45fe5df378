"""Operators that ONNX itself defines by others: their function bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import torch

from packlight.errors import UnusableModel
from packlight.graph.torch.values import DTYPES


@dataclass(frozen=True)
class Body:
    """A function, the functions that its nodes may call, and the caller's operator sets.

    defaults: of attributes, where the function itself does not have them.
    """

    function: ir.Function
    functions: Mapping[tuple[str, str, str], ir.Function] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)
    defaults: Mapping[str, ir.Attr] = field(default_factory=dict)


def find_body(
    node: ir.Node, domain: str, version: int, opsets: Mapping[str, int]
) -> Body | Callable[[tuple[Any, ...]], Body] | None:
    """The body of a node's operator, or a function of its arguments that gives it.

    Some bodies depend on the types of what the operator is called with, which are only known
    when it runs. None where ONNX does not define the operator by others.
    """
    schema: Any  # its stubs lack what tells of functions
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        function = _plain_body(node.op_type, version, domain)
        return Body(function, {}, opsets, _defaults_of(schema))
    if not schema.has_context_dependent_function:
        return None
    proto = ir.to_proto(node)
    versions = schema.context_dependent_function_opset_versions

    def find(arguments: tuple[Any, ...]) -> Body:
        types = [_type_of(one, value) for one, value in zip(arguments, node.inputs, strict=False)]
        _check_types(schema, proto, types)
        content = schema.get_context_dependent_function_with_opset_version(
            max(versions), proto.SerializeToString(), [one.SerializeToString() for one in types]
        )
        return Body(_read(onnx.FunctionProto.FromString(content), domain, version), {}, opsets)

    return find


def _check_types(schema: Any, proto: onnx.NodeProto, types: Sequence[onnx.TypeProto]) -> None:
    """Raise UnusableModel for inputs that an operator does not take.

    What makes bodies is native code that trusts the ranks of its inputs and crashes without
    some; what infers shapes looks first.
    """
    given = {
        name: one for name, one in zip(proto.input, types, strict=False) if one.WhichOneof("value")
    }
    missing = [
        formal.name
        for place, formal in enumerate(schema.inputs)
        if formal.option == onnx.defs.OpSchema.FormalParameterOption.Single
        and (place >= len(types) or not types[place].HasField("tensor_type"))
    ]
    try:
        if missing:
            raise ValueError(f"{missing[0]} is no tensor")
        onnx.shape_inference.infer_node_outputs(schema, proto, given)
    except Exception as error:
        raise UnusableModel(
            f"Node {proto.name!r} ({proto.op_type}) is given inputs that it does not take "
            f"({str(error).strip().splitlines()[0][:200]}): export the model again."
        ) from error


def _defaults_of(schema: Any) -> dict[str, ir.Attr]:
    return {
        name: ir.serde.deserialize_attribute(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


@cache
def _plain_body(name: str, version: int, domain: str) -> ir.Function:
    schema: Any = onnx.defs.get_schema(name, version, domain)
    content = schema.get_function_with_opset_version(max(schema.function_opset_versions))
    return _read(onnx.FunctionProto.FromString(content), domain, version)


def _read(proto: onnx.FunctionProto, domain: str, version: int) -> ir.Function:
    made = {name for node in proto.node for name in node.output} | {*proto.input}
    for name in proto.output:
        if name not in made:  # the node does not ask for it, so the body does not give it
            proto.node.append(onnx.helper.make_node("Constant", [], [name], value_int=0))
    if not proto.opset_import:
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    return ir.serde.deserialize_function(proto)


_CODES = {dtype: code for code, dtype in reversed(DTYPES.items())}


def _type_of(argument: Any, value: ir.Value | None) -> onnx.TypeProto:
    if not isinstance(argument, torch.Tensor):
        return onnx.TypeProto()
    code = _CODES[argument.dtype]
    if value is not None and value.dtype is not None:
        code = int(value.dtype)
    return onnx.helper.make_tensor_type_proto(code, list(argument.shape))
