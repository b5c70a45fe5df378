"""What the layers of a changed graph are held to: what the original gives, and how to get there.

A layer's own old output is not all. Where that is added to a shortcut, the target t is the
original's sum less the changed model's shortcut, so that the layer also makes up for what went
wrong before it. With y, what reaches the layer in the changed model, its weight and bias are the
least squares solution of E|t - V y - c|^2 (`refit_to_targets`), which needs E[t y^T] and E[y y^T]
of unlabelled samples and no training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import store_array
from packlight.graph.layers import Layer, matrix_to_weight, weight_matrix
from packlight.graph.model import save_model
from packlight.graph.observe import batch_within, count_inputs, wants_moments, with_outputs
from packlight.graph.patches import kernel_order, rows_leaving, rows_reaching
from packlight.graph.renormalize import fit_normalization
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.moments import (
    Moments,
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    refit_to_targets,
)
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, batches_of
from packlight.tensors import TensorSpec

Rows = Mapping[str, NDArray[np.intp]]


@dataclass(frozen=True)
class Target:
    """What a layer is held to: the original's tensor `value`, less tensors of the changed model.

    others: what is added between the layer and that tensor: names, or constants.
    total, shortcut: where that is a sum with a shortcut, the name of its node and the number of
    the shortcut among its inputs; the shortcut is the last of `others` then.
    """

    value: str
    others: tuple[str | NDArray[Any], ...] = ()
    total: str = ""
    shortcut: int = 0


@dataclass
class Pair:
    """Moments of one layer, its inputs in kernel order: E[t y^T] and E[y y^T]."""

    cross: Moments
    own: Moments


def can_be_fitted(layer: Layer) -> bool:
    """Whether second moments are gathered for a layer, and it may have another weight."""
    return wants_moments(layer) and not layer.shared and layer.weight.is_initializer()


def find_target(value: ir.Value) -> Target:
    """Follow a layer's output through what is added to it, up to the first sum with a shortcut."""
    others: list[str | NDArray[Any]] = []
    while True:
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return Target(str(value.name), tuple(others))
        (use,) = uses
        if use.node.op_type != "Add" or use.node.domain not in ("", "ai.onnx"):
            return Target(str(value.name), tuple(others))
        other = use.node.inputs[1 - use.idx]
        if other is None or other is value:
            return Target(str(value.name), tuple(others))
        constant = constant_of(other)
        total = use.node.outputs[0]
        if constant is not None:
            others.append(constant.numpy())
            value = total
            continue
        if not _same_shape(value, other):
            return Target(str(value.name), tuple(others))
        place = 1 - use.idx
        return Target(str(total.name), (*others, str(other.name)), str(use.node.name), place)


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether nothing is repeated when the two are added, as far as the graph tells."""
    first, second = one.shape, other.shape
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b for a, b in zip(first[1:], second[1:], strict=True))


@dataclass
class _Side:
    """One of the two models, run for some tensors of it."""

    fed: frozenset[str]
    names: list[str]
    session: Session | None = None
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def open(self, graph: ir.Model, path: Path, process: Process, stack: ExitStack) -> None:
        inner = self.inner
        if inner:
            save_model(with_outputs(graph, inner), path, durable=False)
            self.session = process.load(path, threads=cpu_features().cores, spinning=False)
            stack.callback(self.session.close)

    @property
    def inner(self) -> list[str]:
        return [name for name in self.names if name not in self.fed]


def observe_pairs(
    original: ir.Model,
    changed: ir.Model,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    *,
    process: Process,
    most_rows: int,
    sources: Mapping[str, str] | None = None,
    rows: Rows | None = None,
    seed: int = 0,
) -> dict[str, Pair]:
    """Moments of the layers' targets and inputs, by layer; both models see the same samples.

    most_rows: of patches or positions, drawn of all samples together. sources: by layer, the
    tensor of `changed` that it reads; its node's first input where it is not named.
    rows: by layer, which of the original's outputs it still has; all where it is not named.
    """
    rows = rows or {}
    sources = {layer.name: _read_by(layer) for layer in layers} | dict(sources or {})
    wanted = [targets[layer.name].value for layer in layers]
    mine = list(sources.values())
    for layer in layers:
        mine += [other for other in targets[layer.name].others if isinstance(other, str)]
    fed = frozenset(spec.name for spec in inputs)
    sides = (_Side(fed, list(dict.fromkeys(wanted))), _Side(fed, list(dict.fromkeys(mine))))
    found: dict[str, Pair] = {}
    for layer in layers:
        columns, groups = count_inputs(layer), layer.groups if layer.groups > 1 else None
        outputs = layer.weight_shape[layer.out_axis] // layer.groups
        found[layer.name] = Pair(
            empty_moments(columns, outputs=outputs, groups=groups),
            empty_moments(columns, groups=groups),
        )
    limit = max(1, most_rows // max(len(indices), 1))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, ExitStack() as stack:
        for number, (side, graph) in enumerate(zip(sides, (original, changed), strict=True)):
            side.open(graph, Path(folder) / f"{number}.onnx", process, stack)
        first = next(iter(batches_of(samples, indices[:1], inputs)))
        bytes_each = sum(
            array.nbytes
            for side in sides
            if side.session is not None
            for array in side.session.run(first.feeds, side.inner).values()
        )
        batches = batches_of(samples, indices, inputs, batch=batch_within(bytes_each))
        for number, run in enumerate(batches):
            given = {name: run.trim(array) for name, array in run.feeds.items()}
            for side in sides:
                arrays = {} if side.session is None else side.session.run(run.feeds, side.inner)
                side.arrays = given | {name: run.trim(array) for name, array in arrays.items()}
            for layer in layers:
                target = targets[layer.name]
                t = sides[0].arrays[target.value]
                if layer.name in rows:
                    t = np.take(t, rows[layer.name], axis=1 if layer.kind == "Conv" else -1)
                for other in target.others:
                    t = t - (sides[1].arrays[other] if isinstance(other, str) else other)
                y = sides[1].arrays[sources[layer.name]]
                draw = limit * run.rows
                left = rows_leaving(layer, t, draw, np.random.default_rng((seed, number)))
                right = rows_reaching(layer, y, draw, np.random.default_rng((seed, number)))
                seen = found[layer.name]
                seen.cross = add_to_cross_moments(seen.cross, left, right)
                seen.own = add_to_moments(seen.own, right)
    return found


def fit_layer(layer: Layer, pair: Pair, damping: float) -> None:
    """Give a layer, in place, the weight and bias that come nearest to its target.

    damping: pull towards the weight that is there, as a share of the mean second moment.
    """
    if layer.op == "BatchNormalization":
        fit_normalization(layer, pair.cross, pair.own, damping)
        return
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    mean, target = pair.own.mean, pair.cross.mean
    second, cross = pair.own.second, pair.cross.second
    bias, beta = constant_of(layer.bias), float_of(layer.node, "beta", 1.0)
    movable = (
        bias is not None
        and beta != 0.0
        and layer.bias is not None
        and layer.bias.is_initializer()
        and len(layer.bias.uses()) == 1
        and bias.size == len(matrix)
    )
    if movable:  # the bias takes over what is constant
        second = second - mean[..., :, None] * mean[..., None, :]
        cross = cross - target[..., :, None] * mean[..., None, :]
    elif bias is not None:
        held = bias.numpy().astype(np.float64) * beta
        held = np.broadcast_to(held.reshape(-1), (len(matrix),)).reshape(target.shape)
        cross = cross - held[..., :, None] * mean[..., None, :]
    stacked = matrix.reshape(*target.shape, -1)
    fitted = refit_to_targets(stacked, cross, second, damping=damping)
    plain = np.empty_like(matrix)
    plain[:, order] = fitted.reshape(matrix.shape)
    store_array(layer.weight, matrix_to_weight(layer, plain.astype(np.float32)))
    if movable and layer.bias is not None and bias is not None:
        left = target - np.matmul(fitted, mean[..., :, None])[..., 0]
        store_array(layer.bias, (left.reshape(-1) / beta).reshape(tuple(bias.shape.numpy())))


def _read_by(layer: Layer) -> str:
    source = layer.node.inputs[0]
    assert source is not None
    return str(source.name)
