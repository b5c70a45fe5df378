"""Calibration that sees what quantized layers give: each layer makes up for those before it.

Layers are taken in graph order, a stage at a time. What the original gives there, t, and what
reaches the layer in the model whose earlier layers are compressed already, y, are observed side
by side; the layer then gets the weight and bias that come nearest to t from y
(`packlight.graph.fitting`), and is rounded with the second moments of y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import onnx_ir as ir

from packlight.graph.apply import Weights, apply_recipe
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.fitting import Target, can_be_fitted, find_target, fit_layer, observe_pairs
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import copy_model
from packlight.graph.observe import (
    MOMENT_ROWS,
    Observations,
    split_stages,
)
from packlight.graph.rewrite.weights import family_of, find_families, round_layer
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe, parse_choice
from packlight.runtime import Process
from packlight.samples import Samples
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
    shaped = copy_model(model)
    infer_shapes(shaped)
    targets = {layer.name: find_target(layer.node.outputs[0]) for layer in find_layers(shaped)}
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
        nodes = {str(node.name): node for node in compressed.graph}
        there = {one.name: _in_compressed(one, targets[one.name], nodes) for one in stage}
        pairs = observe_pairs(
            model,
            compressed,
            stage,
            {name: target for name, (_, target) in there.items()},
            samples,
            indices[: samples_each or _enough(stage, len(indices))],
            inputs,
            process=process,
            most_rows=MOMENT_ROWS,
            sources={name: source for name, (source, _) in there.items()},
            seed=recipe.seed,
        )
        for layer in stage:
            fit_layer(layer, pairs[layer.name], damping)
            moments[layer.name] = pairs[layer.name].own
            progress.step(layer.name)
    return Refitted(work, seen, weights, tuple(layer.name for layer in layers))


def _enough(layers: Sequence[Layer], count: int) -> int:
    return min(count, SAMPLES) if all(layer.kind == "Conv" for layer in layers) else count


def _can_be_refitted(layer: Layer, chosen: Mapping[str, str]) -> bool:
    choice = parse_choice(chosen.get(layer.name, "float32"))
    return not choice.weights.startswith("float") and layer.groups == 1 and can_be_fitted(layer)


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


def _in_compressed(
    layer: Layer, target: Target, nodes: Mapping[str, ir.Node]
) -> tuple[str, Target]:
    """What a layer reads in the compressed graph, and its target with that graph's shortcut."""
    names = (layer.name, f"{layer.name}_dynamic", f"{layer.name}_blocks")
    source = _input_name(next(nodes[name] for name in names if name in nodes))
    if not target.total:
        return source, target
    total = nodes.get(target.total)
    if total is None or total.op_type != "Add":
        return source, Target(str(layer.node.outputs[0].name))
    shortcut = _input_name(total, target.shortcut)
    return source, replace(target, others=(*target.others[:-1], shortcut))


def _input_name(node: ir.Node, place: int = 0) -> str:
    return str(cast(ir.Value, node.inputs[place]).name)
