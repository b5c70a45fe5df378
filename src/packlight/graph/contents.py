"""Checks every tensor that a parsed model file holds or points at.

`onnx.checker` and the runtimes miss some of this (lengths past the end of the file, raw
data shorter than the shape, element counts that overflow), so it is checked here,
with Python's unbounded integers, before anything is allocated or handed to a library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from packlight.errors import UnusableModel
from packlight.graph.files import resolve_external

DENSE_LIMIT_BYTES = 1 << 30
"""A sparse tensor that would need more than this as a dense one is refused."""

# How many entries of which field hold one element, for tensors without raw_data.
_TYPED_FIELDS: dict[int, tuple[str, int]] = {
    onnx.TensorProto.FLOAT: ("float_data", 1),
    onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.DOUBLE: ("double_data", 1),
    onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1),
    onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
}

_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.STRING: 0,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.FLOAT8E4M3FNUZ: 8,
    onnx.TensorProto.FLOAT8E5M2: 8,
    onnx.TensorProto.FLOAT8E5M2FNUZ: 8,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
    24: 8,  # FLOAT8E8M0, 25 UINT2, 26 INT2: newer than the oldest onnx we accept
    25: 2,
    26: 2,
}


def check_tensors(proto: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Check every tensor of a parsed model; give the external data files by their location.

    Looks into initializers, sparse initializers and the attributes of all nodes, in
    subgraphs and functions too. Raises UnusableModel naming the tensor.
    """
    locations: dict[str, Path] = {}
    for place, tensor in _tensors(proto):
        label = f"Tensor {tensor.name!r}" if tensor.name else f"A tensor of {place}"
        size = _check_shape(tensor, path, label)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path, label, size, locations)
        else:
            _check_inline(tensor, path, label, size)
    return locations


def external_locations(proto: onnx.ModelProto) -> list[str]:
    """Where a parsed model says that its external data lies; nothing of it is checked."""
    found: dict[str, None] = {}
    for _, tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location":
                    found[entry.value] = None
    return list(found)


def densify_sparse(proto: onnx.ModelProto, path: Path) -> None:
    """Replace sparse initializers and sparse Constant nodes by dense ones, in place.

    Raises UnusableModel when indices lie outside the shape, or the dense tensor would
    be larger than DENSE_LIMIT_BYTES.
    """
    for graph in _graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, path))
        del graph.sparse_initializer[:]
    for node in _nodes(proto):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        for attribute in node.attribute:
            if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                dense = _dense(attribute.sparse_tensor, path)
                attribute.Clear()
                attribute.name = "value"
                attribute.type = onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)


def element_bytes(data_type: int, dims: list[int]) -> int:
    """Bytes that a tensor of this ONNX type and shape takes, packed (strings count 0)."""
    return -(-math.prod(dims) * _BITS[data_type] // 8)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for training in proto.training_info:
        yield training.initialization
        yield training.algorithm
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    pending: list[onnx.NodeProto] = [*proto.graph.node]
    for function in proto.functions:
        pending.extend(function.node)
    for training in proto.training_info:
        pending.extend(training.initialization.node)
        pending.extend(training.algorithm.node)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                pending.extend(attribute.g.node)
            for graph in attribute.graphs:
                pending.extend(graph.node)


def _attributes(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.AttributeProto]]:
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield f"node {node.name or node.op_type!r}", attribute
    for function in proto.functions:
        for attribute in function.attribute_proto:
            yield f"function {function.name!r}", attribute


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for graph in _graphs(proto):
        for tensor in graph.initializer:
            yield "the graph", tensor
        for sparse in graph.sparse_initializer:
            yield "the graph", sparse.values
            yield "the graph", sparse.indices
    for place, attribute in _attributes(proto):
        if attribute.HasField("t"):
            yield place, attribute.t
        for tensor in attribute.tensors:
            yield place, tensor
        sparse_tensors = [*attribute.sparse_tensors]
        if attribute.HasField("sparse_tensor"):
            sparse_tensors.append(attribute.sparse_tensor)
        for sparse in sparse_tensors:
            yield place, sparse.values
            yield place, sparse.indices


