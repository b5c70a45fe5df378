"""Which layers may be two thinner ones: what each rank costs, and whether it is faster.

Fewer multiplications are not less time: two small kernels read and write more, and have widths
that the runtime may not like. So every rank that is offered was timed in onnxruntime, beside the
layer, at the shapes that reach it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import RuntimeFailure
from packlight.graph.alone import layer_alone
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import save_model
from packlight.graph.observe import wants_moments
from packlight.graph.rewrite.factorize import (
    factorize,
    largest_rank,
    losses_of_ranks,
    share_of_rank,
    why_not_factorized,
)
from packlight.measure.latency import rank_latencies
from packlight.plan.allocation import Option, Part
from packlight.plan.channels import REACH, UNASKED, noise_of
from packlight.plan.cuts import Cuts
from packlight.plan.ground import Ground
from packlight.plan.timed import as_computed, run_inner
from packlight.progress import Progress
from packlight.ranks import FactorKind, Rank

LEAST_SHARE = 0.01
"""Layers with a smaller share of the multiplications are not worth the time to time them."""

MOST_LAYERS = 24
"""Those with the most multiplications, or weights, are looked at."""

SHARES = (0.25, 0.4, 0.55, 0.75)
"""Of the layer's multiplications, that both parts together may take."""

SECONDS, MOST_SECONDS = 1.0, 5.0
"""To time a layer and its ranks, interleaved; and all of them."""

PROBE = 0.5
"""Share of the multiplications at which a layer's loss is measured."""

Arrays = Mapping[str, NDArray[Any]]


def measure_ranks(
    ground: Ground, progress: Progress, *, whole: Collection[str] = ()
) -> dict[str, Part]:
    """By layer, the ranks that are smaller and were measured faster, behind leaving it whole.

    Losses are those of the model's output: measured at one rank, at the others in proportion to
    the noise that each leaves at the layer's own. whole: layers that are not to be taken apart.
    """
    counts = ground.counts
    total = max(ground.total, 1)
    able = [
        layer
        for layer in find_layers(ground.graph)
        if (counts[layer.name] or 0) >= LEAST_SHARE * total
        and wants_moments(layer)
        and layer.name in ground.moments
        and layer.name not in whole
    ]
    able = sorted(able, key=lambda layer: -(counts[layer.name] or 0))[:MOST_LAYERS]
    wanted = {layer.name: ranks for layer in able if (ranks := _ranks_of(layer))}
    saved = _times_saved(ground, wanted, progress)
    progress.stage("measuring what ranks cost", len(saved))
    measure = noise_of(ground, reach=REACH)
    found: dict[str, Part] = {}
    for layer in able:
        name, times = layer.name, saved.get(layer.name)
        if not times:
            continue
        losses = losses_of_ranks(layer, tuple(times), ground.moments[name])
        best = _best_of_each(layer, dict(zip(times, losses, strict=True)))
        probed = min(best, key=lambda rank: abs(share_of_rank(layer, rank) - PROBE))
        gain = measure(Cuts(ranks=((name, probed),))) / max(best[probed], 1e-12)
        part = (counts[name] or 0) / total
        rows = []
        for rank, loss in best.items():
            less = 1 - share_of_rank(layer, rank)
            cuts = Cuts(ranks=((name, rank),))
            rows.append(Option(cuts, gain * loss + UNASKED * less, part * less, times[rank]))
        found[name] = (Option(Cuts(), 0.0, 0.0, 0.0), *rows)
        progress.step(name)
    return found


def _best_of_each(layer: Layer, losses: Mapping[Rank, float]) -> dict[Rank, float]:
    """The ranks that lose less than all that take no more multiplications, the largest first."""
    found: dict[Rank, float] = {}
    least = np.inf
    for rank in sorted(losses, key=lambda one: (share_of_rank(layer, one), losses[one])):
        if losses[rank] < least:
            found[rank] = least = losses[rank]
    return dict(reversed(found.items()))


def _times_saved(
    ground: Ground, wanted: Mapping[str, Sequence[Rank]], progress: Progress
) -> dict[str, dict[Rank, float]]:
    """By layer, the share of the model's latency that each rank saves.

    Of those that are faster than the layer for certain (95 %), both timed alone.
    """
    layers = {layer.name: layer for layer in find_layers(ground.graph) if layer.name in wanted}
    if not layers:
        return {}
    sources = {name: str(layer.node.inputs[0].name) for name, layer in layers.items()}  # type: ignore[union-attr]
    found_inputs = run_inner(ground.graph, ground.one_feed, list(sources.values()), ground.process)
    inputs = {name: found_inputs[source] for name, source in sources.items()}
    seconds = min(SECONDS, MOST_SECONDS / len(layers))
    found: dict[str, dict[Rank, float]] = {}
    progress.stage("timing layers taken apart", len(layers))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        original = Path(folder) / "original.onnx"
        save_model(ground.timed_original, original, durable=False)
        (model,) = rank_latencies([original], ground.one_feed, seconds=seconds)
        for name, layer in layers.items():
            whole = layer_alone(ground.graph, layer, inputs[name].shape)
            if whole is None:
                continue
            models = [whole, *(factorize(whole, {name: rank}, {}) for rank in wanted[name])]
            paths = [Path(folder) / f"{number}.onnx" for number in range(len(models))]
            feeds = {"x": inputs[name]}
            for one, path in zip(models, paths, strict=True):
                one = as_computed(one, ground.computes, feeds, ground.process)
                save_model(one, path, durable=False)
            try:
                first, *times = rank_latencies(paths, feeds, seconds=seconds)
            except RuntimeFailure:
                continue
            found[name] = {
                rank: (1 - time.ratio) * first.ms / model.ms
                for rank, time in zip(wanted[name], times, strict=True)
                if time.ratio_interval_95[1] < 1
            }
            progress.step(name)
    return found


def _ranks_of(layer: Layer) -> tuple[Rank, ...]:
    """The ranks worth timing: both parts in blocks of what kernels compute at a time."""
    kinds: tuple[FactorKind, ...] = ("channel", "spatial") if layer.kind == "Conv" else ("matrix",)
    found = []
    for kind in kinds:
        if why_not_factorized(layer, kind):
            continue
        most = largest_rank(layer, kind)
        step = next(step for least, step in ((64, 16), (16, 8), (8, 4), (0, 1)) if most >= least)
        one = share_of_rank(layer, Rank(kind, 1))
        counts = {round(share / one / step) * step for share in SHARES}
        found += [Rank(kind, count) for count in sorted(counts) if 0 < count <= most]
    return tuple(found)
