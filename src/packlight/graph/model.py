"""Loads and checks ONNX models; copying and saving them stands in `save`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from packlight.errors import UnusableModel
from packlight.graph.contents import check_tensors, densify_sparse
from packlight.graph.files import first_cause, read_proto
from packlight.graph.rewrite.quiet import quiet
from packlight.graph.save import copy_model, save_model
from packlight.graph.walk import constant_of, ensure_names, initializers_of, walk_graphs, walk_nodes
from packlight.tensors import TensorSpec

__all__ = [
    "Graph",
    "Model",
    "check_finite",
    "constant_of",
    "copy_model",
    "ensure_names",
    "load_model",
    "save_model",
    "spec_of",
    "walk_graphs",
    "walk_nodes",
]

Graph: TypeAlias = ir.Model
"""A whole graph with its functions and operator sets, as onnx_ir holds it."""

_CHUNK = 1 << 22


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators whose constant inputs are weights that arithmetic multiplies with: never inf or NaN.
_WEIGHT_OPERATORS = _words(
    "Conv ConvTranspose Gemm MatMul LSTM GRU RNN Attention EmbedLayerNormalization PRelu "
    "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization "
    "SkipLayerNormalization SimplifiedLayerNormalization RMSNormalization"
)
# Operators that masks (0 and -inf, or bounds) legitimately feed.
_MASK_OPERATORS = _words(
    "Add Sub Where Clip Min Max Concat Slice Gather Unsqueeze Expand Reshape Cast Identity Pad "
    "Equal Less Greater ScatterND ScatterElements Mod If Loop Trilu Transpose Squeeze"
)


@dataclass(frozen=True)
class Model:
    """A checked ONNX model and where it came from.

    ir: the graph; its weights in external files are read lazily, when asked for.
    files: everything that must be shipped, the model file first; size_bytes: their sum.
    inputs, outputs: without the weights that old exporters list as inputs.
    """

    ir: ir.Model
    source: Path
    files: tuple[Path, ...]
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def load_model(path: Path | str) -> Model:
    """Read and check the ONNX model at `path`.

    Every node gets a unique name, and weights listed as inputs become plain initializers.
    Raises UnusableModel with a sentence when the file cannot be used: see
    `packlight.graph.files` for what is checked; NaN and infinity in weights too.
    """
    path = Path(path)
    proto = read_proto(path)
    try:
        locations = check_tensors(proto, path)
        files = _unique([path, *(path.parent / location for location in locations)])
        densify_sparse(proto, path)
        trained = bool(proto.training_info)
        with quiet():
            graph = ir.from_proto(proto)
        del proto
    except UnusableModel:
        raise
    except Exception as error:
        raise UnusableModel(
            f"{path} is not a valid ONNX graph ({first_cause(error)}): export it again."
        ) from error
    _own_tensors(graph, locations)
    _drop_weights_from_inputs(graph)
    _check_structure(graph, path)
    ensure_names(graph)
    if trained:
        graph.meta["packlight.training_info"] = True
    check_finite(graph, path)
    return Model(
        ir=graph,
        source=path,
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        inputs=tuple(spec_of(value, path) for value in graph.graph.inputs),
        outputs=tuple(spec_of(value, path) for value in graph.graph.outputs),
    )


def spec_of(value: ir.Value, path: Path | None = None) -> TensorSpec:
    """Name, element type and axes of a graph input or output.

    Anything but a tensor (a sequence, a map) has no axes and its kind as dtype.
    """
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower() if value.type else "unknown"
        if path is not None and value.is_graph_input():
            raise UnusableModel(
                f"Input {name!r} of {path} is a {kind}, and packlight feeds tensors only: "
                "export the model with tensor inputs."
            )
        return TensorSpec(name, kind, ())
    dtype = "str" if value.dtype == ir.DataType.STRING else value.type.dtype.numpy().name
    axes: list[int | str | None] = []
    for axis in value.shape or ():
        if isinstance(axis, int):
            axes.append(axis if axis >= 0 else None)  # old exporters write -1 for "any"
        else:
            axes.append(axis.value or None)
    return TensorSpec(name, dtype, tuple(axes))


def check_finite(model: ir.Model, path: Path) -> None:
    """Refuse NaN and infinity in weights, naming the tensor; masks and bounds may hold them.

    Raises UnusableModel.
    """
    for _, graph in walk_graphs(model):
        values = initializers_of(graph)
        values += [node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs]
        for value in values:
            tensor = constant_of(value) or value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
                continue
            users = {node.op_type for node, _ in value.uses()}
            found = _not_finite(tensor)
            if not found:
                continue
            weight = bool(users & _WEIGHT_OPERATORS)
            if not weight and (tensor.size == 1 or users <= _MASK_OPERATORS or found == "mask"):
                continue
            what = "NaN" if found == "nan" else "infinity"
            raise UnusableModel(
                f"Tensor {value.name!r} of {path} contains {what}: the weights are broken "
                "(training diverged, or the file is damaged). Use a checkpoint that works."
            )


def _not_finite(tensor: ir.TensorProtocol) -> str:
    """'' when all is finite, else 'nan', 'infinity' or 'mask' (only 0 and infinity)."""
    flat = tensor.numpy().reshape(-1)
    ordinary = infinite = False
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        finite = np.isfinite(part)
        if finite.all():
            ordinary = ordinary or bool((part != 0).any())
            continue
        if np.isnan(part).any():
            return "nan"
        infinite = True
        ordinary = ordinary or bool((part[finite] != 0).any())
    if not infinite:
        return ""
    return "infinity" if ordinary else "mask"


def _own_tensors(model: ir.Model, locations: dict[str, Path]) -> None:
    """Let go of the protobuf: initializers become arrays, external ones their checked path."""
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = _relocated(tensor, locations)
            elif isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype.bitwidth >= 8:
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        for node in graph:
            for key, attribute in list(node.attributes.items()):
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    node.attributes[key] = ir.AttrTensor(key, _relocated(tensor, locations))


def _relocated(tensor: ir.ExternalTensor, locations: dict[str, Path]) -> ir.ExternalTensor:
    # The real path was checked by us; without a base folder onnx_ir takes it as it is
    # (its own check would refuse the links of a Hugging Face cache).
    return ir.ExternalTensor(
        location=str(locations[str(tensor.location)]),
        offset=tensor.offset,
        length=tensor.length,
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir="",
    )


def _drop_weights_from_inputs(model: ir.Model) -> None:
    graph = model.graph
    kept = [value for value in graph.inputs if not value.is_initializer()]
    if len(kept) != len(graph.inputs):
        graph.inputs.clear()
        graph.inputs.extend(kept)
    # Initializers that are not inputs exist since IR version 4.
    model.ir_version = max(model.ir_version or 0, 4)


def _check_structure(model: ir.Model, path: Path) -> None:
    for _, graph in walk_graphs(model):
        readers = [(f"Node {node.name or node.op_type!r}", node.inputs) for node in graph]
        readers.append(("The graph's list of outputs", graph.outputs))
        for reader, values in readers:
            for value in values:
                if value is None or value.producer() is not None:
                    continue
                if not (value.is_graph_input() or value.is_initializer()):
                    raise UnusableModel(
                        f"{reader} of {path} reads tensor {value.name!r}, which nothing produces: "
                        "the graph is incomplete, export it again."
                    )
    try:
        if not _is_sorted(model.graph):
            model.graph.sort()
    except ValueError as error:
        raise UnusableModel(
            f"{path} contains a cycle of nodes that wait for each other: export it again."
        ) from error


def _is_sorted(graph: ir.Graph) -> bool:
    ready: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is not None and value.producer() is not None and value not in ready:
                return False
        ready.update(node.outputs)
    return True


def _unique(paths: list[Path]) -> tuple[Path, ...]:
    return tuple({path.resolve(): path for path in reversed(paths)}.values())[::-1]