def _check_shape(tensor: onnx.TensorProto, path: Path, label: str) -> int:
    if tensor.data_type not in _BITS:
        raise UnusableModel(
            f"{label} of {path} has the unknown element type {tensor.data_type}: "
            "export the model again with a current exporter."
        )
    dims = list(tensor.dims)
    shown = dims if len(dims) <= 16 else [*dims[:16], "..."]
    if any(dim < 0 for dim in dims) or len(dims) > 64:
        raise UnusableModel(f"{label} of {path} has the impossible shape {shown}: export it again.")
    # A zero axis makes the tensor empty, yet the other axes alone can overflow a library.
    if math.prod(dim for dim in dims if dim) >= 1 << 48:
        raise UnusableModel(
            f"{label} of {path} has the shape {shown}, more elements than any file can hold: "
            "the file is damaged, or made to do harm."
        )
    return element_bytes(tensor.data_type, dims)


def _check_inline(tensor: onnx.TensorProto, path: Path, label: str, size: int) -> None:
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        found = len(tensor.raw_data)
        if found == size:
            return
        if found:
            raise UnusableModel(
                f"{label} of {path} holds {found} bytes where its shape {list(tensor.dims)} "
                f"calls for {size}: the file is damaged, export it again."
            )
    field, each = _TYPED_FIELDS.get(tensor.data_type, ("int32_data", 1))
    found = len(getattr(tensor, field))
    bits = _BITS[tensor.data_type]
    expected = -(-count * bits // 8) if 0 < bits < 8 else count * each
    if found != expected:
        raise UnusableModel(
            f"{label} of {path} holds {found} numbers where its shape {list(tensor.dims)} "
            f"calls for {expected}: the file is damaged, export it again."
        )


def _check_external(
    tensor: onnx.TensorProto, path: Path, label: str, size: int, locations: dict[str, Path]
) -> None:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise UnusableModel(
                f"{label} of {path} gives its {entry.key!r} twice: export it again."
            )
        entries[entry.key] = entry.value
    if tensor.data_type == onnx.TensorProto.STRING:
        raise UnusableModel(f"{label} of {path} keeps text in external data, which ONNX forbids.")
    location = entries.get("location", "")
    if location not in locations:
        locations[location] = resolve_external(location, path, tensor=label)
    available = locations[location].stat().st_size
    offset = _number(entries.get("offset", "0"), path, label, "offset")
    length = _number(entries.get("length", str(size)), path, label, "length")
    if length != size:
        raise UnusableModel(
            f"{label} of {path} says its data has {length} bytes where its shape "
            f"{list(tensor.dims)} calls for {size}: export it again."
        )
    if offset + length > available:
        raise UnusableModel(
            f"{label} of {path} lies at bytes {offset} to {offset + length} of {location!r}, which "
            f"has only {available}: the data file is cut short or belongs to another model."
        )


def _number(text: str, path: Path, label: str, key: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UnusableModel(
            f"{label} of {path} has the {key} {text[:40]!r}, which is no byte count."
        )
    return int(text)


def _dense(sparse: onnx.SparseTensorProto, path: Path) -> onnx.TensorProto:
    name = sparse.values.name
    dims = list(sparse.dims)
    label = f"Sparse tensor {name!r}"
    if not dims or any(dim <= 0 for dim in dims) or len(dims) > 64:
        raise UnusableModel(f"{label} of {path} has the impossible shape {dims[:16]}.")
    size = element_bytes(sparse.values.data_type, dims)
    if size > DENSE_LIMIT_BYTES:
        raise UnusableModel(
            f"{label} of {path} would take {size} bytes as an ordinary tensor, more than "
            f"{DENSE_LIMIT_BYTES}: export the model with dense weights."
        )
    external = onnx.TensorProto.EXTERNAL
    if external in (sparse.values.data_location, sparse.indices.data_location):
        raise UnusableModel(f"{label} of {path} keeps sparse values in external data.")
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    count = math.prod(dims)
    if values.ndim != 1 or indices.dtype.name != "int64" or indices.ndim not in (1, 2):
        raise UnusableModel(f"{label} of {path} is not in ONNX's sparse format: export it again.")
    expected = (len(values), len(dims)) if indices.ndim == 2 else (len(values),)
    limits = dims if indices.ndim == 2 else count
    if indices.shape != expected or (indices < 0).any() or (indices >= limits).any():
        raise UnusableModel(f"{label} of {path} has indices outside its shape {dims}.")
    dense = np.zeros(count, values.dtype)
    flat = np.ravel_multi_index(tuple(indices.T), tuple(dims)) if indices.ndim == 2 else indices
    dense[flat] = values
    return onnx.numpy_helper.from_array(dense.reshape(dims), name)
