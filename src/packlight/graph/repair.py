"""Layers of a thinned graph fitted again, one after the other, to what the original gives.

Each is held to its target (`packlight.graph.fitting`) given what reaches it in the thinned model,
so that it makes up for what went wrong before it too. What is left of batch normalization is
fitted channel by channel (`packlight.graph.renormalize`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.fitting import Rows, can_be_fitted, find_target, fit_layer, observe_pairs
from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model
from packlight.graph.observe import MOMENT_ROWS, split_stages
from packlight.graph.renormalize import find_normalizations
from packlight.progress import SILENT, Progress
from packlight.runtime import Process
from packlight.samples import Samples, shapes_of_one
from packlight.tensors import TensorSpec

SAMPLES = 2048
"""Samples of a pass. Positions of one picture are alike: many pictures tell more than many rows."""

LEAST_SAMPLES = 64
WORK = 2e12
"""Multiply-accumulates of all passes together, about: a model of a billion for each sample takes
fewer samples (but LEAST_SAMPLES), or fitting would take hours. 100 s at 20 billion a second."""

STAGES = 64
"""At most so many passes over the samples: the layers of one stage see the same earlier ones."""

ROWS = 4 * MOMENT_ROWS
"""At most so many patches or positions of a pass are looked at for each layer."""


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
    samples_each: int | None = None,
    names: Collection[str] | None = None,
    damping: float = 1e-3,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of `thinned` whose layers are fitted to what `original` gives; names of those fitted.

    thinned: the original without some channels or parts; what is left has its old names.
    rows: by layer, which of the original's outputs it still has; all where it is not named.
    samples_each: samples of a pass over at most STAGES groups of layers, in graph order; by
        itself SAMPLES, and fewer of a model that multiplies a lot.
    names: of the layers to fit; all where it is None.
    damping: pull towards the weights that are there, as a share of the mean second moment.
    Layers that share a weight, lie in subgraphs, transpose, recur or have too many inputs for
    second moments stay as they are. Raises UnusableSamples where an activation is not finite.
    """
    work = copy_model(thinned)
    infer_shapes(work)
    known = {value.name for node in original.graph for value in node.outputs}
    place = {node: number for number, node in enumerate(work.graph)}
    layers = [layer for layer in find_layers(work) if can_be_fitted(layer)]
    layers += find_normalizations(work)
    layers.sort(key=lambda layer: place[layer.node])
    if names is not None:
        layers = [layer for layer in layers if layer.name in names]
    targets = {layer.name: find_target(layer.node.outputs[0]) for layer in layers}
    layers = [layer for layer in layers if targets[layer.name].value in known]
    if samples_each is None:
        samples_each = _affordable(original, samples, indices, inputs, min(stages, len(layers)))
    chosen = indices[:samples_each]
    progress.stage("fitting what is left to the original", len(layers))
    for stage in split_stages(layers, stages):
        found = observe_pairs(
            original,
            work,
            stage,
            targets,
            samples,
            chosen,
            inputs,
            process=process,
            most_rows=ROWS,
            rows=rows,
            seed=seed,
        )
        for layer in stage:
            fit_layer(layer, found[layer.name], damping)
            progress.step(layer.name)
    return work, tuple(layer.name for layer in layers)


def _affordable(
    model: ir.Model,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    passes: int,
) -> int:
    """Samples of a pass, so that all passes together multiply about WORK times."""
    macs = count_macs(model, shapes_of_one(samples, indices, inputs))
    # Two models are run, each on average up to the middle.
    each = sum(count or 0 for count in macs.values()) * max(passes, 1)
    return int(np.clip(WORK / max(each, 1), LEAST_SAMPLES, SAMPLES))
