"""Where a model's bytes, multiply-accumulates and milliseconds are, and what looks redundant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from packlight.graph.coupling.shapes import know_shapes
from packlight.graph.layers import Layer, Unquantizable, find_layers, find_unquantizable
from packlight.graph.model import Model
from packlight.graph.redundancy import find_redundancies
from packlight.graph.rewrite.fold import fold_constants
from packlight.graph.rewrite.quiet import quiet
from packlight.graph.rewrite.shapes import fix_reshapes
from packlight.graph.save import copy_model
from packlight.graph.spare import Redundancy
from packlight.graph.walk import constant_of, initializers_of, walk_graphs, walk_nodes
from packlight.tensors import TensorSpec


@dataclass(frozen=True)
class LayerAnatomy:
    """One linear layer.

    macs: multiply-accumulates for one sample (None: a shape is not known).
    ms: measured milliseconds a run (None: not measured).
    """

    name: str
    op: str
    graph_path: tuple[str, ...]
    weight_shape: tuple[int, ...]
    parameters: int
    bytes: int
    macs: int | None
    ms: float | None


@dataclass(frozen=True)
class OperatorAnatomy:
    """All nodes of one operator: how many, and their milliseconds a run (None: not measured)."""

    op: str
    count: int
    ms: float | None


@dataclass(frozen=True)
class Anatomy:
    """All that `packlight inspect` shows of a model.

    opsets: (domain, version) pairs. parameters: elements of all float constants;
    parameter_bytes: bytes of all constants, of which layers hold layer_bytes. macs: of all layers
    whose macs are known, for one sample, a symbolic batch counted as 1.
    not_layers: nodes that multiply matrices but cannot be compressed, with reasons.
    targets: (name, what it can do with this model), filled in by whoever knows targets.
    """

    path: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opsets: tuple[tuple[str, int], ...]
    producer: str
    nodes: int
    parameters: int
    parameter_bytes: int
    layer_bytes: int
    macs: int
    layers: tuple[LayerAnatomy, ...]
    operators: tuple[OperatorAnatomy, ...]
    not_layers: tuple[Unquantizable, ...]
    redundancies: tuple[Redundancy, ...]
    targets: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, numbers and strings."""
        return asdict(self)


def describe(
    model: Model,
    *,
    milliseconds: Mapping[str, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Anatomy:
    """Take a model apart, without changing it.

    milliseconds: mean time of each node in a run, by node name, where it was measured.
    shapes: of one sample, by input, for multiply-accumulates where the model leaves sizes open.
    """
    times = milliseconds or {}
    graph = model.ir
    macs = count_macs(graph, shapes)
    layers = find_layers(graph)
    constants = _constants(graph)
    counts: Counter[str] = Counter()
    spent: dict[str, float] = {}
    for _, node in walk_nodes(graph):
        counts[node.op_type] += 1
        if node.name and node.name in times:
            spent[node.op_type] = spent.get(node.op_type, 0.0) + times[node.name]
    return Anatomy(
        path=str(model.source),
        size_bytes=model.size_bytes,
        inputs=model.inputs,
        outputs=model.outputs,
        opsets=tuple(sorted(graph.opset_imports.items())),
        producer=" ".join(part for part in (graph.producer_name, graph.producer_version) if part),
        nodes=sum(counts.values()),
        parameters=sum(t.size for t in constants if t.dtype.is_floating_point()),
        parameter_bytes=sum(tensor.nbytes for tensor in constants),
        layer_bytes=_layer_bytes(layers),
        macs=sum(macs.get(layer.name) or 0 for layer in layers),
        layers=tuple(
            LayerAnatomy(
                name=layer.name,
                op=layer.op,
                graph_path=layer.graph_path,
                weight_shape=layer.weight_shape,
                parameters=layer.parameters,
                bytes=layer.bytes,
                macs=macs.get(layer.name),
                ms=times.get(layer.name),
            )
            for layer in layers
        ),
        operators=tuple(
            OperatorAnatomy(op, count, spent.get(op)) for op, count in counts.most_common()
        ),
        not_layers=find_unquantizable(graph),
        redundancies=find_redundancies(graph),
    )


def count_macs(
    model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, int | None]:
    """Multiply-accumulates of each layer for one sample, by name; None where a shape is unknown.

    Shapes are inferred on a copy. shapes: of one sample, by input, in place of sizes that the
    model leaves open (lengths of sequences). Otherwise axes named as the first axis of an input
    (the batch) count as 1.
    """
    copy = copy_model(model)
    for value in copy.graph.inputs:
        shape = (shapes or {}).get(str(value.name))
        if shape is not None:
            value.shape = ir.Shape(shape)
    try:
        with quiet():
            fold_constants(copy)
            if fix_reshapes(copy):
                fold_constants(copy)
            know_shapes(copy)
    except Exception:
        # Inference of an unusual graph may fail anywhere: its numbers are then not known.
        return dict.fromkeys((layer.name for layer in find_layers(model)), None)
    firsts = [value.shape[0] for value in copy.graph.inputs if value.shape]
    batch = {axis.value for axis in firsts if isinstance(axis, ir.SymbolicDim) and axis.value}
    return {layer.name: _macs(layer, batch) for layer in find_layers(copy)}


def _macs(layer: Layer, batch: set[str]) -> int | None:
    if layer.kind in ("Gather", "EmbedLayerNormalization"):
        return 0
    weights = [constant_of(value) for value in layer.weights]
    elements = sum(tensor.size for tensor in weights if tensor is not None)
    source = _elements(layer.node.inputs[0], batch)
    result = _elements(layer.node.outputs[0], batch)
    if layer.kind == "Conv":
        # Every output element takes one row of the weight.
        return None if result is None else result * (elements // layer.weight_shape[0])
    if layer.kind == "ConvTranspose":
        return None if source is None else source * (elements // layer.weight_shape[0])
    if layer.kind in ("LSTM", "GRU", "RNN"):
        width = layer.weight_shape[-1]
        return None if source is None else source // width * elements
    width = layer.weight_shape[1 - layer.out_axis]
    return None if source is None else source // width * elements


def _elements(value: ir.Value | None, batch: set[str]) -> int | None:
    if value is None or value.shape is None:
        return None
    sizes = []
    for place, axis in enumerate(value.shape):
        if isinstance(axis, int):
            sizes.append(axis)
        elif axis.value in batch or (place == 0 and axis.value is None):
            sizes.append(1)
        else:
            return None
    return math.prod(sizes)


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    found = []
    for _, graph in walk_graphs(model):
        found += [v.const_value for v in initializers_of(graph) if v.const_value is not None]
        for node in graph:
            tensor = constant_of(node.outputs[0]) if node.op_type == "Constant" else None
            if tensor is not None:
                found.append(tensor)
    return found


def _layer_bytes(layers: tuple[Layer, ...]) -> int:
    # A weight that several layers share lies in the file once.
    held = {id(value): constant_of(value) for layer in layers for value in layer.weights}
    return sum(tensor.nbytes for tensor in held.values() if tensor is not None)
