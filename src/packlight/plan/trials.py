"""The workbench: makes a file of a recipe, runs it on the search samples, times it.

Everything the planner knows of a candidate was measured here, on the file that would be shipped.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from packlight.errors import PacklightError, RuntimeFailure, RuntimeRefused
from packlight.graph.apply import Weights, apply_recipe
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, Model, copy_model, save_model
from packlight.graph.observe import Observations, observe
from packlight.graph.rewrite.equalize import equalize
from packlight.graph.rewrite.quantize import tensors_to_observe
from packlight.measure.evidence import MetricEvidence
from packlight.measure.latency import rank_latencies
from packlight.measure.quality import Metric, measure_quality
from packlight.measure.size import size_of_files
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, Split, batches_of
from packlight.targets import Target

Outputs = dict[str, NDArray[Any]]
GIVEN = "the given recipe"
"""The label of what was not searched for."""

LEAST_SEARCH = 32
SEARCH_SECONDS = 2.0
"""One candidate's run over the search samples takes about so long, on `LEAST_SEARCH` at least."""

CACHE_BYTES = 256 << 20
"""Feeds and the original's outputs are kept up to this size, and computed again beyond."""


@dataclass(frozen=True)
class Tried:
    """One recipe as a file, and what was measured of it on the search samples.

    metric: None where it could not be run. latency_ratio: to the original, one thread.
    """

    label: str
    recipe: Recipe
    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    notes: dict[str, str] = field(default_factory=dict)
    metric: MetricEvidence | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_interval_95: tuple[float, float] | None = None
    failure: str = ""

    @property
    def drop(self) -> float:
        """Of the metric; infinite where it could not be run."""
        return self.metric.drop if self.metric is not None else float("inf")

    @property
    def noise_db(self) -> float:
        """Signal-to-noise ratio of the worst output; -infinity where it could not be run."""
        if self.metric is None:
            return float("-inf")
        return self.metric.noise_db if self.metric.noise_db is not None else 0.0


@dataclass(frozen=True)
class Form:
    """A graph to compress, what calibration saw of it, and its weights rounded so far."""

    graph: Graph
    observations: Observations
    weights: Weights


