"""One candidate file as a task: everything a worker needs to measure its quality.

A task is a frozen value that goes to another process, or to another machine: samples and the
original's outputs travel with it, the file by its path or, where no disk is shared, as bytes.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.errors import RuntimeFailure, RuntimeRefused, WrongUsage
from packlight.measure.evidence import MetricEvidence
from packlight.measure.quality import Metric, find_metric, measure_quality
from packlight.runtime import Engine, Process
from packlight.samples import Batch

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is to be measured of one file.

    path: the file, with any external data next to it; or the name it gets, with `parts`.
    parts: (name, bytes) of the file and its external data, where no disk is shared.
    batches: the runs on samples. references: the original's outputs of each, already trimmed.
    labels: [samples], in the order of the batches. metric: a name, "file.py:function" or a
        function of the top level of a module. engine: what it runs in. The rest is as
        `measure_quality` takes it.
    """

    path: Path
    batches: tuple[Batch, ...]
    references: tuple[Outputs, ...]
    parts: tuple[tuple[str, bytes], ...] = ()
    labels: NDArray[Any] | None = None
    metric: Metric | str | None = None
    max_drop: float | None = None
    output_is_classifier: Mapping[str, bool] = field(default_factory=dict)
    seed: int = 0
    engine: Engine = "onnxruntime"

    def __post_init__(self) -> None:
        if len(self.batches) != len(self.references):
            raise WrongUsage(
                f"{len(self.references)} reference outputs do not fit {len(self.batches)} batches"
            )


@dataclass(frozen=True)
class Evaluated:
    """The quality of a file, or why the runtime could not run it."""

    metric: MetricEvidence | None
    failure: str = ""


def evaluate_file(task: Evaluation, *, process: Process | None = None) -> MetricEvidence:
    """Run a file on the samples of a task, one thread, and measure it against the original.

    process: where to run it; None: a child of this process that is kept for the next tasks.
    Raises RuntimeFailure where it cannot be run, WrongUsage and UnusableSamples as
    `measure_quality` does.
    """
    metric = task.metric
    if isinstance(metric, str) and ":" in metric:
        metric = find_metric(metric)
    with _placed(task) as path:
        runner = process or _kept_child()
        try:
            return _measure(task, path, runner, metric)
        except BaseException as error:
            # After a refusal a child is sound; after anything else it is gone or in disorder.
            if process is None and not isinstance(error, RuntimeRefused):
                end_kept_child()
            raise


def try_file(task: Evaluation) -> Evaluated:
    """`evaluate_file` for many candidates: one that cannot be run must not end the others."""
    try:
        return Evaluated(evaluate_file(task))
    except RuntimeFailure as error:
        return Evaluated(None, str(error))


def read_parts(files: Sequence[Path]) -> tuple[tuple[str, bytes], ...]:
    """A model file and its external data as they travel to another machine."""
    return tuple((file.name, file.read_bytes()) for file in files)


def end_kept_child() -> None:
    """End the child that `evaluate_file` keeps in this process, if there is one."""
    if _kept_child.cache_info().currsize:
        _kept_child().close()
        _kept_child.cache_clear()


@functools.lru_cache(maxsize=1)
def _kept_child() -> Process:
    """Starting a child costs more than many a candidate; it ends with this process."""
    return Process()


def _measure(
    task: Evaluation, path: Path, process: Process, metric: Metric | str | None
) -> MetricEvidence:
    session = process.load(path, threads=1, spinning=False, engine=task.engine)

    def compressed() -> Iterator[Outputs]:
        for batch in task.batches:
            outputs = session.run(batch.feeds)
            yield {name: batch.trim(array) for name, array in outputs.items()}

    try:
        return measure_quality(
            task.references,
            compressed(),
            rows=[batch.rows for batch in task.batches],
            labels=task.labels,
            metric=metric,
            max_drop=task.max_drop,
            output_is_classifier=task.output_is_classifier,
            seed=task.seed,
        )
    finally:
        session.close()


@contextlib.contextmanager
def _placed(task: Evaluation) -> Iterator[Path]:
    """The file on this machine's disk; what came as bytes is written, and removed after."""
    if not task.parts:
        yield task.path
        return
    for name, _ in task.parts:
        if Path(name).name != name or name in ("", ".", ".."):
            raise WrongUsage(f"a part of a model file has the plain name of a file, not {name!r}")
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        for name, content in task.parts:
            Path(folder, name).write_bytes(content)
        yield Path(folder, task.path.name)
