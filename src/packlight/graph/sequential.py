"""Calibration that sees what quantized layers give: each layer makes up for those before it.

Layers are taken in graph order, a stage at a time. What reaches a layer in the original, x, and
in the model whose earlier layers are compressed already, y, are observed side by side; the layer
then gets the weight that does best on y what the original did on x (`refit_to_inputs`), and is
rounded with the second moments of y. The mean of its output is kept by its bias.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.apply import Weights, apply_recipe
from packlight.graph.layers import Layer, find_layers, matrix_to_weight, weight_matrix
from packlight.graph.model import copy_model, save_model
from packlight.graph.observe import (
    MOMENT_ROWS,
    Observations,
    batch_within,
    count_inputs,
    split_stages,
    wants_moments,
    with_outputs,
)
from packlight.graph.patches import kernel_order, rows_reaching
from packlight.graph.rewrite.packing import own_bias
from packlight.graph.rewrite.single import float_of
from packlight.graph.rewrite.weights import family_of, find_families, round_layer
from packlight.graph.walk import constant_of
from packlight.maths.moments import (
    Moments,
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    mean_shift,
    refit_to_inputs,
)
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe, parse_choice
from packlight.runtime import Process, cpu_features
from packlight.samples import Samples, batches_of
from packlight.tensors import TensorSpec

STAGES = 24
"""At most so many passes over the samples: the layers of one stage see the same earlier ones."""

SAMPLES = 256
"""Calibration samples of a pass for convolutions, to which each gives many rows."""


@dataclass(frozen=True)
class Refitted:
    """A graph whose weights are what to round, and the moments to round them with.

    weights: those already rounded on the way. layers: names of the layers refitted.
    """

    graph: ir.Model
    observations: Observations
    weights: Weights
    layers: tuple[str, ...]


def refit_in_sequence(
    model: ir.Model,
    recipe: Recipe,
    observations: Observations,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    *,
    process: Process,
    accuracy_level: int = 4,
    stages: int = STAGES,
    samples_each: int | None = None,
    damping: float = 0.01,
    progress: Progress = SILENT,
) -> Refitted:
    """Refit the layers that a recipe compresses, each to the inputs that those before it leave.

    model: simplified; it is not changed. observations: of it. samples_each: calibration samples
    of each pass; by itself all for stages with layers that see one row a sample. Layers that
    share a weight, have groups, or too many inputs for second moments stay as they are.
    Apply the recipe to `Refitted.graph` with its observations and weights.
    """
    work = copy_model(model)
    chosen = dict(recipe.layers)
    layers = [layer for layer in find_layers(work) if _can_be_refitted(layer, chosen)]
    families = find_families(work)
    layers = [layer for layer in layers if len(families[family_of(layer)]) == 1]
    originals = {layer.name: layer for layer in find_layers(model)}
    moments = dict(observations.moments)
    seen = replace(observations, moments=moments)
    weights = Weights()
    # A recipe may name them in any order; only graph order tells what comes before.
    order = [layer.name for layer in find_layers(work) if layer.name in chosen]
    progress.stage("rounding layer after layer", len(layers))
    for stage in split_stages(layers, stages):
        names = {layer.name for layer in stage}
        last = max(order.index(name) for name in names)
        before = set(order[: last + 1]) - names
        here = {name for name in names if parse_choice(chosen[name]).activation_bits < 32}
        partial = replace(
            recipe, layers=tuple((n, c) for n, c in recipe.layers if n in before | here)
        )
        # What a layer reads is quantized with it, so it is put in for now, rounded plainly.
        trial = _with_plain(weights, recipe, [one for one in stage if one.name in here])
        compressed, _ = apply_recipe(
            work, partial, seen, accuracy_level=accuracy_level, weights=trial
        )
        _keep_rounded(trial, weights, before)
        pairs = _observe_pairs(
            model,
            compressed,
            [originals[layer.name] for layer in stage],
            samples,
            indices[: samples_each or _enough(stage, len(indices))],
            inputs,
            process,
            recipe.seed,
        )
        for layer in stage:
            cross, own = pairs[layer.name]
            _refit(layer, cross, own, damping)
            moments[layer.name] = own
            progress.step(layer.name)
    return Refitted(work, seen, weights, tuple(layer.name for layer in layers))


def _enough(layers: Sequence[Layer], count: int) -> int:
    return min(count, SAMPLES) if all(layer.kind == "Conv" for layer in layers) else count


def _can_be_refitted(layer: Layer, chosen: Mapping[str, str]) -> bool:
    choice = parse_choice(chosen.get(layer.name, "float32"))
    return (
        not choice.weights.startswith("float")
        and wants_moments(layer)
        and layer.groups == 1
        and not layer.shared
        and layer.weight.is_initializer()
    )


def _with_plain(weights: Weights, recipe: Recipe, layers: Sequence[Layer]) -> Weights:
    """The weights rounded so far, and those of `layers` to the nearest."""
    trial = Weights(
        {key: dict(found) for key, found in weights.rounded.items()},
        {key: dict(found) for key, found in weights.packed.items()},
    )
    for layer in layers:
        choice = parse_choice(recipe.choice(layer.name))
        if choice.compute == "static":
            cache = trial.rounded_for(recipe, int(choice.bits))
            cache[layer.name] = round_layer(
                layer,
                None,
                rounding="nearest",
                pair_limit=recipe.pair_limit,
                bits=int(choice.bits),
            )
    return trial


def _keep_rounded(trial: Weights, weights: Weights, names: set[str]) -> None:
    """Take over what was rounded for layers that are done."""
    for key, rounded in trial.rounded.items():
        kept = weights.rounded.setdefault(key, {})
        kept |= {name: one for name, one in rounded.items() if name in names}
    for word, packed in trial.packed.items():
        stored = weights.packed.setdefault(word, {})
        stored |= {place: one for place, one in packed.items() if place[0] in names}


def _observe_pairs(
    model: ir.Model,
    compressed: ir.Model,
    layers: Sequence[Layer],
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    process: Process,
    seed: int,
) -> dict[str, tuple[Moments, Moments]]:
    """Cross moments E[x y^T] and own moments E[y y^T] of each layer's inputs, by layer.

    x: as they are in `model`; y: in `compressed`. The same rows are drawn of both.
    """
    nodes = {str(node.name): node for node in compressed.graph}
    given = {spec.name for spec in inputs}
    names: dict[str, tuple[str, str]] = {}
    for layer in layers:
        node = next(
            nodes[name]
            for name in (layer.name, f"{layer.name}_dynamic", f"{layer.name}_blocks")
            if name in nodes
        )
        names[layer.name] = (_input_name(layer.node), _input_name(node))
    wanted = [list(dict.fromkeys(pair[side] for pair in names.values())) for side in (0, 1)]
    found = {
        layer.name: (empty_moments(count_inputs(layer)), empty_moments(count_inputs(layer)))
        for layer in layers
    }
    rows = max(1, MOMENT_ROWS // max(len(indices), 1))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, ExitStack() as stack:
        sessions = []
        for number, (graph, tensors) in enumerate(zip((model, compressed), wanted, strict=True)):
            inner = [name for name in tensors if name not in given]
            session = None
            if inner:
                path = Path(folder) / f"{number}.onnx"
                save_model(with_outputs(graph, inner), path, durable=False)
                session = process.load(path, threads=cpu_features().cores, spinning=False)
                stack.callback(session.close)
            sessions.append((session, inner))
        first = next(iter(batches_of(samples, indices[:1], inputs)))
        sizes = sum(
            array.nbytes
            for session, inner in sessions
            if session is not None
            for array in session.run(first.feeds, inner).values()
        )
        for number, run in enumerate(
            batches_of(samples, indices, inputs, batch=batch_within(sizes))
        ):
            held: list[dict[str, NDArray[Any]]] = []
            for session, inner in sessions:
                arrays = {} if session is None else session.run(run.feeds, inner)
                held.append({name: run.trim(array) for name, array in arrays.items()})
            fed = {name: run.trim(array) for name, array in run.feeds.items()}
            for layer in layers:
                sides = []
                for side, name in enumerate(names[layer.name]):
                    array = held[side].get(name)
                    generator = np.random.default_rng((seed, number))
                    array = fed[name] if array is None else array
                    sides.append(rows_reaching(layer, array, rows * run.rows, generator))
                x, y = sides
                cross, own = found[layer.name]
                found[layer.name] = (add_to_cross_moments(cross, x, y), add_to_moments(own, y))
    return found


def _refit(layer: Layer, cross: Moments, own: Moments, damping: float) -> None:
    """Give a layer, in place, the weight and bias that do on y what its own did on x."""
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    second, products = own.second, cross.second
    if own_bias(layer) is not None:  # the bias takes over what is constant
        second = second - np.outer(own.mean, own.mean)
        products = products - np.outer(cross.mean, cross.mean_right)
    target = refit_to_inputs(matrix, products, second, damping=damping)
    shift = mean_shift(matrix, cross.mean, target, cross.mean_right)
    plain = np.empty_like(target)
    plain[:, order] = target
    tensor = constant_of(layer.weight)
    assert tensor is not None
    array = matrix_to_weight(layer, plain.astype(np.float32))
    layer.weight.const_value = ir.Tensor(array.astype(tensor.numpy().dtype), name=tensor.name)
    bias = constant_of(layer.bias)
    if bias is None or layer.bias is None or not layer.bias.is_initializer():
        return
    if len(layer.bias.uses()) > 1:
        return
    beta = float_of(layer.node, "beta", 1.0) if layer.kind == "Gemm" else 1.0
    if bias.size != len(shift) or beta == 0:
        return
    old = bias.numpy()
    moved = old.astype(np.float64) + (shift / beta).reshape(old.shape)
    layer.bias.const_value = ir.Tensor(moved.astype(old.dtype), name=bias.name)


def _input_name(node: ir.Node) -> str:
    return str(cast(ir.Value, node.inputs[0]).name)
