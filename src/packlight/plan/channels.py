"""What may go from a model, and what it costs when it does: measured part by part.

For each group of channels a curve says what is lost when so many are kept (`order_groups`). What
a loss there does to the model's output is measured at one or two counts, for each residual
branch once, always after the layers behind have been fitted again; what each saves of the
latency is measured on files without it. Layers that may be two come from `packlight.plan.ranks`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.graph.coupling.cost import macs_of_channels
from packlight.graph.coupling.groups import CoupledGroup
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, save_model
from packlight.maths.channels import ChannelOrder
from packlight.maths.variation import variations_of
from packlight.plan.allocation import Option, Part, combine
from packlight.plan.cuts import Cuts, groups_inside
from packlight.plan.ground import PROBED, Ground
from packlight.progress import SILENT, Progress
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import batches_of

LEAST_KEPT = 8
"""Of every group at least one channel in so many stays."""

EFFORT = 5e11
"""Multiply-accumulates that the fitting of one whole proposal may take, about: what is too much
for that is fitted on fewer samples, 64 at least."""

REACH = 4
"""Layers that are fitted behind those which notice first that a part alone is gone."""

PROBES = (0.5, 0.25)
"""Shares of a group's channels that are kept when its loss is measured; of many groups only the
first."""
MANY = 24

SECONDS = 20.0
ROUNDS = (10, 60)
"""Of timing all parts: where not even so few rounds fit, times are not measured."""
QUICKEST = 0.2
"""Of a file's runs the quantile that tells its time: what else a machine does only adds."""
LEAST_MS = 0.05
"""A shorter run is mostly the call itself: then there is no time to save either."""
GRAIN = 0.005
"""Share of the latency that two timings of one file may differ by."""

UNASKED = 1e-6
"""Noise power that a whole part costs beyond its own: what nobody asked for is not removed
because samples, made up perhaps, show no use of it."""


Outputs: TypeAlias = Mapping[str, NDArray[Any]]


def measure_parts(
    ground: Ground, progress: Progress, ranks: Mapping[str, Part] = MappingProxyType({})
) -> tuple[Part, ...]:
    """The parts that can go, each with its options: losses, and shares of work and time saved.

    ranks: by layer, from `measure_ranks`. Raises WrongUsage where there are none.
    """
    each = macs_of_channels(ground.graph, ground.groups, ground.counts)
    able = [g for g in ground.groups if g.name in ground.orders and each.get(g.name)]
    if not able and not ground.branches and not ranks:
        raise WrongUsage(
            f"--prune: this model has no channels to remove ({reasons_pinned(ground.groups)}); "
            "leave the option out."
        )
    total = ground.total
    counts = {group.name: _counts(group.size) for group in able}
    single = {
        **{(name, count): Cuts(((name, count),)) for name in counts for count in counts[name]},
        **{(one.name, 0): Cuts(removed=(one.name,)) for one in ground.branches},
    }
    times = measure_times(ground, list(single.values()), progress)
    saved = dict(zip(single, times or [0.0] * len(single), strict=True))
    if times is not None:
        counts = {name: _faster(name, row, saved) for name, row in counts.items()}
    probes = _probes(ground, counts)
    progress.stage("measuring what each part is missed for", len(probes))
    measure = noise_of(ground, reach=REACH)
    losses = {}
    for key in probes:
        losses[key] = measure(single[key])
        progress.step(key[0])
    rows: dict[str, Part] = {}
    for name, row in counts.items():
        order = ground.orders[name]
        points = {count: losses[name, count] for _, count in probes if (name, count) in losses}
        rows[name] = (
            Option(Cuts(), 0.0, 0.0, 0.0),
            *(
                Option(
                    single[name, count],
                    _interpolated(order, points, count) + UNASKED * (1 - count / order.channels),
                    each[name] * (order.channels - count) / total,
                    saved[name, count],
                )
                for count in sorted(row, reverse=True)
            ),
        )
    if times is None:  # then nothing's is compared
        ranks = {name: tuple(replace(one, time=0.0) for one in row) for name, row in ranks.items()}
    return tuple(_parts(ground, rows, ranks, losses, saved))


def _parts(
    ground: Ground,
    rows: dict[str, Part],
    ranks: Mapping[str, Part],
    losses: Mapping[tuple[str, int], float],
    saved: Mapping[tuple[str, int], float],
) -> list[Part]:
    """Branches with the groups and layers inside them, and those that lie in none."""
    inside: set[str] = set()
    apart: set[str] = set()
    parts = []
    for branch in ground.branches:
        names = [g.name for g in groups_inside(branch, ground.groups) if g.name in rows]
        layers = [name for name in branch.layers if name in ranks]
        inside.update(names)
        apart.update(layers)
        cuts = Cuts(removed=(branch.name,))
        key = (branch.name, 0)
        whole = Option(cuts, losses[key] + UNASKED, ground.saved(cuts), saved[key])
        parts.append(
            combine([rows[name] for name in names], whole, [ranks[name] for name in layers])
        )
    alone = [rows[name] for name in rows if name not in inside]
    return [*parts, *alone, *(ranks[name] for name in ranks if name not in apart)]


