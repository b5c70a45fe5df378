"""Which channels go so that a share of the multiply-accumulates is saved, and the graph without.

For each group of channels a curve says what is lost when so many are kept (`order_groups`); what
a loss there does to the model's output is measured once a group (its gain). Losses of groups add
up, so that a knapsack shares the removal out; what it saves is then counted on the graph, since
a layer between two groups saves less than both promise, and the next budget is corrected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnsupportedOperator, UnusableRecipe, WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.cost import macs_of_channels, macs_without
from packlight.graph.coupling.groups import CoupledGroup, find_groups
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, save_model
from packlight.graph.observe import observe, wants_moments
from packlight.graph.repair import repair
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of, order_groups, refit_readers, rows_left
from packlight.graph.torch.enter import check_torch
from packlight.maths.channels import ChannelOrder
from packlight.maths.moments import Moments
from packlight.measure.evidence import ChannelEvidence, Thinning
from packlight.nearest import did_you_mean
from packlight.plan.knapsack import Cost, solve_knapsack
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, Split, batches_of
from packlight.tensors import TensorSpec

MOST_REMOVED = 0.95
"""Share of the multiply-accumulates that may be asked for."""

LEAST_KEPT = 8
"""Of every group at least one channel in so many stays."""

PROBED = 128
"""Samples on which a group's gain is measured."""

PROBE = 0.25
"""Share of a group's channels that are gone when its gain is measured."""

_CORRECTIONS = 8
_CLOSE = 0.01
"""So near to the share that was asked for the knapsack's answer need come."""


@dataclass(frozen=True)
class Thinned:
    """A graph without some channels, its layers fitted to what the original gives.

    channels: (group, channels kept) of the groups that lost some. heal_steps: of training.
    """

    graph: Graph
    channels: tuple[tuple[str, int], ...]
    heal_steps: int
    evidence: Thinning

    def note_in(self, recipe: Recipe) -> Recipe:
        """The recipe that says this too, so that it can be done again."""
        return replace(recipe, channels=self.channels, heal_steps=self.heal_steps)


@dataclass(frozen=True)
class _Ground:
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


