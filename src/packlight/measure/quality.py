"""How good the compressed file still is: a metric of both files, its paired interval, the proof.

With labels it is top-1 accuracy; without, fidelity to the original: top-1 agreement where an
output is a classifier's, the share of equal elements where it is of integers, and explained
variance otherwise, the worst output counted. Higher is better and 0 is total loss, also for a
metric of the user's own; an output that is not finite where the original's is counts as lost.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableSamples, WrongUsage
from packlight.measure.evidence import MetricEvidence
from packlight.measure.outputs import (
    Comparison,
    add_to_comparison,
    lost_rows,
    rows_of,
)
from packlight.measure.scores import (
    Judged,
    Score,
    noise_db,
    score_agreement,
    score_explained_variance,
    score_fidelity,
    score_own,
    score_top_k,
)

Outputs: TypeAlias = Mapping[str, NDArray[Any]]
Metric: TypeAlias = Callable[[dict[str, NDArray[Any]], NDArray[Any] | None], Any]
_Floats: TypeAlias = NDArray[np.float64]


def measure_quality(
    original_outputs: Iterable[Outputs],
    compressed_outputs: Iterable[Outputs],
    *,
    rows: Iterable[int] | None = None,
    labels: NDArray[Any] | None = None,
    metric: Metric | str | None = None,
    metric_name: str | None = None,
    max_drop: float | None = None,
    output_is_classifier: Mapping[str, bool] | None = None,
    seed: int = 0,
    on_note: Callable[[str], None] | None = None,
) -> MetricEvidence:
    """Measure both files by their outputs on the same samples, batch by batch.

    original_outputs, compressed_outputs: batches {output: array}, filled-up rows cut off.
    rows: number of samples in each batch. Say it where you know it; otherwise the length of
        axis 0 is taken if all outputs share it, else a batch is one sample.
    labels: [n] classes, or whatever the metric takes, along axis 0.
    metric: a name of `METRICS`; a function of (outputs, labels) of a batch that returns a score
        for each sample, or one number, in which case it is called sample by sample; None:
        "top1" with labels that fit an output, else "fidelity".
    metric_name: what the report calls the user's own.
    max_drop: largest drop allowed, absolute. output_is_classifier: {output: whether}, where
        the guess would be wrong. on_note: told what the reader of the figures must know.
    Raises UnusableSamples without samples or for labels of another length, WrongUsage for a
    metric that fails or does not fit.
    """
    note = on_note or (lambda _: None)
    comparison = Comparison()
    own: list[tuple[_Floats, _Floats]] = []
    counts = iter(rows) if rows is not None else None
    for original, compressed in zip(original_outputs, compressed_outputs, strict=True):
        n = rows_of(original) if counts is None else next(counts)
        start = comparison.samples
        part = None if labels is None else labels[start : start + n]
        if part is not None and len(part) != n:
            raise UnusableSamples(
                f"there are {len(labels) if labels is not None else 0} labels for more samples "
                "than that: give one label a sample"
            )
        comparison = add_to_comparison(comparison, original, compressed, rows=n, labels=part)
        if callable(metric):
            whole = np.zeros(n, np.bool_)
            lost = lost_rows(original, compressed, n)
            own.append(
                (
                    _own_scores(metric, original, part, whole, metric_name),
                    _own_scores(metric, compressed, part, lost, metric_name),
                )
            )
    _check(comparison, labels, output_is_classifier or {})
    judged = Judged(comparison, labels is not None, output_is_classifier or {}, seed)
    if callable(metric):
        first = np.concatenate([pair[0] for pair in own])
        second = np.concatenate([pair[1] for pair in own])
        name = str(metric_name or getattr(metric, "__name__", "metric"))
        scores = [score_own(name, first, second, seed)]
    else:
        scores = _named_scores(judged, metric, note)
    return _evidence(judged, scores, max_drop, note)


def _evidence(
    judged: Judged, scores: list[Score], max_drop: float | None, note: Callable[[str], None]
) -> MetricEvidence:
    worst = max(scores, key=lambda score: (not score.proven(max_drop), score.drop))
    if len(scores) > 1:
        note(
            f"the worst of {len(scores)} outputs counts: {worst.output} "
            f"({worst.name} {worst.compressed:.4g})"
        )
    for record in judged.comparison.outputs:
        if record.lost.any():
            note(
                f"output {record.name} of the compressed file is not finite or of another shape "
                f"for {int(record.lost.sum())} of {len(record.lost)} samples, counted as lost"
            )
    agreements = [
        float(np.mean(record.places[:, 0] == record.places[:, 1]))
        for record in judged.comparison.outputs
        if judged.is_classifier(record) or (worst.output == record.name and len(record.places))
    ]
    noises = [noise_db(record) for record in judged.comparison.outputs if record.floating]
    return MetricEvidence(
        name=worst.name,
        samples=worst.samples,
        original=worst.original,
        compressed=worst.compressed,
        drop=worst.drop,
        drop_interval_95=worst.interval,
        proven=all(score.proven(max_drop) for score in scores),
        samples_needed=worst.samples_needed(max_drop),
        noise_db=min(noises, default=None),
        agreement=min(agreements, default=None),
    )


METRICS: dict[str, Callable[[Judged], list[Score]]] = {
    "top1": lambda judged: score_top_k(judged, 1),
    "top5": lambda judged: score_top_k(judged, 5),
    "agreement": score_agreement,
    "explained-variance": score_explained_variance,
    "fidelity": score_fidelity,
}


def find_metric(text: str) -> Metric | str:
    """Take what a user names: one of `METRICS`, or file.py:function. Raises WrongUsage."""
    if text in METRICS:
        return text
    if ":" in text:
        return load_metric(text)
    raise WrongUsage(
        f"there is no metric {text!r}: name one of {', '.join(METRICS)}, or file.py:function"
    )


def load_metric(text: str) -> Metric:
    """Import the user's own metric, "file.py:function". Raises WrongUsage saying what is amiss."""
    file, _, function = text.rpartition(":")
    path = Path(file)
    if not file or not function.isidentifier() or path.suffix != ".py":
        raise WrongUsage(f"a metric of your own is file.py:function, not {text!r}")
    if not path.is_file():
        raise WrongUsage(f"the metric's file {file} does not exist")
    name = f"packlight_metric_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WrongUsage(f"the metric's file {file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise WrongUsage(
            f"importing the metric's file {file} failed: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise WrongUsage(f"{file} has no function {function}")
    metric: Metric = found
    return metric