def measure_times(
    ground: Ground, cuts: Sequence[Cuts], progress: Progress = SILENT
) -> list[float] | None:
    """The share of the latency of one sample, on one thread, that each of the cuts saves.

    Each file is timed against the original's by interleaved runs. None where the model is too
    slow for so many, or too small for its time to matter.
    """
    progress.stage("timing what each part saves", len(cuts))
    feeds = ground.one_feed
    found = []
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, Process() as process:
        base = process.load(_saved(ground.timed_original, Path(folder) / "original.onnx"))
        first = process.time([base], feeds, rounds=ROUNDS[0], seconds=SECONDS)
        each = float(np.quantile(first, QUICKEST))
        rounds = int(1e3 * SECONDS / max(2 * each * len(cuts), 1e-6))
        if rounds < ROUNDS[0] or each < LEAST_MS:
            return None
        for one in cuts:
            path = _saved(ground.as_timed(ground.without(one)), Path(folder) / "without.onnx")
            session = process.load(path)
            table = process.time([base, session], feeds, rounds=min(rounds, ROUNDS[1]))
            session.close()
            before, after = np.quantile(table, QUICKEST, axis=1)
            # Two timings of one file differ a little: a difference that is smaller is none.
            found.append(round((1 - after / before) / GRAIN) * GRAIN)
            progress.step()
    return found


def noise_of(ground: Ground, *, reach: int | None = None) -> Callable[[Cuts], float]:
    """What gives the noise power at the output, once fitted, as a share of what varies.

    reach: how far fitting goes, as for `Ground.fitted`.
    """
    macs = max(ground.total_macs, 1) * max(len(find_layers(ground.graph)), 1)
    samples = int(np.clip(EFFORT / macs, 64, PROBED))
    wanted = list(_run(ground, ground.graph))
    variations = variations_of(wanted)

    def measure(cuts: Cuts) -> float:
        return _noise(
            wanted, variations, _run(ground, ground.fitted(cuts, samples=samples, reach=reach))
        )

    return measure


def _counts(size: int) -> tuple[int, ...]:
    """How many channels may be kept of so many: kernels compute them in blocks of 8 or 16.

    Half of resnet20's multiplications in steps of 4 and 8 left 85.9 % and 1.26 times the speed, of
    8 85.7 % and 1.35, of 8 and 16 83.7 % and 1.40 (closed form, AVX512).
    """
    step = next(step for least, step in ((16, 8), (8, 2), (0, 1)) if size >= least)
    step *= max(1, size // (step * LEAST_KEPT))
    least = max(1, size // LEAST_KEPT)
    return tuple(count for count in range(step, size, step) if count >= least)


def _faster(
    name: str, counts: Sequence[int], saved: Mapping[tuple[str, int], float]
) -> tuple[int, ...]:
    """The counts that save more time than any larger one does; all where none saves any."""
    kept = []
    best = 0.0
    for count in sorted(counts, reverse=True):
        if saved[name, count] > best:
            kept.append(count)
            best = saved[name, count]
    return tuple(kept or counts)


def _probes(ground: Ground, counts: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Groups and counts, and branches, whose loss is measured."""
    found = [(one.name, 0) for one in ground.branches]
    for share in PROBES[: 1 if len(counts) > MANY else None]:
        for name, row in counts.items():
            wanted = share * ground.orders[name].channels
            nearest = min(row, key=lambda count: (abs(count - wanted), -count))
            found.append((name, nearest))
    return list(dict.fromkeys(found))


def _interpolated(order: ChannelOrder, points: Mapping[int, float], count: int) -> float:
    """The loss at a count: the group's curve times a factor, linear between those measured."""
    known = sorted(points)
    factors = [points[at] / max(order.loss(at), 1e-12) for at in known]
    return float(np.interp(count, known, factors)) * max(order.loss(count), 0.0)


def _saved(graph: Graph, path: Path) -> Path:
    save_model(graph, path, durable=False)
    return path


def _run(ground: Ground, graph: Graph) -> Iterator[Outputs]:
    """The outputs of a graph, run by run."""
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = _saved(graph, Path(folder) / "probe.onnx")
        session: Session = ground.process.load(path, threads=cpu_features().cores, spinning=False)
        try:
            for run in batches_of(ground.samples, ground.probed, ground.inputs):
                yield {name: run.trim(array) for name, array in session.run(run.feeds).items()}
        finally:
            session.close()


def _noise(
    wanted: Sequence[Outputs], variations: Mapping[str, float], found: Iterable[Outputs]
) -> float:
    """Noise power as a share of what varies from sample to sample, of the worst float output."""
    noises, sizes = dict.fromkeys(variations, 0.0), dict.fromkeys(variations, 0)
    for first, second in zip(wanted, found, strict=True):
        for name in variations:
            noises[name] += float(np.square(first[name] - second[name], dtype=np.float64).sum())
            sizes[name] += first[name].size
    shares = (noises[name] / sizes[name] / variations[name] for name in variations)
    return max(shares, default=0.0)


def reasons_pinned(groups: Sequence[CoupledGroup]) -> str:
    """Why channels stay, in words: the first few reasons."""
    reasons = list(dict.fromkeys(group.pinned for group in groups if group.pinned))
    return "; ".join(reasons[:3]) or "no layer makes channels that another reads"
