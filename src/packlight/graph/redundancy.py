"""Finds what a model carries along for nothing."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from packlight.graph.layers import is_quantized
from packlight.graph.rewrite.affine import follows_layer
from packlight.graph.rewrite.single import int_of, is_standard
from packlight.graph.save import copy_model
from packlight.graph.spare import Redundancy, find_spare
from packlight.graph.walk import constant_of, initializers_of, walk_graphs, walk_nodes

WORTH_NAMING_BYTES = 64
"""Smaller duplicates are not worth a line."""

LARGE_ELEMENTS = 1024
"""From this size on a tensor whose elements are all equal is reported."""

_CHUNK = 1 << 24
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc")
_OPTIMIZER_WORDS = ("adam", "momentum", "optimizer", "exp_avg", "grad")


def find_redundancies(model: ir.Model) -> tuple[Redundancy, ...]:
    """All redundancies of `model`, in the order of RedundancyKind."""
    return (
        *_duplicates(model),
        *_constants(model),
        *_unused(model),
        *_batch_norms(model),
        *_doubles(model),
        *_leftovers(model),
        *find_spare(model),
        *_quantized(model),
        *_custom(model),
    )


def _tensors(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    found = []
    for _, graph in walk_graphs(model):
        values = initializers_of(graph)
        values += [node.outputs[0] for node in graph if is_standard(node, "Constant")]
        for value in values:
            tensor = constant_of(value)
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                found.append((value.name or "", tensor))
    return found


def _duplicates(model: ir.Model) -> list[Redundancy]:
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    sizes: dict[tuple[str, tuple[int, ...], str], int] = {}
    for name, tensor in _tensors(model):
        if tensor.nbytes < WORTH_NAMING_BYTES:
            continue
        key = (tensor.dtype.name, tuple(tensor.shape.numpy()), _digest(tensor))
        groups.setdefault(key, []).append(name)
        sizes[key] = tensor.nbytes
    return [
        Redundancy(
            "duplicate tensors",
            tuple(names),
            f"{len(names)} tensors of {sizes[key]} bytes are the same.",
            (len(names) - 1) * sizes[key],
        )
        for key, names in groups.items()
        if len(names) > 1
    ]


def _digest(tensor: ir.TensorProtocol) -> str:
    flat = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    digest = hashlib.sha256()
    for start in range(0, flat.size, _CHUNK):
        digest.update(flat[start : start + _CHUNK].tobytes())
    return digest.hexdigest()


def _constants(model: ir.Model) -> list[Redundancy]:
    found = []
    for name, tensor in _tensors(model):
        if tensor.size < LARGE_ELEMENTS:
            continue
        flat = tensor.numpy().reshape(-1)
        if all((flat[i : i + _CHUNK] == flat[0]).all() for i in range(0, flat.size, _CHUNK)):
            sentence = f"All {flat.size} elements are {flat[0]}."
            found.append(Redundancy("constant tensor", (name,), sentence, tensor.nbytes))
    return found


def _unused(model: ir.Model) -> list[Redundancy]:
    found = []
    live = copy_model(model)
    passes.RemoveUnusedNodesPass()(live)
    kept = {node.name for _, node in walk_nodes(live)}
    dead = tuple(node.name or "" for _, node in walk_nodes(model) if node.name not in kept)
    if dead:
        found.append(Redundancy("dead nodes", dead, f"No output needs these {len(dead)} nodes."))
    inputs = tuple(
        value.name or ""
        for value in model.graph.inputs
        if not value.uses() and not value.is_graph_output()
    )
    if inputs:
        found.append(Redundancy("unused inputs", inputs, "Nothing reads these inputs."))
    unused = [
        value
        for _, graph in walk_graphs(model)
        for value in initializers_of(graph)
        if not value.uses() and not value.is_graph_output()
    ]
    if unused:
        size = sum(value.const_value.nbytes for value in unused if value.const_value is not None)
        names = tuple(value.name or "" for value in unused)
        found.append(Redundancy("unused initializers", names, "Nothing reads them.", size))
    return found


def _batch_norms(model: ir.Model) -> list[Redundancy]:
    names = tuple(
        node.name or ""
        for _, node in walk_nodes(model)
        if is_standard(node, "BatchNormalization") and follows_layer(node)
    )
    sentence = f"{len(names)} BatchNormalizations can be folded into the layers before them."
    return [Redundancy("foldable BatchNorm", names, sentence)] if names else []


def _doubles(model: ir.Model) -> list[Redundancy]:
    double = [(n, t) for n, t in _tensors(model) if t.dtype == ir.DataType.DOUBLE]
    if not double:
        return []
    size = sum(tensor.nbytes for _, tensor in double)
    sentence = f"{len(double)} tensors are stored in 64 bits; 32 are enough."
    return [Redundancy("float64 weights", tuple(name for name, _ in double), sentence, size // 2)]


def _leftovers(model: ir.Model) -> list[Redundancy]:
    found = []
    texts = 0
    training: list[str] = []
    for _, graph in walk_graphs(model):
        texts += len(graph.doc_string or "")
        for node in graph:
            texts += len(node.doc_string or "")
            texts += sum(len(key) + len(text) for key, text in node.metadata_props.items())
            dropout = is_standard(node, "Dropout")
            normalizes = is_standard(node, "BatchNormalization")
            trains = normalizes and int_of(node, "training_mode", 0) == 1
            if dropout or trains or node.domain == "ai.onnx.preview.training":
                training.append(node.name or "")
    if texts >= WORTH_NAMING_BYTES:
        sentence = "Doc strings and metadata of nodes (stack traces, export logs)."
        found.append(Redundancy("training leftovers", (), sentence, texts))
    if training:
        sentence = "Nodes that matter in training only (Dropout, BatchNormalization in training)."
        found.append(Redundancy("training leftovers", tuple(training), sentence))
    if model.meta.get("packlight.training_info"):
        sentence = "The file carries training information (training_info)."
        found.append(Redundancy("training leftovers", (), sentence))
    state = [
        (value.name or "", value.const_value.nbytes if value.const_value is not None else 0)
        for value in initializers_of(model.graph)
        if not value.uses() and any(word in (value.name or "").lower() for word in _OPTIMIZER_WORDS)
    ]
    if state:
        sentence = "Tensors of an optimizer's state."
        names = tuple(name for name, _ in state)
        found.append(
            Redundancy("training leftovers", names, sentence, sum(size for _, size in state))
        )
    return found


def _quantized(model: ir.Model) -> list[Redundancy]:
    counts: Counter[str] = Counter()
    names = []
    for _, node in walk_nodes(model):
        if is_quantized(node) or node.op_type in (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
        ):
            counts[node.op_type] += 1
            names.append(node.name or "")
    if not counts:
        return []
    listed = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    sentence = f"Parts are quantized already ({listed}); they are left as they are."
    return [Redundancy("already quantized", tuple(names), sentence)]


def _custom(model: ir.Model) -> list[Redundancy]:
    functions = {(function.domain, function.name) for function in model.functions.values()}
    names: dict[str, list[str]] = {}
    for _, node in walk_nodes(model):
        if (node.domain, node.op_type) in functions:
            continue
        known = node.domain in _KNOWN_DOMAINS
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.has(node.op_type)
        if not known:
            operator = f"{node.domain or 'ai.onnx'}::{node.op_type}"
            names.setdefault(operator, []).append(node.name or "")
    return [
        Redundancy(
            "custom operators",
            tuple(nodes),
            f"{operator} is no standard operator: it runs only where somebody implemented it.",
        )
        for operator, nodes in names.items()
    ]
