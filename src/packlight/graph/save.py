"""Copies models, and saves them whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from packlight.durable import current_umask, sync_folder
from packlight.errors import UnusableModel, UnusableOutput
from packlight.graph.files import first_cause
from packlight.graph.walk import initializers_of, shape_of, walk_graphs
from packlight.version import __version__

EXTERNAL_ABOVE_BYTES = 3 << 29
"""Above 1.5 GiB of tensors a model is saved with external data: protobuf ends at 2 GiB."""

EXTERNAL_TENSOR_BYTES = 1024
"""Smaller tensors stay in the model file: runtimes refuse tiny external shape tensors."""


def save_model(
    model: ir.Model,
    path: Path | str,
    *,
    external_threshold: int = EXTERNAL_ABOVE_BYTES,
    durable: bool = True,
) -> tuple[Path, ...]:
    """Write `model` to `path`, whole or not at all; give the files that were written.

    The same model gives the same bytes. With more than `external_threshold` bytes of
    tensors, those over 1 KiB go to `<name>.data` next to it. Types of inner tensors are
    left out where runtimes infer them. The model itself is not changed. durable: wait until
    the disk has it; scratch files need not. Raises
    UnusableOutput when the folder cannot be written or is full, UnusableModel when the
    model has become too large for one file.
    """
    path = Path(path)
    copy = copy_model(model)
    copy.producer_name, copy.producer_version = "packlight", __version__
    copy.ir_version = max(copy.ir_version or 0, _needed_ir_version(copy))
    values = [value for _, graph in walk_graphs(copy) for value in initializers_of(graph)]
    tensors = [value.const_value for value in values if value.const_value is not None]
    data = path.with_name(path.name + ".data")
    temporary: dict[Path, Path] = {}
    try:
        with contextlib.ExitStack() as cleanup:
            large = any(tensor.nbytes > EXTERNAL_TENSOR_BYTES for tensor in tensors)
            if large and sum(tensor.nbytes for tensor in tensors) > external_threshold:
                temporary[data] = _temporary(data, cleanup)
                _write_external(values, data.name, temporary[data], durable)
            _inline_rest(copy, keep=data.name if temporary else None)
            _forget_inner_types(copy)
            try:
                content = ir.to_proto(copy).SerializeToString(deterministic=True)
            except Exception as error:
                raise UnusableModel(
                    f"The model for {path} cannot be written as ONNX ({first_cause(error)})."
                ) from error
            temporary[path] = _temporary(path, cleanup)
            _write(temporary[path], content, durable)
            _check_written(temporary[path], content, path)
            for final, written in temporary.items():
                written.replace(final)
            if durable:
                sync_folder(path.parent)
    except OSError as error:
        raise UnusableOutput(
            f"{path} cannot be written ({error.strerror or error}): check that the folder "
            "exists, may be written to and has space left."
        ) from error
    return tuple(reversed(temporary))


def copy_model(model: ir.Model) -> ir.Model:
    """A copy whose graphs, nodes, values, types and tensor records are its own; weights shared."""
    copy = model.clone(deep_copy=False)
    for key, value in model.meta.items():
        copy.meta[key] = value
    for _, graph in walk_graphs(copy):
        for value in [*graph.inputs, *initializers_of(graph), *_node_outputs(graph)]:
            # onnx_ir's clone shares types and tensor records, and their setters write in place.
            if isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(value.type.dtype)
            if value.const_value is not None:
                value.const_value = _own_record(value.const_value)
    return copy


def _own_record(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            location=tensor.location,
            offset=tensor.offset,
            length=tensor.length,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=tensor.base_dir,
        )
    if type(tensor) is ir.Tensor:
        return ir.Tensor(tensor.raw, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(shape_of(tensor)), name=tensor.name)
    source = tensor
    return ir.LazyTensor(
        lambda: source,
        dtype=tensor.dtype,
        shape=ir.Shape(shape_of(tensor)),
        name=tensor.name,
        cache=False,
    )


def _node_outputs(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _needed_ir_version(model: ir.Model) -> int:
    known = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in model.opset_imports.items()
        if domain in ("", "ai.onnx", "ai.onnx.ml")
    ]
    try:
        return int(onnx.helper.find_min_ir_version_for(known, ignore_unknown=True))
    except ValueError:
        return 8


def _write_external(values: list[ir.Value], location: str, target: Path, durable: bool) -> None:
    with target.open("wb") as file:
        for value in values:
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.nbytes <= EXTERNAL_TENSOR_BYTES:
                continue
            # Large ones begin on a page, so that runtimes can map them without a copy.
            file.write(b"\0" * (-file.tell() % (4096 if tensor.nbytes >= 1 << 16 else 64)))
            offset = file.tell()
            length = file.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                location=location,
                offset=offset,
                length=length,
                dtype=tensor.dtype,
                shape=ir.Shape(shape_of(tensor)),
                name=value.name or "",
            )
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _inline_rest(model: ir.Model, keep: str | None) -> None:
    """Bring external tensors into the file, but those already written to `keep`."""
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location != keep:
                value.const_value = ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=value.name
                )
        for node in graph:
            for key, attribute in list(node.attributes.items()):
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    array = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape)
                    node.attributes[key] = ir.AttrTensor(key, array)


def _forget_inner_types(model: ir.Model) -> None:
    """Leave out types and shapes that every runtime infers: they cost kilobytes."""
    for _, graph in walk_graphs(model):
        values = [value for value in initializers_of(graph) if not value.is_graph_input()]
        values += [out for node in graph if node.domain in ("", "ai.onnx") for out in node.outputs]
        for value in values:
            if not value.is_graph_output():
                value.type = value.shape = None


def _temporary(final: Path, cleanup: contextlib.ExitStack) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
    os.close(handle)
    cleanup.callback(Path(name).unlink, missing_ok=True)
    Path(name).chmod(0o666 & ~current_umask())
    return Path(name)


def _write(path: Path, content: bytes, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _check_written(written: Path, content: bytes, final: Path) -> None:
    if written.read_bytes() != content:
        raise UnusableOutput(f"{final} was written but reads back differently: check the disk.")
    onnx.ModelProto.FromString(content)
