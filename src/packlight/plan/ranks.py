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

from numpy.typing import NDArray

from packlight.errors import RuntimeFailure
from packlight.graph.alone import layer_alone
from packlight.graph.anatomy import count_macs
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import Graph, save_model
from packlight.graph.observe import wants_moments, with_outputs
from packlight.graph.rewrite.factorize import (
    factorize,
    largest_rank,
    losses_of_ranks,
    share_of_rank,
    why_not_factorized,
)
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of
from packlight.measure.latency import rank_latencies
from packlight.plan.channels import (
    Ground,
    RankOption,
    Removal,
    noise_between,
    run_graph,
    share_out,
    total_macs,
)
from packlight.progress import Progress
from packlight.ranks import FactorKind, Rank
from packlight.samples import batches_of

LEAST_SHARE = 0.01
"""Layers with a smaller share of the multiplications are not worth the time to time them."""

MOST_LAYERS = 40
"""Those with the most multiplications are looked at."""

SHARES = (0.25, 0.4, 0.55, 0.75)
"""Of the layer's multiplications, that both parts together may take."""

SECONDS = 1.0
"""To time a layer and its ranks, interleaved."""

PROBE = 0.5
"""Share of the multiplications at which a layer's gain is measured."""

Arrays = Mapping[str, NDArray[Any]]


def offer_ranks(
    ground: Ground, progress: Progress, *, whole: Collection[str] = ()
) -> dict[str, tuple[RankOption, ...]]:
    """By layer, the ranks that are smaller and were measured faster.

    whole: layers that are not to be taken apart.
    """
    macs = count_macs(ground.graph)
    total = max(total_macs(macs), 1)
    able = [
        layer
        for layer in find_layers(ground.graph)
        if (macs[layer.name] or 0) >= LEAST_SHARE * total
        and wants_moments(layer)
        and layer.name in ground.moments
        and layer.name not in whole
    ]
    able = sorted(able, key=lambda layer: -(macs[layer.name] or 0))[:MOST_LAYERS]
    wanted = {layer.name: ranks for layer in able if (ranks := _ranks_of(layer))}
    faster = speeds_of(ground, ground.graph, wanted, progress)
    offered = {}
    progress.stage("measuring what ranks cost", len(faster))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = Path(folder) / "probe.onnx"
        indices = (ground.split.search or ground.split.calibration)[:128]
        original = run_graph(ground, ground.graph, path, indices) if faster else []
        for layer in able:
            speeds = faster.get(layer.name)
            if not speeds:
                continue
            ranks = tuple(speeds)
            losses = losses_of_ranks(layer, ranks, ground.moments[layer.name])
            near = min(range(len(ranks)), key=lambda i: abs(share_of_rank(layer, ranks[i]) - PROBE))
            probe = factorize(ground.graph, {layer.name: ranks[near]}, ground.moments)
            noise = noise_between(original, run_graph(ground, probe, path, indices))
            gain = noise / max(losses[near], 1e-12)
            offered[layer.name] = tuple(
                RankOption(rank, gain * loss, share_of_rank(layer, rank), speeds[rank])
                for rank, loss in zip(ranks, losses, strict=True)
            )
            progress.step(layer.name)
    return offered


def share_out_measured(
    ground: Ground,
    share: float,
    gains: Mapping[str, float],
    offers: Mapping[str, Sequence[RankOption]],
    progress: Progress,
) -> Removal:
    """`share_out` with ranks that are faster in layers without the channels that go, too.

    A rank that is not faster there is left out, and what it was to save is shared out again. Last
    the whole file is timed with and without its ranks: were it no faster, there would be none.
    """
    left = dict(offers)
    while True:
        removal = share_out(ground, share, gains, left)
        if not removal.ranks:
            return removal
        graph = remove_channels(ground.graph, gone_of(ground.orders, removal.keep))
        wanted = {name: (rank,) for name, rank in removal.ranks.items()}
        quick = speeds_of(ground, graph, wanted, progress) if removal.keep else wanted
        if quick.keys() == wanted.keys():
            break
        left = {
            name: options for name, options in left.items() if name in quick or name not in wanted
        }
    if _is_faster(ground, graph, factorize(graph, removal.ranks, {})):
        return removal
    return share_out(ground, share, gains)


def _is_faster(ground: Ground, before: Graph, after: Graph) -> bool:
    """Whether the second file takes less time, for certain (95 %), on the first sample."""
    first = batches_of(ground.samples, ground.split.calibration[:1], ground.inputs, batch=1)
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        paths = [Path(folder) / "before.onnx", Path(folder) / "after.onnx"]
        for graph, path in zip((before, after), paths, strict=True):
            save_model(graph, path, durable=False)
        times = rank_latencies(paths, next(iter(first)).feeds, seconds=2 * SECONDS)
    return times[1].ratio_interval_95[1] < 1


def speeds_of(
    ground: Ground, graph: Graph, wanted: Mapping[str, Sequence[Rank]], progress: Progress
) -> dict[str, dict[Rank, float]]:
    """By layer, how many times faster each rank is, of those that are faster for certain (95 %)."""
    layers = {layer.name: layer for layer in find_layers(graph) if layer.name in wanted}
    inputs = _inputs_of(ground, graph, list(layers.values()))
    found: dict[str, dict[Rank, float]] = {}
    progress.stage("timing layers taken apart", len(layers))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        for name, layer in layers.items():
            ranks = [one for one in wanted[name] if one.rank <= largest_rank(layer, one.kind)]
            whole = layer_alone(graph, layer, inputs[name].shape)
            if whole is None or not ranks:
                continue
            models = [whole, *(factorize(whole, {name: rank}, {}) for rank in ranks)]
            paths = [Path(folder) / f"{number}.onnx" for number in range(len(models))]
            for model, path in zip(models, paths, strict=True):
                save_model(model, path, durable=False)
            try:
                times = rank_latencies(paths, {"x": inputs[name]}, seconds=SECONDS)
            except RuntimeFailure:
                continue
            quick = {
                rank: 1 / time.ratio
                for rank, time in zip(ranks, times[1:], strict=True)
                if time.ratio_interval_95[1] < 1
            }
            if quick:
                found[name] = quick
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


def _inputs_of(ground: Ground, graph: Graph, layers: Sequence[Layer]) -> dict[str, NDArray[Any]]:
    """What reaches each layer on the first calibration sample."""
    names = {layer.name: str(layer.node.inputs[0].name) for layer in layers}  # type: ignore[union-attr]
    run = next(
        iter(batches_of(ground.samples, ground.split.calibration[:1], ground.inputs, batch=1))
    )
    arrays: dict[str, NDArray[Any]] = dict(run.feeds)
    inner = [name for name in dict.fromkeys(names.values()) if name not in arrays]
    if inner:
        with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
            path = Path(folder) / "inner.onnx"
            save_model(with_outputs(graph, inner), path, durable=False)
            session = ground.process.load(path)
            try:
                arrays |= session.run(run.feeds, inner)
            finally:
                session.close()
    return {layer: arrays[name] for layer, name in names.items()}
