"""What goes is taken out of the graph, and the rest fitted; of several ways the best is found so.

Losses of channels and of ranks add up in the knapsack, but not in the graph: resnet20 without half
of its multiplications kept 89.3 % by ranks alone and 88.5 % by the mixture that should have lost
less (512 pictures). So the mixture, and each of the two alone, are made and measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packlight.errors import WrongUsage
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph
from packlight.graph.observe import observe, wants_moments
from packlight.graph.repair import SAMPLES, Rows, repair
from packlight.graph.rewrite.factorize import factorize
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of, rows_left
from packlight.plan.channels import (
    PROBED,
    Ground,
    RankOption,
    Removal,
    noise_between,
    run_graph,
)
from packlight.plan.ranks import share_out_measured
from packlight.progress import Progress
from packlight.ranks import Rank

TRIED = 256
"""Calibration samples with which a way is fitted that may not be taken."""


def choose_removal(
    ground: Ground,
    share: float,
    gains: Mapping[str, float],
    offers: Mapping[str, Sequence[RankOption]],
    progress: Progress,
) -> Removal:
    """What to remove so that `share` of the multiply-accumulates is saved.

    Channels, ranks, or both: what leaves the least noise on search samples once the rest is
    fitted. gains, offers: as for `share_out`. Raises WrongUsage where so much cannot be removed.
    """
    ways: list[Removal] = []
    refusal: WrongUsage | None = None
    both = bool(gains and offers)
    for some, others in ((gains, offers), *((({}, offers), (gains, {})) if both else ())):
        try:
            way = share_out_measured(ground, share, some, others, progress)
        except WrongUsage as error:
            refusal = refusal or error
            continue
        if way not in ways:
            ways.append(way)
    if not ways:
        assert refusal is not None
        raise refusal
    if len(ways) == 1:
        return ways[0]
    indices = (ground.split.search or ground.split.calibration)[:PROBED]
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = Path(folder) / "way.onnx"
        wanted = run_graph(ground, ground.graph, path, indices)
        noises = []
        for way in ways:
            graph = carry_out(ground, way, progress, samples_each=TRIED)
            noises.append(noise_between(wanted, run_graph(ground, graph, path, indices)))
    return ways[noises.index(min(noises))]


def carry_out(
    ground: Ground, removal: Removal, progress: Progress, *, samples_each: int = SAMPLES
) -> Graph:
    """The graph without all this, its layers fitted to the original.

    samples_each: of a pass over the samples. Raises UnusableRecipe for a layer to be taken apart
    that is not there, or a rank that it cannot have.
    """
    gone = gone_of(ground.orders, removal.keep)
    rows = rows_left(ground.graph, ground.groups, gone)
    fitted = ground.graph
    if gone or not removal.ranks:
        fitted, _ = repair(
            ground.graph,
            remove_channels(ground.graph, gone),
            ground.samples,
            ground.split.calibration,
            ground.inputs,
            process=ground.process,
            rows=rows,
            samples_each=samples_each,
            seed=ground.seed,
            progress=progress,
        )
    if removal.ranks:
        fitted = _take_apart(ground, fitted, removal.ranks, rows, samples_each, progress)
    return fitted


def _take_apart(
    ground: Ground,
    thinned: Graph,
    ranks: Mapping[str, Rank],
    rows: Rows,
    samples_each: int,
    progress: Progress,
) -> Graph:
    """The thinned graph with some layers taken apart, and fitted to the original again."""
    layers = [layer for layer in find_layers(thinned) if layer.name in ranks]
    seen = observe(
        thinned,
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        tensors=(),
        layers=[layer for layer in layers if wants_moments(layer)],
        process=ground.process,
        seed=ground.seed,
        progress=progress,
    )
    apart = factorize(thinned, ranks, seen.moments)
    second = {f"{name}_b": rows[name] for name in ranks if name in rows}
    fitted, _ = repair(
        ground.graph,
        apart,
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        process=ground.process,
        rows={**rows, **second},
        samples_each=samples_each,
        seed=ground.seed,
        progress=progress,
    )
    return fitted