def _named_scores(judged: Judged, metric: str | None, note: Callable[[str], None]) -> list[Score]:
    if metric is None:
        scores = METRICS["top1"](judged) if judged.labelled else []
        if judged.labelled and not scores:
            note(
                "the labels fit no output [samples, classes] as classes from 0: accuracy could "
                "not be measured, fidelity to the original was"
            )
        return scores or METRICS["fidelity"](judged)
    if metric not in METRICS:
        raise WrongUsage(f"there is no metric {metric!r}: name one of {', '.join(METRICS)}")
    if metric in ("top1", "top5") and not judged.labelled:
        raise WrongUsage(f"the metric {metric} needs labels: give samples that have them")
    scores = METRICS[metric](judged)
    if not scores:
        seen = ", ".join(record.name for record in judged.comparison.outputs)
        raise WrongUsage(
            f"the metric {metric} fits none of the outputs {seen}: it needs "
            + ("floats" if metric == "explained-variance" else "scores [samples, classes]")
            + (" with labels from 0 to classes - 1" if metric.startswith("top") else "")
        )
    return scores


def _check(
    comparison: Comparison, labels: NDArray[Any] | None, output_is_classifier: Mapping[str, bool]
) -> None:
    if not comparison.samples or not comparison.outputs:
        raise UnusableSamples("there are no samples to measure the quality on: give one or more")
    if labels is not None and len(labels) != comparison.samples:
        raise UnusableSamples(
            f"there are {len(labels)} labels for {comparison.samples} samples: give one label each"
        )
    names = [record.name for record in comparison.outputs]
    unknown = [name for name in output_is_classifier if name not in names]
    if unknown:
        raise WrongUsage(f"the model has no output {unknown[0]!r}; it has {', '.join(names)}")


def _own_scores(
    metric: Metric,
    outputs: Outputs,
    labels: NDArray[Any] | None,
    lost: NDArray[np.bool_],
    name: str | None,
) -> _Floats:
    """One score a sample, 0 where the outputs are lost (the function never sees those)."""
    rows = len(lost)
    title = str(name or getattr(metric, "__name__", "metric"))

    def call(part: dict[str, NDArray[Any]], of: NDArray[Any] | None) -> _Floats:
        try:
            scores = np.asarray(metric(part, of), np.float64)
        except Exception as error:
            raise WrongUsage(
                f"the metric {title} failed on a batch: {type(error).__name__}: {error}"
            ) from error
        if not np.all(np.isfinite(scores)):
            raise WrongUsage(f"the metric {title} gave a score that is not finite")
        return scores

    scores = np.zeros(rows)
    if not lost.any():
        whole = call(dict(outputs), labels)
        if whole.shape == (rows,):
            return whole
        if whole.shape:
            raise WrongUsage(
                f"the metric {title} gave {whole.shape} scores for {rows} samples: return one "
                "number, or one score a sample"
            )
        if rows == 1:
            return whole.reshape(1)
    for i in np.flatnonzero(~lost):
        part = {
            key: array[i : i + 1] if np.ndim(array) and len(array) == rows else array
            for key, array in outputs.items()
        }
        one = call(part, None if labels is None else labels[i : i + 1])
        if one.size != 1:
            raise WrongUsage(f"the metric {title} gave {one.shape} scores for one sample")
        scores[i] = one.reshape(())
    return scores
