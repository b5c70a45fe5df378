"""What a training belongs to, as one hash: graphs, samples and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.walk import constant_of, initializers_of, walk_graphs
from packlight.samples import Samples, batches_of, fingerprints_of
from packlight.tensors import TensorSpec

LOOKED_AT = 64
"""Samples that are hashed as they are fed: preparing them otherwise makes others of them."""


def fingerprint(
    graphs: Sequence[ir.Model],
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    settings: object,
) -> str:
    """SHA-256 of graphs, of the samples at `indices`, and of settings by their `repr`."""
    state = hashlib.sha256(repr(settings).encode())
    for graph in graphs:
        state.update(graph_digest(graph))
    known = fingerprints_of(samples)
    for index in indices:
        state.update(known[index])
    for batch in batches_of(samples, [int(index) for index in indices[:LOOKED_AT]], inputs):
        for name, array in batch.feeds.items():
            state.update(f"{name} {array.dtype} {array.shape}".encode())
            state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def graph_digest(model: ir.Model) -> bytes:
    """SHA-256 of a graph: its nodes in their order, with their attributes, and its constants."""
    state = hashlib.sha256()
    inner = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for path, graph in walk_graphs(model):
        for value in initializers_of(graph):
            _add(state, value)
        for node in graph:
            values = [None if value is None else value.name for value in node.inputs]
            made = [value.name for value in node.outputs]
            state.update(repr((path, node.domain, node.op_type, values, made)).encode())
            for value in node.outputs:
                _add(state, value)
            for name, one in sorted(node.attributes.items()):
                if one.is_ref() or one.type in inner:
                    continue
                state.update(name.encode())
                tensor = one.type == ir.AttributeType.TENSOR
                state.update(one.as_tensor().tobytes() if tensor else repr(one.value).encode())
    return state.digest()


def _add(state: hashlib._Hash, value: ir.Value) -> None:
    tensor = value.const_value if value.is_initializer() else constant_of(value)
    if tensor is not None:
        head = (value.name, tensor.dtype.name, tuple(tensor.shape.numpy()))
        state.update(repr(head).encode())
        state.update(tensor.tobytes())
