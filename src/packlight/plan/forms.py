"""The forms of one graph that recipes start from, each observed once.

The simplified graph as it is; with channels balanced, turned, or activations smoothed; and, for
a recipe that rounds layer after layer, with every weight refitted to what those before it leave.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packlight.graph.apply import Weights
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, copy_model
from packlight.graph.observe import Observations, observe
from packlight.graph.rewrite.equalize import equalize
from packlight.graph.rewrite.quantize import tensors_to_observe
from packlight.graph.rewrite.rotate import rotate_pairs
from packlight.graph.rewrite.smooth import ranges_of_moments, smooth, smooth_by
from packlight.graph.rewrite.smooth_search import Aim, find_aim, search_scales
from packlight.graph.sequential import refit_in_sequence
from packlight.progress import SILENT, Progress
from packlight.recipe import SEARCHED, Recipe, Smooth
from packlight.runtime import Process
from packlight.samples import Samples
from packlight.tensors import TensorSpec

KEPT = 2
"""Refitted forms that are held: each is a whole graph of its own."""


@dataclass(frozen=True)
class Form:
    """A graph to compress, what calibration saw of it, and its weights rounded so far."""

    graph: Graph
    observations: Observations
    weights: Weights


class Forms:
    """Makes forms of a simplified graph when they are asked for, and keeps them.

    indices: the calibration samples. folder: for second moments that do not fit the memory.
    """

    def __init__(
        self,
        simplified: Graph,
        samples: Samples,
        indices: Sequence[int],
        inputs: Sequence[TensorSpec],
        folder: Path,
        *,
        accuracy_level: int,
        seed: int,
    ) -> None:
        self.simplified, self.samples, self.indices = simplified, samples, tuple(indices)
        self.inputs, self.folder = tuple(inputs), folder
        self.accuracy_level, self.seed = accuracy_level, seed
        self._observed: tuple[str, ...] = ()
        self._plain: dict[tuple[bool, bool, Smooth, Aim | None], Form] = {}
        self._refitted: OrderedDict[Recipe, Form] = OrderedDict()

    def calibrate(
        self, names: Sequence[str], process: Process, *, progress: Progress = SILENT
    ) -> None:
        """Observe the layers of those names: what they need to be rounded well."""
        self._observed = tuple(names)
        self._plain.clear()
        self._refitted.clear()
        self.plain(process, progress=progress)

    def of(self, recipe: Recipe, process: Process, *, progress: Progress = SILENT) -> Form:
        """The form that a recipe is applied to."""
        plain = self.start(recipe, process)
        if not recipe.sequential or not plain.observations.moments:
            return plain
        if recipe not in self._refitted:
            found = refit_in_sequence(
                plain.graph,
                recipe,
                plain.observations,
                self.samples,
                self.indices,
                self.inputs,
                process=process,
                accuracy_level=self.accuracy_level,
                progress=progress,
            )
            self._refitted[recipe] = Form(found.graph, found.observations, found.weights)
            while len(self._refitted) > KEPT:
                self._refitted.popitem(last=False)
        return self._refitted[recipe]

    def start(self, recipe: Recipe, process: Process) -> Form:
        """The form that a recipe is applied to, before any weight is refitted."""
        smoothed: Smooth = recipe.smooth
        aim = None
        if smoothed == SEARCHED:
            aim = find_aim(recipe, find_layers(self.simplified))
            smoothed = smoothed if aim is not None else 0.0
        return self.plain(
            process,
            equalized=recipe.equalize,
            rotated=recipe.rotate,
            smoothed=smoothed,
            aim=aim,
        )

    def plain(
        self,
        process: Process,
        *,
        equalized: bool = False,
        rotated: bool = False,
        smoothed: Smooth = 0.0,
        aim: Aim | None = None,
        progress: Progress = SILENT,
    ) -> Form:
        """The simplified graph, or that with channels balanced, and what calibration saw of it.

        rotated: with channels turned between pairs of layers. smoothed: the strength with which
        activations are smoothed, 0 for not at all; aim: what for, where scales are searched.
        Where nothing can be balanced, turned or smoothed, it is the form without again.
        """
        key = (equalized, rotated, smoothed, aim)
        if key not in self._plain:
            graph = self.simplified
            if smoothed:
                without = self.plain(process, equalized=equalized, rotated=rotated)
                graph = copy_model(without.graph)
                if not _smooth(graph, without.observations, smoothed, aim):
                    self._plain[key] = without
                    return without
            elif rotated:
                without = self.plain(process, equalized=equalized)
                graph = copy_model(without.graph)
                if not rotate_pairs(graph, seed=self.seed):
                    return without
            elif equalized:
                graph = copy_model(graph)
                if not equalize(graph):
                    return self.plain(process)
            layers = [layer for layer in find_layers(graph) if layer.name in self._observed]
            observations = Observations()
            if layers:
                observations = observe(
                    graph,
                    self.samples,
                    self.indices,
                    self.inputs,
                    tensors=tensors_to_observe(graph, layers),
                    layers=layers,
                    process=process,
                    seed=self.seed,
                    folder=self.folder,
                    progress=progress,
                )
            self._plain[key] = Form(graph, observations, Weights())
        return self._plain[key]


def _smooth(
    graph: Graph, observations: Observations, strength: Smooth, aim: Aim | None
) -> list[str]:
    """Smooth a graph in place by what was seen of it; the names of the groups."""
    if not isinstance(strength, str):
        return smooth(graph, ranges_of_moments(observations.moments), strength=strength)
    return smooth_by(graph, search_scales(graph, observations, aim)) if aim is not None else []