class Workbench:
    """Holds the original, its simplified form and the samples while candidates are tried."""

    def __init__(
        self,
        model: Model,
        simplified: Graph,
        samples: Samples,
        split: Split,
        target: Target,
        *,
        metric: Metric | str | None = None,
        max_drop: float | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.simplified = model, simplified
        self.samples, self.split, self.target = samples, split, target
        self.metric, self.max_drop, self.seed = metric, max_drop, seed
        self._forms: dict[bool, Form] = {}
        self._static: tuple[str, ...] = ()
        self.threads = cpu_features().cores
        self.tried: list[Tried] = []
        self._folder = tempfile.TemporaryDirectory(prefix="packlight-")
        self.process = Process()
        self._original = self._load_original()
        self._cache: dict[tuple[int, ...], list[tuple[Outputs, Outputs, int]]] = {}
        self._made: dict[Recipe, Tried] = {}
        self._numbers = itertools.count()
        self._search: tuple[int, ...] | None = None
        # What has the shape of an input is a reconstruction, not a score for each class.
        rebuilt = {spec.shape[1:] for spec in model.inputs if len(spec.shape) > 1}
        self._classifiers = {
            spec.name: False for spec in model.outputs if spec.shape[1:] in rebuilt
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.close()
        self._folder.cleanup()

    def _load_original(self) -> Session:
        try:
            return self.process.load(self.model.source, threads=self.threads, spinning=False)
        except BaseException:
            self.process.close()
            self._folder.cleanup()
            raise

    @property
    def folder(self) -> Path:
        """Where candidates lie until the run ends."""
        return Path(self._folder.name)

    def first_feeds(self) -> Outputs:
        """One sample as it is fed: what latency is measured with."""
        inputs, index = self.model.inputs, self.split.calibration[:1]
        return dict(next(iter(batches_of(self.samples, index, inputs, batch=1))).feeds)

    def search_indices(self) -> tuple[int, ...]:
        """The samples on which candidates are compared: fewer where the model is slow."""
        if self._search is None:
            indices = self.split.search or self.split.calibration
            runs = list(batches_of(self.samples, indices[:1], self.model.inputs))
            begun = time.monotonic()
            for _ in range(3):
                self._original.run(runs[0].feeds)
            one = (time.monotonic() - begun) / 3 / max(runs[0].rows, 1)
            most = max(LEAST_SEARCH, int(SEARCH_SECONDS / max(one, 1e-9)))
            self._search = indices[:most]
        return self._search

    def calibrate(self, static: Sequence[str], *, progress: Progress = SILENT) -> None:
        """Observe what the layers named `static` need to compute in integers."""
        self._static = tuple(static)
        self.form(equalized=False, progress=progress)

    def form(self, *, equalized: bool, progress: Progress = SILENT) -> Form:
        """The simplified graph, or that with channels balanced, and what calibration saw of it.

        Balanced it is the plain form again where no two layers can be balanced.
        """
        if equalized not in self._forms:
            graph = self.simplified
            if equalized:
                graph = copy_model(graph)
                if not equalize(graph):
                    return self.form(equalized=False)
            layers = [layer for layer in find_layers(graph) if layer.name in self._static]
            observations = Observations()
            if layers:
                observations = observe(
                    graph,
                    self.samples,
                    self.split.calibration,
                    self.model.inputs,
                    tensors=tensors_to_observe(graph, layers),
                    layers=layers,
                    process=self.process,
                    seed=self.seed,
                    progress=progress,
                )
            self._forms[equalized] = Form(graph, observations, Weights())
        return self._forms[equalized]

    def make(self, recipe: Recipe, label: str) -> Tried:
        """Write the file of a recipe; a recipe made before is not made again."""
        if recipe in self._made:
            return self._made[recipe]
        form = self.form(equalized=recipe.equalize)
        compressed, notes = apply_recipe(
            form.graph,
            recipe,
            form.observations,
            accuracy_level=self.target.accuracy_level,
            weights=form.weights,
        )
        path = self.folder / f"{next(self._numbers)}" / "model.onnx"
        path.parent.mkdir()
        files = save_model(compressed, path, durable=False)
        tried = Tried(label, recipe, path, files, size_of_files(files), notes)
        self._made[recipe] = tried
        return tried

    def evaluate(
        self, recipe: Recipe, label: str, *, indices: Sequence[int] | None = None
    ) -> Tried:
        """Make a recipe's file and run it on the search samples (or those given)."""
        known = recipe in self._made
        try:
            tried = self.make(recipe, label)
        except PacklightError:
            raise
        except Exception as error:
            # A graph that a rewrite did not foresee costs one candidate, not the run.
            reason = f"it could not be made ({type(error).__name__}: {error})"
            tried = Tried(label, recipe, self.folder, (), 0, failure=reason)
            if indices is None:
                self._made[recipe] = tried
                self.tried.append(tried)
            return tried
        if indices is None and (tried.metric is not None or tried.failure):
            return tried
        try:
            metric = self.quality(tried.path, self.search_indices() if indices is None else indices)
            result = replace(tried, metric=metric)
        except RuntimeFailure as error:
            result = replace(tried, failure=str(error))
            if not isinstance(error, RuntimeRefused):
                # The child died with the original's session in it, or has no memory left.
                self.process.close()
                self.process = Process()
                self._original = self._load_original()
        if indices is None:
            self._made[recipe] = result
            self.tried.append(result)
        elif not known:
            # One layer alone, say: a file for each would fill the disk.
            del self._made[recipe]
            shutil.rmtree(tried.path.parent)
        return result

    def quality(
        self,
        path: Path,
        indices: Sequence[int],
        *,
        on_note: Callable[[str], None] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> MetricEvidence:
        """The metric of a file against the original on some samples."""
        session = self.process.load(path, threads=self.threads, spinning=False)
        try:
            labels = self.samples.labels
            pairs = self._pairs(tuple(indices), session, on_batch)
            first, second, rows = _unzip(pairs)
            return measure_quality(
                first,
                second,
                rows=rows,
                labels=None if labels is None else labels[list(indices)],
                metric=self.metric,
                max_drop=self.max_drop,
                output_is_classifier=self._classifiers,
                seed=self.seed,
                on_note=on_note,
            )
        finally:
            session.close()

    def rank(self, candidates: Sequence[Tried], *, seconds: float = 8.0) -> list[Tried]:
        """Time candidates against the original, interleaved, one thread."""
        paths = [self.model.source, *(tried.path for tried in candidates)]
        try:
            ranked = rank_latencies(
                paths, self.first_feeds(), rounds=100, seconds=seconds, seed=self.seed
            )
        except RuntimeFailure as error:
            # All are held in memory at the same time, and one that fails takes the others along.
            if len(candidates) > 1:
                part = seconds / len(candidates)
                return [self.rank([one], seconds=part)[0] for one in candidates]
            return [self._keep(replace(candidates[0], failure=str(error)))]
        return [
            self._keep(
                replace(
                    tried,
                    latency_ms=rank.ms,
                    latency_ratio=rank.ratio,
                    latency_interval_95=rank.ratio_interval_95,
                )
            )
            for tried, rank in zip(candidates, ranked[1:], strict=True)
        ]

    def _keep(self, result: Tried) -> Tried:
        """Put a result in the place of what was known of its recipe."""
        self._made[result.recipe] = result
        self.tried = [result if old.recipe == result.recipe else old for old in self.tried]
        return result

    def _pairs(
        self,
        indices: tuple[int, ...],
        session: Session,
        on_batch: Callable[[int], None] | None,
    ) -> Iterator[tuple[Outputs, Outputs, int]]:
        for feeds, reference, trim, rows in self._references(indices):
            outputs = session.run(feeds)
            # The runtime may give outputs in another order, never under other names.
            yield reference, {name: trim(array) for name, array in outputs.items()}, rows
            if on_batch is not None:
                on_batch(rows)

    def _references(self, indices: tuple[int, ...]) -> Iterator[Any]:
        """Feeds, the original's outputs, how to trim, and rows, batch by batch."""
        cached: Any = self._cache.get(indices)
        if cached is not None:
            yield from cached
            return
        kept: list[Any] | None = []
        held = 0
        for run in batches_of(self.samples, indices, self.model.inputs):
            outputs = {
                name: run.trim(array) for name, array in self._original.run(run.feeds).items()
            }
            item = (run.feeds, outputs, run.trim, run.rows)
            yield item
            held += sum(a.nbytes for a in [*run.feeds.values(), *outputs.values()])
            if kept is not None:
                kept.append(item)
                if held > CACHE_BYTES:
                    kept = None
        if kept is not None and len(self._cache) < 4:
            self._cache[indices] = kept


def _unzip(
    pairs: Iterator[tuple[Outputs, Outputs, int]],
) -> tuple[Iterator[Outputs], Iterator[Outputs], Iterator[int]]:
    """Three iterators that advance together, one pair held at a time."""
    second: list[Outputs] = []
    rows: list[int] = []

    def firsts() -> Iterator[Outputs]:
        for first, other, count in pairs:
            second.append(other)
            rows.append(count)
            yield first

    def seconds() -> Iterator[Outputs]:
        while second:
            yield second.pop(0)

    def counts() -> Iterator[int]:
        while rows:
            yield rows.pop(0)

    return firsts(), seconds(), counts()


def equal_outputs(one: Outputs, other: Outputs, *, tolerance: float = 1e-3) -> bool:
    """Whether two runs gave the same within float tolerance, relative to each output's size."""
    if one.keys() != other.keys():
        return False
    for name, array in one.items():
        candidate = other[name]
        if array.shape != candidate.shape or array.dtype != candidate.dtype:
            return False
        if not np.issubdtype(array.dtype, np.floating):
            if not np.array_equal(array, candidate):
                return False
            continue
        a, b = array.astype(np.float64), candidate.astype(np.float64)
        size = float(np.sqrt(np.mean(np.square(a[np.isfinite(a)])))) if np.isfinite(a).any() else 0
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * max(size, 1e-30), equal_nan=True):
            return False
    return True
