"""What thinning starts from: what may go from a model, and in what order channels do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.groups import CoupledGroup, find_groups
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph
from packlight.graph.observe import observe, wants_moments
from packlight.graph.repair import repair
from packlight.graph.rewrite.branches import Branch, with_stand_ins
from packlight.graph.rewrite.factorize import factorize, part_names
from packlight.graph.thin import gone_of, order_groups, rows_left
from packlight.maths.channels import ChannelOrder
from packlight.maths.moments import Moments
from packlight.plan.cuts import (
    Cuts,
    count_left,
    layers_behind,
    possible,
    removable_branches,
    without,
)
from packlight.plan.timed import as_computed
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import Samples, Split, feeds_of_one, shapes_of_one
from packlight.tensors import TensorSpec

PROBED = 256
"""Samples on which losses are measured, and as many to fit layers with before."""

MOST_ORDERED = 2048
"""Samples that tell in what order channels go; training has thousands, which tell no more."""

Of: TypeAlias = Literal["macs", "weights", "time"]
"""What a share to remove is a share of; time is that of one run."""

OF_WORDS: Mapping[Of, str] = {"macs": "multiply-accumulates", "weights": "weights", "time": "time"}


@dataclass(frozen=True)
class Ground:
    """What thinning starts from.

    macs: multiply-accumulates for one sample, by layer. of: what shares to remove are of, and
    counts: of that, by layer (of time what it mostly goes by, multiply-accumulates). fitted_on:
    samples to fit layers with. computes: how layers will compute, for the clock; None: in floats.
    """

    graph: Graph
    samples: Samples
    split: Split
    inputs: tuple[TensorSpec, ...]
    groups: tuple[CoupledGroup, ...]
    branches: tuple[Branch, ...]
    moments: Mapping[str, Moments]
    orders: Mapping[str, ChannelOrder]
    macs: Mapping[str, int | None]
    of: Of
    counts: Mapping[str, int | None]
    fitted_on: tuple[int, ...]
    process: Process
    seed: int
    computes: Recipe | None = None

    @cached_property
    def one_feed(self) -> dict[str, NDArray[Any]]:
        """What the clock feeds models with: one sample."""
        return feeds_of_one(self.samples, self.probed, self.inputs)

    @cached_property
    def timed_original(self) -> Graph:
        """The original as it will compute."""
        return self.as_timed(self.graph)

    def as_timed(self, graph: Graph) -> Graph:
        """A graph as its layers will compute."""
        return as_computed(graph, self.computes, self.one_feed, self.process)

    @property
    def total(self) -> int:
        """What a share is of; what is not known counts as none."""
        return sum(count or 0 for count in self.counts.values())

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates for one sample; what is not known counts as none."""
        return sum(count or 0 for count in self.macs.values())

    @property
    def probed(self) -> tuple[int, ...]:
        """Samples on which losses are measured."""
        return tuple((self.split.search or self.split.calibration)[:PROBED])

    def without(self, cuts: Cuts) -> Graph:
        """The graph without what goes; nothing is fitted."""
        return without(self.graph, self.orders, cuts)

    def possible(self, cuts: Cuts) -> Cuts:
        """The same without ranks that save nothing once the rest is gone."""
        return possible(self.graph, self.groups, self.orders, self.branches, cuts)

    def saved(self, cuts: Cuts) -> float:
        """The share that cuts save."""
        left = count_left(self.graph, self.groups, self.orders, self.branches, self.counts, cuts)
        return 1 - left / max(self.total, 1)

    def macs_left(self, cuts: Cuts) -> int:
        """Multiply-accumulates for one sample that are left."""
        return count_left(self.graph, self.groups, self.orders, self.branches, self.macs, cuts)

    def fitted(
        self,
        cuts: Cuts,
        *,
        samples: int | None = None,
        reach: int | None = None,
        progress: Progress = SILENT,
    ) -> Graph:
        """The graph without what goes, its layers fitted to the original.

        Layers are taken apart by what reaches them once the rest is gone and fitted.
        reach: only those which notice it first, and so many behind each; None: all. One pass for
        each: of layers that are fitted in one pass each would make up for the same mistake.
        Raises UnusableRecipe for a layer to be taken apart that is not there, or a rank that it
        cannot have.
        """
        rows = rows_left(self.graph, self.groups, gone_of(self.orders, dict(cuts.keep)))

        def fit(changed: Graph, cuts: Cuts) -> Graph:
            names = (
                None
                if reach is None
                else layers_behind(self.graph, self.groups, self.branches, cuts, reach)
            )
            found, _ = repair(
                with_stand_ins(self.graph, cuts.removed),
                changed,
                self.samples,
                self.fitted_on,
                self.inputs,
                process=self.process,
                rows=rows | {part_names(n)[1]: rows[n] for n, _ in cuts.ranks if n in rows},
                names=names,
                samples_each=samples,
                seed=self.seed,
                progress=progress,
            )
            return found

        whole = cuts.whole
        if not cuts.ranks:
            return fit(self.without(whole), whole)
        graph, moments = self.graph, self.moments
        if whole != Cuts():
            graph = fit(self.without(whole), whole)
            apart = [layer for layer in find_layers(graph) if layer.name in dict(cuts.ranks)]
            moments = observe(
                graph,
                self.samples,
                self.fitted_on,
                self.inputs,
                tensors=(),
                layers=[layer for layer in apart if wants_moments(layer)],
                process=self.process,
                seed=self.seed,
                progress=progress,
            ).moments
        return fit(factorize(graph, dict(cuts.ranks), moments), cuts)


def prepare_ground(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: tuple[TensorSpec, ...],
    process: Process,
    seed: int,
    progress: Progress,
    of: Of = "macs",
    computes: Recipe | None = None,
) -> Ground:
    """Find what may go, and in what order channels do. of, computes: see `Ground`."""
    progress.stage("finding channels that go together")
    groups = find_groups(graph)
    branches = removable_branches(graph)
    layers = [layer for layer in find_layers(graph) if wants_moments(layer)]
    seen = observe(
        graph,
        samples,
        split.calibration[:: -(-len(split.calibration) // MOST_ORDERED)],
        inputs,
        tensors=(),
        layers=layers,
        process=process,
        seed=seed,
        progress=progress,
    )
    progress.stage("ordering channels by what they are missed for")
    orders = order_groups(graph, groups, seen.moments)
    macs = count_macs(graph, shapes_of_one(samples, split.calibration, inputs))
    return Ground(
        graph,
        samples,
        split,
        inputs,
        groups,
        branches,
        seen.moments,
        orders,
        macs,
        of,
        {one.name: one.parameters for one in find_layers(graph)} if of == "weights" else macs,
        split.calibration,
        process,
        seed,
        computes,
    )
