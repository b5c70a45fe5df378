"""How many channels each group keeps so that a share of the multiply-accumulates is saved.

For each group of channels a curve says what is lost when so many are kept (`order_groups`); what
a loss there does to the model's output is measured once a group (its gain). Losses of groups add
up, so that a knapsack shares the removal out, among the groups and the layers that may be two
thinner ones; what it saves is then counted on the graph, since a layer between two groups saves
less than both promise, and the next budget is corrected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.cost import macs_of_channels, macs_without
from packlight.graph.coupling.groups import CoupledGroup, find_groups
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import Graph, save_model
from packlight.graph.observe import observe, wants_moments
from packlight.graph.rewrite.factorize import largest_rank, share_of_rank
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of, order_groups, refit_readers
from packlight.maths.channels import ChannelOrder
from packlight.maths.moments import Moments
from packlight.plan.knapsack import Cost, solve_knapsack
from packlight.progress import Progress
from packlight.ranks import Rank
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, Split, batches_of
from packlight.tensors import TensorSpec

LEAST_KEPT = 8
"""Of every group at least one channel in so many stays."""

PROBED = 128
"""Samples on which a group's gain is measured."""

PROBE = 0.25
"""Share of a group's channels that are gone when its gain is measured."""

_UNASKED = 1e-6
"""Noise power that a whole group costs beyond its own: what nobody asked for is not removed
because samples, made up perhaps, show no use of it."""

_CORRECTIONS = 8
_CLOSE = 0.01
"""So near to the share that was asked for the knapsack's answer need come."""


@dataclass(frozen=True)
class Ground:
    """What thinning starts from."""

    graph: Graph
    samples: Samples
    split: Split
    inputs: tuple[TensorSpec, ...]
    groups: tuple[CoupledGroup, ...]
    moments: Mapping[str, Moments]
    orders: Mapping[str, ChannelOrder]
    process: Process
    seed: int


def prepare_ground(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: tuple[TensorSpec, ...],
    process: Process,
    seed: int,
    progress: Progress,
) -> Ground:
    """Find the groups of channels, and in what order their channels may go."""
    progress.stage("finding channels that go together")
    groups = find_groups(graph)
    layers = [layer for layer in find_layers(graph) if wants_moments(layer)]
    seen = observe(
        graph,
        samples,
        split.calibration,
        inputs,
        tensors=(),
        layers=layers,
        process=process,
        seed=seed,
        progress=progress,
    )
    progress.stage("ordering channels by what they are missed for")
    orders = order_groups(graph, groups, seen.moments)
    return Ground(graph, samples, split, inputs, groups, seen.moments, orders, process, seed)


@dataclass(frozen=True)
class RankOption:
    """One way to take a layer apart.

    loss: noise at the model's output, as a share of its power. macs: of both parts, as a share of
    the layer's. speed: how many times less time both parts take.
    """

    rank: Rank
    loss: float
    macs: float
    speed: float


@dataclass(frozen=True)
class Removal:
    """What goes: channels kept, by group that loses some, and ranks, by layer taken apart."""

    keep: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, Rank] = field(default_factory=dict)


def share_out(
    ground: Ground,
    share: float,
    gains: Mapping[str, float],
    offers: Mapping[str, Sequence[RankOption]] | None = None,
) -> Removal:
    """What is to go so that `share` of the multiply-accumulates is saved at the least loss.

    gains: by group, from `measure_gains`. offers: by layer, from `offer_ranks`. Raises WrongUsage
    where so much cannot be removed.
    """
    macs = count_macs(ground.graph)
    total = total_macs(macs)
    offers = offers or {}
    each = macs_of_channels(ground.graph, ground.groups)
    names = list(gains)
    counts = [_counts(ground.orders[name].channels) for name in names]
    costs = [
        [
            Cost(
                max(gains[name] * ground.orders[name].loss(count), 0.0)
                + _UNASKED * (1 - count / ground.orders[name].channels),
                0.0,
                each[name] * count / total,
            )
            for count in options
        ]
        for name, options in zip(names, counts, strict=True)
    ]
    everything = sum(each[name] * ground.orders[name].channels for name in names) / total
    for name, found_ranks in offers.items():
        part = (macs[name] or 0) / total
        whole = Cost(0.0, 0.0, part)
        costs.append(
            [whole]
            + [
                Cost(max(one.loss, 0.0) + _UNASKED * (1 - one.macs), 0.0, part * one.macs)
                for one in found_ranks
            ]
        )
        everything += part
    aim = share
    best: tuple[float, Removal] | None = None
    for _ in range(_CORRECTIONS):
        found = solve_knapsack(costs, minimise="loss", max_ms=max(everything - aim, 0.0))
        if found is None:
            break
        keep = {
            name: options[choice]
            for name, options, choice in zip(names, counts, found.choices, strict=False)
            if options[choice] < ground.orders[name].channels
        }
        apart = {
            name: options[choice - 1].rank
            for (name, options), choice in zip(
                offers.items(), found.choices[len(names) :], strict=True
            )
            if choice
        }
        removal = possible(ground, Removal(keep, apart))
        saved = 1 - macs_left(ground, removal) / total
        if saved >= share - _CLOSE and (best is None or saved < best[0]):
            best = (saved, removal)
        if abs(saved - share) < _CLOSE:
            break
        aim += share - saved
    if best is None:
        least = {name: options[0] for name, options in zip(names, counts, strict=True)}
        smallest = {name: options[0].rank for name, options in offers.items()}
        left = macs_left(ground, possible(ground, Removal(least, smallest)))
        raise WrongUsage(
            f"--prune {share:.0%}: at most {1 - left / total:.0%} of this model's "
            f"multiply-accumulates can be removed ({reasons_pinned(ground.groups)}); ask for less."
        )
    return best[1]


