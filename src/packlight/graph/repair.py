"""Layers of a thinned graph fitted again, one after the other, to what the original gives.

What a layer is held to is not its own old output alone. Where that is added to a shortcut, the
target t is the original's sum less the thinned model's shortcut, so that the layer also makes up
for what went wrong before it. With y, what reaches the layer in the thinned model, its weight
and bias are the least squares solution of E|t - V y - c|^2 (`refit_to_targets`), which needs
E[t y^T] and E[y y^T] of unlabelled samples and no training. What is left of batch normalization is
fitted channel by channel (`renormalize`).
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

from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.edit import store_array
from packlight.graph.layers import Layer, find_layers, matrix_to_weight, weight_matrix
from packlight.graph.model import copy_model, save_model
from packlight.graph.observe import (
    MOMENT_ROWS,
    batch_within,
    count_inputs,
    split_stages,
    wants_moments,
    with_outputs,
)
from packlight.graph.patches import kernel_order, rows_leaving, rows_reaching
from packlight.graph.renormalize import find_normalizations, fit_normalization
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.moments import (
    Moments,
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    refit_to_targets,
)
from packlight.progress import SILENT, Progress
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, batches_of
from packlight.tensors import TensorSpec

SAMPLES = 2048
"""Samples of a pass. Positions of one picture are alike: many pictures tell more than many rows."""

STAGES = 64
"""At most so many passes over the samples: the layers of one stage see the same earlier ones."""

Rows = Mapping[str, NDArray[np.intp]]


@dataclass(frozen=True)
class Target:
    """What a layer is held to: the original's tensor `value`, less tensors of the thinned model.

    others: what is added between the layer and that tensor: names, or constants.
    """

    value: str
    others: tuple[str | NDArray[Any], ...] = ()


@dataclass
class _Seen:
    """Moments of one layer: E[t y^T] and E[y y^T]."""

    cross: Moments
    own: Moments


def repair(
    original: ir.Model,
    thinned: ir.Model,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    *,
    process: Process,
    rows: Rows | None = None,
    stages: int = STAGES,
    samples_each: int = SAMPLES,
    damping: float = 1e-3,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of `thinned` whose layers are fitted to what `original` gives; names of those fitted.

    thinned: the original without some channels or parts; what is left has its old names.
    rows: by layer, which of the original's outputs it still has; all where it is not named.
    samples_each: samples of a pass over at most STAGES groups of layers, in graph order.
    damping: pull towards the weights that are there, as a share of the mean second moment.
    Layers that share a weight, lie in subgraphs, transpose, recur or have too many inputs for
    second moments stay as they are. Raises UnusableSamples where an activation is not finite.
    """
    work = copy_model(thinned)
    infer_shapes(work)
    rows = rows or {}
    known = {value.name for node in original.graph for value in node.outputs}
    place = {node: number for number, node in enumerate(work.graph)}
    layers = [layer for layer in find_layers(work) if _can_be_fitted(layer)]
    layers += find_normalizations(work)
    layers.sort(key=lambda layer: place[layer.node])
    targets = {layer.name: find_target(layer.node.outputs[0]) for layer in layers}
    layers = [layer for layer in layers if targets[layer.name].value in known]
    chosen = indices[:samples_each]
    progress.stage("fitting what is left to the original", len(layers))
    for stage in split_stages(layers, stages):
        found = _observe(
            original, work, stage, targets, rows, samples, chosen, inputs, process, seed
        )
        for layer in stage:
            _fit(layer, found[layer.name], damping)
            progress.step(layer.name)
    return work, tuple(layer.name for layer in layers)


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
        return Target(str(total.name), (*others, str(other.name)))


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether nothing is repeated when the two are added, as far as the graph tells."""
    first, second = one.shape, other.shape
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b for a, b in zip(first[1:], second[1:], strict=True))


def _can_be_fitted(layer: Layer) -> bool:
    return (
        wants_moments(layer)
        and not layer.shared
        and layer.weight.is_initializer()
        and float_of(layer.node, "beta", 1.0) != 0.0
    )


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


def _observe(
    original: ir.Model,
    thinned: ir.Model,
    layers: Sequence[Layer],
    targets: Mapping[str, Target],
    rows: Rows,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    process: Process,
    seed: int,
) -> dict[str, _Seen]:
    """Moments of the layers' targets and inputs, by layer; both models see the same samples."""
    sources = {layer.name: str(layer.node.inputs[0].name) for layer in layers}  # type: ignore[union-attr]
    wanted = [targets[layer.name].value for layer in layers]
    mine = list(sources.values())
    for layer in layers:
        mine += [other for other in targets[layer.name].others if isinstance(other, str)]
    fed = frozenset(spec.name for spec in inputs)
    sides = (_Side(fed, list(dict.fromkeys(wanted))), _Side(fed, list(dict.fromkeys(mine))))
    found: dict[str, _Seen] = {}
    for layer in layers:
        columns, groups = count_inputs(layer), layer.groups if layer.groups > 1 else None
        outputs = layer.weight_shape[layer.out_axis] // layer.groups
        found[layer.name] = _Seen(
            empty_moments(columns, outputs=outputs, groups=groups),
            empty_moments(columns, groups=groups),
        )
    limit = max(1, MOMENT_ROWS * 4 // max(len(indices), 1))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, ExitStack() as stack:
        for number, (side, graph) in enumerate(zip(sides, (original, thinned), strict=True)):
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


def _fit(layer: Layer, seen: _Seen, damping: float) -> None:
    """Give a layer, in place, the weight and bias that come nearest to its target."""
    if layer.op == "BatchNormalization":
        fit_normalization(layer, seen.cross, seen.own, damping)
        return
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    mean, target = seen.own.mean, seen.cross.mean
    second, cross = seen.own.second, seen.cross.second
    bias = constant_of(layer.bias)
    movable = (
        bias is not None
        and layer.bias is not None
        and layer.bias.is_initializer()
        and len(layer.bias.uses()) == 1
        and bias.size == len(matrix)
    )
    if movable:  # the bias takes over what is constant
        second = second - mean[..., :, None] * mean[..., None, :]
        cross = cross - target[..., :, None] * mean[..., None, :]
    elif bias is not None:
        held = bias.numpy().astype(np.float64) * float_of(layer.node, "beta", 1.0)
        held = np.broadcast_to(held.reshape(-1), (len(matrix),)).reshape(target.shape)
        cross = cross - held[..., :, None] * mean[..., None, :]
    stacked = matrix.reshape(*target.shape, -1)
    fitted = refit_to_targets(stacked, cross, second, damping=damping)
    plain = np.empty_like(matrix)
    plain[:, order] = fitted.reshape(matrix.shape)
    store_array(layer.weight, matrix_to_weight(layer, plain.astype(np.float32)))
    if movable and layer.bias is not None and bias is not None:
        left = target - np.matmul(fitted, mean[..., :, None])[..., 0]
        beta = float_of(layer.node, "beta", 1.0)
        store_array(layer.bias, (left.reshape(-1) / beta).reshape(tuple(bias.shape.numpy())))
