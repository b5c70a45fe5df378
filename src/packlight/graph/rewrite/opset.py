"""Upgrades a model to a newer ONNX operator set.

onnx's converter is native code: it runs in a process of its own, as a file that
makes it crash must not take packlight along.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import onnx
import onnx_ir as ir

from packlight.graph.save import copy_model
from packlight.graph.walk import walk_graphs

SECONDS = 120
"""A conversion that takes longer is given up."""

_STAYS_BYTES = 1024

# The child program: a model on its standard input, the converted one on its output.
_PROGRAM = """
import sys
import onnx, onnx.version_converter
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
converted = onnx.version_converter.convert_version(model, int(sys.argv[1]))
sys.stdout.buffer.write(converted.SerializeToString())
"""


def upgrade_opset(version: int) -> Callable[[ir.Model], bool]:
    """A step that converts a model to operator set `version`, in place, if it is older."""

    def upgrade(model: ir.Model) -> bool:
        current = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
        if current is None or current >= version:
            return False
        if model.functions:
            raise ValueError("models with functions cannot be converted")
        _check_subgraphs(model, current, version)
        shell = copy_model(model)
        weights = _take_out_weights(shell)
        converted = ir.from_proto(_convert(ir.to_proto(shell), version))
        _put_back_weights(converted.graph, weights)
        if current < 11:
            _keep_coordinates(converted.graph)
        model.graph = converted.graph
        model.ir_version = max(model.ir_version or 0, converted.ir_version or 0)
        return True

    return upgrade


def _keep_coordinates(graph: ir.Graph) -> None:
    # Before version 11 Upsample and Resize took coordinates as they are; the converter
    # leaves the new default, which samples half a pixel further on.
    for node in graph:
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in node.attributes:
            mode = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            node.attributes["coordinate_transformation_mode"] = mode
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _check_subgraphs(model: ir.Model, current: int, version: int) -> None:
    # The converter does not look into the bodies of If and Loop.
    for path, graph in walk_graphs(model):
        for node in graph:
            if not path or node.domain not in ("", "ai.onnx"):
                continue
            old = onnx.defs.get_schema(node.op_type, current, "").since_version
            new = onnx.defs.get_schema(node.op_type, version, "").since_version
            if _breaks(node.op_type, old, new):
                raise ValueError(f"{node.op_type} inside {path[-1]} cannot be converted")


def _breaks(op_type: str, old: int, new: int) -> bool:
    """Whether the operator takes its parameters differently since."""
    if old == new:
        return False
    before = onnx.defs.get_schema(op_type, old, "")
    after = onnx.defs.get_schema(op_type, new, "")
    inputs = [value.name for value in before.inputs]
    # More types or optional extras are harmless, moved or missing parameters are not.
    return not (
        inputs == [value.name for value in after.inputs][: len(inputs)]
        and set(before.attributes) <= set(after.attributes)
        and len(before.outputs) == len(after.outputs)
        and not any(
            attribute.required
            for name, attribute in after.attributes.items()
            if name not in before.attributes
        )
    )


def _take_out_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn large initializers into inputs, so that only the graph travels."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _STAYS_BYTES:
            continue
        weights[name] = tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return weights


def _put_back_weights(graph: ir.Graph, weights: dict[str, ir.TensorProtocol]) -> None:
    kept = []
    for value in list(graph.inputs):
        if value.name in weights:
            value.const_value = weights[value.name]
        elif not value.is_initializer():
            kept.append(value)
    parked = [value for value in graph.inputs if value.name in weights]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for value in parked:
        graph.register_initializer(value)


def _convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, str(version)],
            input=proto.SerializeToString(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the conversion took longer than {SECONDS} seconds") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[-1][:200] if lines else "the converter crashed")
    converted: onnx.ModelProto = onnx.ModelProto.FromString(done.stdout)
    return converted