def thin(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: Sequence[TensorSpec],
    *,
    share: float | None = None,
    channels: Sequence[tuple[str, int]] = (),
    heal_minutes: float = 0.0,
    heal_steps: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Thinned:
    """Remove channels from a simplified graph, and fit or train what is left to its outputs.

    share: of the multiply-accumulates to remove (0 to 0.95); or channels: (group, kept) as a
    recipe says. heal_minutes: train for so long, or for exactly heal_steps.
    Raises WrongUsage where so much cannot be removed, UnusableRecipe for a group that is not
    there or a number that it cannot keep, MissingExtra where healing needs PyTorch.
    """
    if heal_minutes > 0 or heal_steps:
        check_torch()
    with Process() as process:
        progress.stage("finding channels that go together")
        ground = _prepare(graph, samples, split, tuple(inputs), process, seed, progress)
        keep = _checked(channels, ground)
        if share is not None:
            keep = _share_out(ground, share, progress)
        gone = gone_of(ground.orders, keep)
        pruned = remove_channels(graph, gone)
        fitted, _ = repair(
            graph,
            pruned,
            samples,
            split.calibration,
            inputs,
            process=process,
            rows=rows_left(graph, ground.groups, gone),
            seed=seed,
            progress=progress,
        )
        steps = 0
        notes: list[str] = []
        loss: tuple[float, float] | None = None
        if heal_minutes > 0 or heal_steps:
            try:
                fitted, steps, loss, notes = _heal(
                    ground, fitted, heal_minutes, heal_steps, progress
                )
            except UnsupportedOperator as error:
                notes = [f"not healed: {error}"]
        evidence = _evidence(ground, keep, gone, steps, loss, notes)
    return Thinned(fitted, tuple(sorted(keep.items())), steps, evidence)


def parse_share(value: str | float) -> float:
    """The share of the multiply-accumulates to remove: "30%" and 0.3 are 0.3.

    Raises WrongUsage for what is no share from 0 to 95 %.
    """
    try:
        text = str(value).strip()
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number <= MOST_REMOVED:
        raise WrongUsage(
            f"--prune {value}: give the share of the multiply-accumulates to remove, above 0 "
            f"and up to {MOST_REMOVED:.0%}, such as 30% or 0.3."
        )
    return number


def _prepare(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: tuple[TensorSpec, ...],
    process: Process,
    seed: int,
    progress: Progress,
) -> _Ground:
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
    return _Ground(graph, samples, split, inputs, groups, seen.moments, orders, process, seed)


def _checked(channels: Sequence[tuple[str, int]], ground: _Ground) -> dict[str, int]:
    """The channels of a recipe, held against the groups that there are."""
    groups = {group.name: group for group in ground.groups}
    for name, count in channels:
        group = groups.get(name)
        if group is None:
            raise UnusableRecipe(
                f"The recipe keeps channels of {name!r}, which the model does not have"
                f"{did_you_mean(name, groups)}."
            )
        if group.pinned or name not in ground.orders:
            reason = group.pinned or "no layer that can be fitted again reads them"
            raise UnusableRecipe(f"The channels of {name!r} cannot be removed: {reason}.")
        if not 1 <= count <= group.size:
            raise UnusableRecipe(
                f"The recipe keeps {count} channels of {name!r}: it has 1 to {group.size}."
            )
    return dict(channels)


def _share_out(ground: _Ground, share: float, progress: Progress) -> dict[str, int]:
    """Channels to keep of each group so that `share` of the multiply-accumulates is saved."""
    total = _total(count_macs(ground.graph))
    each = macs_of_channels(ground.graph, ground.groups)
    names = [name for name in ground.orders if each.get(name)]
    if not names or not total:
        raise WrongUsage(
            f"--prune: this model has no channels that can be removed ({_why(ground.groups)}); "
            "leave the option out."
        )
    counts = [_counts(ground.orders[name].channels) for name in names]
    gains = _measure_gains(ground, names, progress)
    costs = [
        [
            Cost(
                max(gains[name] * ground.orders[name].loss(count), 0.0),
                0.0,
                each[name] * count / total,
            )
            for count in options
        ]
        for name, options in zip(names, counts, strict=True)
    ]
    everything = sum(each[name] * ground.orders[name].channels for name in names) / total
    aim = share
    best: tuple[float, dict[str, int]] | None = None
    for _ in range(_CORRECTIONS):
        found = solve_knapsack(costs, minimise="loss", max_ms=max(everything - aim, 0.0))
        if found is None:
            break
        keep = {
            name: options[choice]
            for name, options, choice in zip(names, counts, found.choices, strict=True)
        }
        saved = (
            1
            - _total(macs_without(ground.graph, ground.groups, gone_of(ground.orders, keep)))
            / total
        )
        if saved >= share - _CLOSE and (best is None or saved < best[0]):
            best = (saved, keep)
        if abs(saved - share) < _CLOSE:
            break
        aim += share - saved
    if best is None:
        least = {name: options[0] for name, options in zip(names, counts, strict=True)}
        left = _total(macs_without(ground.graph, ground.groups, gone_of(ground.orders, least)))
        raise WrongUsage(
            f"--prune {share:.0%}: at most {1 - left / total:.0%} of this model's "
            f"multiply-accumulates can be removed ({_why(ground.groups)}); ask for less."
        )
    return {name: count for name, count in best[1].items() if count < ground.orders[name].channels}


def _counts(size: int) -> tuple[int, ...]:
    """How many channels may be kept: kernels compute them in blocks."""
    step = next(step for least, step in ((32, 8), (16, 4), (8, 2), (0, 1)) if size >= least)
    least = max(1, size // LEAST_KEPT)
    counts = {count for count in range(step, size, step) if count >= least}
    return tuple(sorted({*counts, size}))


def _measure_gains(ground: _Ground, names: Sequence[str], progress: Progress) -> dict[str, float]:
    """By group, the noise at the model's output for each unit of the curve's loss."""
    indices = (ground.split.search or ground.split.calibration)[:PROBED]
    gains: dict[str, float] = {}
    progress.stage("measuring each group of channels alone", len(names))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = Path(folder) / "probe.onnx"
        wanted = _run(ground, _saved(ground.graph, path), indices)
        for name in names:
            order = ground.orders[name]
            count = min(max(1, round(order.channels * (1 - PROBE))), order.channels - 1)
            gone = gone_of(ground.orders, {name: count})
            pruned = remove_channels(ground.graph, gone)
            refit_readers(ground.graph, pruned, ground.groups, gone, ground.moments)
            noise = _noise(wanted, _run(ground, _saved(pruned, path), indices))
            gains[name] = noise / max(order.loss(count), 1e-12)
            progress.step(name)
    return gains


def _saved(graph: Graph, path: Path) -> Path:
    save_model(graph, path, durable=False)
    return path


def _run(ground: _Ground, path: Path, indices: Sequence[int]) -> list[Mapping[str, NDArray[Any]]]:
    session: Session = ground.process.load(path, threads=cpu_features().cores, spinning=False)
    try:
        return [
            {name: run.trim(array) for name, array in session.run(run.feeds).items()}
            for run in batches_of(ground.samples, indices, ground.inputs)
        ]
    finally:
        session.close()


def _noise(
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


def _heal(
    ground: _Ground, fitted: Graph, minutes: float, steps: int, progress: Progress
) -> tuple[Graph, int, tuple[float, float], list[str]]:
    from packlight.graph.torch.heal import heal

    time: dict[str, Any] = {"steps": steps} if steps else {"minutes": minutes}
    healed = heal(
        ground.graph,
        fitted,
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        process=ground.process,
        seed=ground.seed,
        progress=progress,
        **time,
    )
    # Steps after the last are part of the plan: the rate falls along all of them.
    return healed.model, healed.planned, (healed.before, healed.after), list(healed.notes)


def _evidence(
    ground: _Ground,
    keep: Mapping[str, int],
    gone: Mapping[str, Sequence[int]],
    steps: int,
    loss: tuple[float, float] | None,
    notes: Sequence[str],
) -> Thinning:
    before = _total(count_macs(ground.graph))
    after = _total(macs_without(ground.graph, ground.groups, gone))
    listed = []
    for group in ground.groups:
        reason = group.pinned
        if not reason and group.name not in ground.orders:
            reason = "no layer that can be fitted again reads them"
        kept = keep.get(group.name, group.size)
        listed.append(ChannelEvidence(group.name, group.size, kept, reason))
    first, last = loss if loss is not None else (None, None)
    return Thinning(before, after, tuple(listed), steps, first, last, tuple(notes))


def _total(macs: Mapping[str, int | None]) -> int:
    return sum(count or 0 for count in macs.values())


def _why(groups: Sequence[CoupledGroup]) -> str:
    reasons = list(dict.fromkeys(group.pinned for group in groups if group.pinned))
    return "; ".join(reasons[:3]) or "no layer makes channels that another reads"
