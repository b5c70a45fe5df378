"""Writes an ONNX file as a LiteRT file; runs in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from packlight.devices.litert.draft import Unwritable
from packlight.devices.litert.graph import Translation, codes_behind, encoder_of
from packlight.devices.litert.table import IN_INTEGERS, OPERATORS
from packlight.graph.model import load_model
from packlight.graph.rewrite.portable import make_portable
from packlight.graph.rewrite.single import is_standard


def convert(path: str, out: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write the ONNX file at `path` as `out`, for inputs of these shapes.

    Raises Unwritable naming the operator for which LiteRT has no form that is known here.
    """
    model = load_model(path).ir
    make_portable(model, shapes)
    Path(out).write_bytes(translate(model.graph))


def translate(graph: ir.Graph) -> bytes:
    """The bytes of a LiteRT file that computes a portable graph (see `make_portable`)."""
    to = Translation()
    inputs = {str(value.name): to.begin(value) for value in graph.inputs}
    for node in graph:
        if node in to.done or is_standard(node, "DequantizeLinear", "Constant"):
            continue  # codes become numbers where somebody reads them
        try:
            _write(to, node)
        except Unwritable as error:
            raise Unwritable(f"operator {node.op_type} (node {node.name!r}): {error}") from None
    return to.draft.pack(inputs, {str(value.name): to.at(value) for value in graph.outputs})


def _write(to: Translation, node: ir.Node) -> None:
    if is_standard(node, "QuantizeLinear"):
        to.encode(node)
        return
    if is_standard(node, "Cast") and node.inputs[0] is not None and node.inputs[0].is_initializer():
        return  # a stored weight, which is written where it is read
    write = OPERATORS.get(node.op_type) if is_standard(node) else None
    if write is None:
        domain = f" of the domain {node.domain!r}" if node.domain else ""
        raise Unwritable(f"there is no form of it{domain} here")
    allowed = IN_INTEGERS.get(node.op_type)
    to.integer = allowed is not None and _between_codes(node) and allowed(to, node)
    write(to, node)


def _between_codes(node: ir.Node) -> bool:
    """Whether a node reads codes, and its result becomes codes at once."""
    source = node.inputs[0]
    return source is not None and codes_behind(source) is not None and encoder_of(node) is not None
