"""The workbench: makes a file of a recipe, runs it on the search samples, times it.

Everything the planner knows of a candidate was measured here, on the file that would be shipped.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from packlight.errors import PacklightError, RuntimeFailure, RuntimeRefused
from packlight.graph.apply import apply_recipe
from packlight.graph.model import Graph, Model, save_model
from packlight.measure.device import device_of
from packlight.measure.evidence import MetricEvidence
from packlight.measure.latency import rank_latencies
from packlight.measure.quality import Metric, measure_quality
from packlight.measure.size import size_of_files
from packlight.plan.evaluate import Evaluation, read_parts, try_file
from packlight.plan.forms import Forms
from packlight.plan.together import unzip
from packlight.plan.tried import Tried
from packlight.plan.workers import run_tasks
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe, write_recipe
from packlight.runtime import Engine, Process, Session, cpu_features
from packlight.samples import BATCH, Batch, Samples, Split, batches_of, feeds_of_one
from packlight.targets import Target
from packlight.transport import packed_size

Outputs = dict[str, NDArray[Any]]
GIVEN = "the given recipe"
"""The label of what was not searched for."""

_AT_ONCE = 8
"""Files for one measurement that are on the disk together."""

LEAST_SEARCH = 32
SEARCH_SECONDS = 2.0
"""One candidate's run over the search samples takes about so long, on `LEAST_SEARCH` at least."""