def possible(ground: Ground, removal: Removal) -> Removal:
    """The same without ranks that save nothing in layers that lose channels, too."""
    layers = _layers_left(ground, removal)
    ranks = {
        name: rank
        for name, rank in removal.ranks.items()
        if rank.rank <= largest_rank(layers[name], rank.kind)
    }
    return Removal(removal.keep, ranks)


def _counts(size: int) -> tuple[int, ...]:
    """How many channels may be kept: kernels compute them in blocks of 8 or 16.

    Half of resnet20's multiplications in steps of 4 and 8 left 85.9 % and 1.26 times the speed, of
    8 85.7 % and 1.35, of 8 and 16 83.7 % and 1.40 (closed form, AVX512).
    """
    step = next(step for least, step in ((16, 8), (8, 2), (0, 1)) if size >= least)
    least = max(1, size // LEAST_KEPT)
    counts = {count for count in range(step, size, step) if count >= least}
    return tuple(sorted({*counts, size}))


def measure_gains(ground: Ground, progress: Progress) -> dict[str, float]:
    """By group that can go, the noise at the model's output for each unit of its curve's loss.

    Raises WrongUsage where there is no such group.
    """
    each = macs_of_channels(ground.graph, ground.groups)
    names = [name for name in ground.orders if each.get(name)]
    if not names:
        why = reasons_pinned(ground.groups)
        raise WrongUsage(
            f"--prune: this model has no channels to remove ({why}); leave the option out."
        )
    indices = (ground.split.search or ground.split.calibration)[:PROBED]
    gains: dict[str, float] = {}
    progress.stage("measuring each group of channels alone", len(names))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = Path(folder) / "probe.onnx"
        wanted = run_graph(ground, ground.graph, path, indices)
        for name in names:
            order = ground.orders[name]
            count = min(max(1, round(order.channels * (1 - PROBE))), order.channels - 1)
            gone = gone_of(ground.orders, {name: count})
            pruned = remove_channels(ground.graph, gone)
            refit_readers(ground.graph, pruned, ground.groups, gone, ground.moments)
            noise = noise_between(wanted, run_graph(ground, pruned, path, indices))
            gains[name] = noise / max(order.loss(count), 1e-12)
            progress.step(name)
    return gains


def run_graph(
    ground: Ground, graph: Graph, path: Path, indices: Sequence[int]
) -> list[Mapping[str, NDArray[Any]]]:
    """The outputs of a graph on these samples, batch by batch. path: where it is written."""
    save_model(graph, path, durable=False)
    session: Session = ground.process.load(path, threads=cpu_features().cores, spinning=False)
    try:
        return [
            {name: run.trim(array) for name, array in session.run(run.feeds).items()}
            for run in batches_of(ground.samples, indices, ground.inputs)
        ]
    finally:
        session.close()


def noise_between(
    wanted: Sequence[Mapping[str, NDArray[Any]]], found: Sequence[Mapping[str, NDArray[Any]]]
) -> float:
    """Noise power as a share of the variance, of the worst output in floats."""
    worst = 0.0
    for name, array in wanted[0].items():
        if array.dtype.kind != "f":
            continue
        first, second = (
            np.concatenate([run[name].astype(np.float64).ravel() for run in runs])
            for runs in (wanted, found)
        )
        power = float(np.square(first - first.mean()).sum())
        if power > 0:
            worst = max(worst, float(np.square(first - second).sum()) / power)
    return worst


def macs_left(ground: Ground, removal: Removal) -> int:
    """Multiply-accumulates for one sample once all of this is gone."""
    gone = gone_of(ground.orders, removal.keep)
    macs = macs_without(ground.graph, ground.groups, gone)
    layers = _layers_left(ground, removal)
    for name, rank in removal.ranks.items():
        macs[name] = round((macs[name] or 0) * share_of_rank(layers[name], rank))
    return total_macs(macs)


def _layers_left(ground: Ground, removal: Removal) -> dict[str, Layer]:
    """The layers that are to be taken apart, as they are without the channels that go."""
    if not removal.ranks:
        return {}
    gone = gone_of(ground.orders, removal.keep)
    graph = remove_channels(ground.graph, gone) if gone else ground.graph
    return {layer.name: layer for layer in find_layers(graph) if layer.name in removal.ranks}


def total_macs(macs: Mapping[str, int | None]) -> int:
    """The sum; what is not known counts as none."""
    return sum(count or 0 for count in macs.values())


def reasons_pinned(groups: Sequence[CoupledGroup]) -> str:
    """Why channels stay, in words: the first few reasons."""
    reasons = list(dict.fromkeys(group.pinned for group in groups if group.pinned))
    return "; ".join(reasons[:3]) or "no layer makes channels that another reads"