CACHE_BYTES = 256 << 20
"""Feeds and the original's outputs are kept up to this size, and computed again beyond."""


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
        workers: int | str = 1,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        self.model, self.simplified = model, simplified
        self.samples, self.split, self.target = samples, split, target
        self.metric, self.max_drop, self.seed = metric, max_drop, seed
        self.workers, self.device = workers, device_of(target)
        self.threads, self.progress = cpu_features().cores, progress
        self.tried: list[Tried] = []
        self._folder = tempfile.TemporaryDirectory(prefix="packlight-")
        self.forms = Forms(
            simplified,
            samples,
            split.calibration,
            model.inputs,
            self.folder,
            accuracy_level=target.accuracy_level,
            seed=seed,
        )
        self.process = Process()
        self._original = self._load_original()
        self._cache: dict[tuple[tuple[int, ...], int], list[tuple[Batch, Outputs]]] = {}
        self._made: dict[Recipe, Tried] = {}
        self._figures: dict[tuple[Recipe, tuple[int, ...]], Tried] = {}
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
        return feeds_of_one(self.samples, self.split.calibration, self.model.inputs)

    def search_indices(self) -> tuple[int, ...]:
        """The samples on which candidates are compared: fewer where the model is slow."""
        if self._search is None:
            indices = self.split.search or self.split.calibration
            runs = list(batches_of(self.samples, indices[:LEAST_SEARCH], self.model.inputs))
            begun = time.monotonic()
            for _ in range(3):
                self._original.run(runs[0].feeds)
            one = (time.monotonic() - begun) / 3 / max(runs[0].rows, 1)
            most = max(LEAST_SEARCH, int(SEARCH_SECONDS / max(one, 1e-9)))
            self._search = indices[:most]
        return self._search

    def calibrate(self, names: Sequence[str], *, progress: Progress = SILENT) -> None:
        """Observe what the layers of those names need to be rounded well."""
        self.forms.calibrate(names, self.process, progress=progress)

    def differs(self, recipe: Recipe, other: Recipe) -> bool:
        """Whether recipes start from different graphs: balanced, turned or smoothed otherwise."""
        first, second = (self.forms.start(one, self.process) for one in (recipe, other))
        return first is not second

    def make(self, recipe: Recipe, label: str) -> Tried:
        """Write the file of a recipe; a recipe made before is not made again."""
        if recipe in self._made:
            return self._made[recipe]
        form = self.forms.of(recipe, self.process)
        compressed, notes = apply_recipe(
            form.graph,
            recipe,
            form.observations,
            accuracy_level=self.target.accuracy_level,
            weights=form.weights,
        )
        return self.adopt(compressed, recipe, label, notes)

    def adopt(self, graph: Graph, recipe: Recipe, label: str, notes: dict[str, str]) -> Tried:
        """Write a graph as the file of a recipe, by which it was made elsewhere."""
        path = self.folder / f"{next(self._numbers)}" / "model.onnx"
        path.parent.mkdir()
        files = save_model(graph, path, durable=False)
        tried = Tried(label, recipe, path, files, size_of_files(files), notes)
        self._made[recipe] = tried
        return tried

    def evaluate(
        self, recipe: Recipe, label: str, *, indices: Sequence[int] | None = None
    ) -> Tried:
        """Make a recipe's file and run it on the search samples (or those given)."""
        return self.evaluate_many([(recipe, label)], indices=indices)[0]

    def evaluate_many(
        self,
        candidates: Sequence[tuple[Recipe, str]],
        *,
        indices: Sequence[int] | None = None,
        progress: Progress = SILENT,
    ) -> list[Tried]:
        """Make the files of (recipe, label) and run each on the search samples (or those given).

        Several workers run at the same time; the files are made here. Of samples that are
        given only the figures are kept: those files are for one measurement.
        """
        if indices is not None:
            return self._evaluate_once(candidates, tuple(indices), progress)
        tried = [self._make_or_fail(recipe, label) for recipe, label in candidates]
        open_ = [i for i, one in enumerate(tried) if not one.failure and one.metric is None]
        results = self._run([tried[i] for i in open_], self.search_indices(), progress)
        for i, result in zip(open_, results, strict=True):
            tried[i] = result
        for one in tried:
            if one.recipe not in {old.recipe for old in self.tried}:
                self.tried.append(one)
                self._tell(one)
            self._keep(one)
        return tried

    def _tell(self, one: Tried) -> None:
        """Tell whoever waits of a candidate that runs; its drop, unless samples are made up."""
        if one.metric is not None:
            known = not self.samples.generated
            self.progress.tried(
                one.label,
                size_bytes=one.size_bytes,
                quality=one.metric.compressed if known else None,
                kept=not known or self.max_drop is None or one.drop <= self.max_drop,
            )

    def _evaluate_once(
        self,
        candidates: Sequence[tuple[Recipe, str]],
        indices: tuple[int, ...],
        progress: Progress,
    ) -> list[Tried]:
        """Figures of recipes whose files are not kept; what was asked before is known."""
        asked = dict(candidates)
        missing = [recipe for recipe in asked if (recipe, indices) not in self._figures]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            kept = {recipe for recipe in some if recipe in self._made}
            tried = [self._make_or_fail(recipe, asked[recipe]) for recipe in some]
            able = [one for one in tried if not one.failure]
            measured = {one.recipe: one for one in (*tried, *self._run(able, indices, progress))}
            for recipe in some:
                self._figures[recipe, indices] = measured[recipe]
                if recipe not in kept and recipe in self._made:
                    # One layer alone, say: a file for each would fill the disk.
                    shutil.rmtree(self._made.pop(recipe).path.parent)
        return [self._figures[recipe, indices] for recipe, _ in candidates]

    def _make_or_fail(self, recipe: Recipe, label: str) -> Tried:
        try:
            return self.make(recipe, label)
        except RuntimeFailure as error:
            # Making some files runs others: those that see a graph half compressed.
            self._restart(error)
            return Tried(label, recipe, self.folder, (), 0, failure=str(error))
        except PacklightError:
            raise
        except Exception as error:
            # A graph that a rewrite did not foresee costs one candidate, not the run.
            reason = f"it could not be made ({type(error).__name__}: {error})"
            return Tried(label, recipe, self.folder, (), 0, failure=reason)

    def _run(
        self, tried: Sequence[Tried], indices: tuple[int, ...], progress: Progress
    ) -> list[Tried]:
        """The same candidates with what was measured of them on some samples."""
        if self.workers == 1 or len(tried) < 2:
            found = []
            for one in tried:
                found.append(self._run_here(one, indices))
                progress.step(one.label)
            return found
        references = list(self._references(indices))
        labels = self.samples.labels
        tasks = [
            Evaluation(
                path=one.path,
                batches=tuple(batch for batch, _ in references),
                references=tuple(outputs for _, outputs in references),
                # A cluster's machines need not share a disk.
                parts=read_parts(one.files) if isinstance(self.workers, str) else (),
                labels=None if labels is None else labels[list(indices)],
                metric=self.metric,
                max_drop=self.max_drop,
                output_is_classifier=self._classifiers,
                seed=self.seed,
                engine=self.device.engine,
            )
            for one in tried
        ]
        results = run_tasks(try_file, tasks, workers=self.workers, progress=progress)
        return [
            replace(one, metric=result.metric, failure=result.failure)
            for one, result in zip(tried, results, strict=True)
        ]

    def _run_here(self, one: Tried, indices: tuple[int, ...]) -> Tried:
        try:
            return replace(one, metric=self.quality(one.path, indices))
        except RuntimeFailure as error:
            self._restart(error)
            return replace(one, failure=str(error))

    def _restart(self, error: RuntimeFailure) -> None:
        """Begin a new process where the old one cannot be trusted after an error."""
        if not isinstance(error, RuntimeRefused):
            # The child died with the original's session in it, or has no memory left.
            self.process.close()
            self.process = Process()
            self._original = self._load_original()

    def quality(
        self,
        path: Path,
        indices: Sequence[int],
        *,
        on_note: Callable[[str], None] | None = None,
        on_batch: Callable[[int], None] | None = None,
        engine: Engine | None = None,
        batch: int = BATCH,
    ) -> MetricEvidence:
        """The metric of a file against the original on some samples.

        engine: what runs the file; None: what stands for the target. batch: samples in a run.
        """
        session = self.process.load(
            path, threads=self.threads, spinning=False, engine=engine or self.device.engine
        )
        try:
            labels = self.samples.labels
            pairs = self._pairs(tuple(indices), batch, session, on_batch)
            first, second, rows = unzip(pairs)
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
                paths,
                self.first_feeds(),
                rounds=100,
                seconds=seconds,
                seed=self.seed,
                engine=self.device.latency,
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

    def pack_trial(self, one: Tried) -> Tried:
        """The same candidate with the size of its entropy-coded file."""
        known = self._made.get(one.recipe, one)
        if known.packed_bytes is not None or not known.files:
            return replace(one, packed_bytes=known.packed_bytes)
        texts = {"recipe.yaml": write_recipe(one.recipe)}  # the folder is packed with it
        return self._keep(replace(one, packed_bytes=packed_size(one.files, texts=texts)))

    def _keep(self, result: Tried) -> Tried:
        """Put a result in the place of what was known of its recipe."""
        self._made[result.recipe] = result
        self.tried = [result if old.recipe == result.recipe else old for old in self.tried]
        return result

    def _pairs(
        self,
        indices: tuple[int, ...],
        batch: int,
        session: Session,
        on_batch: Callable[[int], None] | None,
    ) -> Iterator[tuple[Outputs, Outputs, int]]:
        for run, reference in self._references(indices, batch):
            outputs = session.run(run.feeds)
            # The runtime may give outputs in another order, never under other names.
            yield reference, {n: run.trim(array) for n, array in outputs.items()}, run.rows
            if on_batch is not None:
                on_batch(run.rows)

    def _references(
        self, indices: tuple[int, ...], batch: int = BATCH
    ) -> Iterator[tuple[Batch, Outputs]]:
        """Each run and the original's outputs of it."""
        cached = self._cache.get((indices, batch))
        if cached is not None:
            yield from cached
            return
        kept: list[tuple[Batch, Outputs]] | None = []
        held = 0
        for run in batches_of(self.samples, indices, self.model.inputs, batch=batch):
            outputs = {
                name: run.trim(array) for name, array in self._original.run(run.feeds).items()
            }
            yield run, outputs
            held += sum(a.nbytes for a in [*run.feeds.values(), *outputs.values()])
            if kept is not None:
                kept.append((run, outputs))
                if held > CACHE_BYTES:
                    kept = None
        if kept is not None and len(self._cache) < 4:
            self._cache[indices, batch] = kept
