"""Scores: a metric of both files on the same samples, with the interval of their difference.

Yes-or-no scores have Tango's paired interval or Wilson's, others a bootstrap over samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.maths.divergence import decibels
from packlight.maths.intervals import (
    Interval,
    bootstrap_interval,
    paired_difference_interval,
    samples_for_proof,
    wilson_interval,
)
from packlight.measure.outputs import Comparison, OutputRecord

_Floats: TypeAlias = NDArray[np.float64]

# Beyond what float32 can tell apart; stands for infinity, which JSON has not.
_MOST_DB = 200.0


@dataclass(frozen=True)
class Score:
    """One metric of both files on one output, or on all.

    drop: original - compressed, its 95 % interval, and the share of samples on which the two
    differ (None where samples are more than right or wrong).
    """

    name: str
    output: str
    samples: int
    original: float
    compressed: float
    interval: Interval
    discordant: float | None = None

    @property
    def drop(self) -> float:
        """What the compressed file lost."""
        # 1 - 0.99 is 0.01, and not the 0.010000000000000009 that would exceed it.
        return round(self.original - self.compressed, 12)

    def proven(self, max_drop: float | None) -> bool:
        """Whether the whole interval lies within the budget."""
        return max_drop is not None and self.interval[1] <= max_drop

    def samples_needed(self, max_drop: float | None) -> int | None:
        """About how many samples a proof needs; None if proven, hopeless or nothing to prove."""
        if max_drop is None or self.proven(max_drop) or self.drop >= max_drop:
            return None
        if self.discordant is not None:
            return samples_for_proof(self.drop, self.discordant, max_drop)
        short = (self.interval[1] - self.drop) / (max_drop - self.drop)
        return math.ceil(self.samples * short**2)


@dataclass(frozen=True)
class Judged:
    """What the scores of a comparison depend on besides the outputs."""

    comparison: Comparison
    labelled: bool
    output_is_classifier: Mapping[str, bool]
    seed: int

    def is_classifier(self, record: OutputRecord) -> bool:
        """What the caller says of an output, else what it looks like."""
        guess = record.looks_like_scores
        if len(self.comparison.outputs) > 1:
            # Beside other outputs (boxes, embeddings, states) only probabilities tell for sure.
            guess = guess and record.probabilities
        return self.output_is_classifier.get(record.name, guess) and len(record.places) > 0


def score_top_k(judged: Judged, k: int) -> list[Score]:
    """Accuracy by labels on the first output that has a score for each: label among the best k."""
    records = [
        record
        for record in judged.comparison.outputs
        if len(record.ranks) and np.all(record.ranks[:, 0] >= 0) and (len(record.places) or k == 1)
    ]
    if not records:
        return []
    record = next((record for record in records if len(record.places)), records[0])
    right = record.ranks < k
    return [_paired(f"top-{k} accuracy", record.name, right[:, 0], right[:, 1])]


def score_agreement(judged: Judged) -> list[Score]:
    """Top-1 agreement of every output [samples, classes] that is a classifier's."""
    return [
        _agreement(record) for record in judged.comparison.outputs if judged.is_classifier(record)
    ]


def score_explained_variance(judged: Judged) -> list[Score]:
    """Explained variance of every output of floats."""
    return [
        _explained_variance(record, judged.seed)
        for record in judged.comparison.outputs
        if record.floating
    ]


def score_fidelity(judged: Judged) -> list[Score]:
    """Every output by what it is: agreement, explained variance, or equal elements."""
    return [
        _agreement(record)
        if judged.is_classifier(record)
        else _explained_variance(record, judged.seed)
        if record.floating
        else _equal_elements(record)
        for record in judged.comparison.outputs
    ]


def score_own(name: str, first: _Floats, second: _Floats, seed: int) -> Score:
    """Scores of the user's own metric, [n] of each file.

    Paired as right and wrong where they are 0 and 1, otherwise by bootstrap of the differences.
    """
    n, lost = len(first), float(np.mean(first - second))
    both = np.concatenate([first, second])
    if np.all((both == 0) | (both == 1)):
        return _paired(name, "", first == 1, second == 1)
    discordant = None
    if np.all((both >= 0) & (both <= 1)) and np.array_equal(first, second):
        # Scores that nowhere differ prove no more than as many samples of right or wrong do.
        interval, discordant = paired_difference_interval(0, 0, n), 0.0
    elif n > 1:
        pairs = np.stack([first - second, np.ones(n)], axis=1)
        interval = bootstrap_interval(pairs, lambda sums: sums[:, 0] / sums[:, 1], seed=seed)
    else:
        half = max(1.0, float(np.abs(both).max()))
        interval = (lost - half, lost + half)
    return Score(name, "", n, float(first.mean()), float(second.mean()), interval, discordant)


def noise_db(record: OutputRecord) -> float:
    """Signal-to-noise ratio of one output in decibels, at most 200 and at least -200."""
    signal = float(record.sums[:, 2].sum())
    noise = np.where(record.lost, record.sums[:, 2], record.sums[:, 3])
    return min(max(decibels(signal, float(noise.sum())), -_MOST_DB), _MOST_DB)


def _paired(name: str, output: str, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Score:
    n = len(first)
    lost, won = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return Score(
        name,
        output,
        n,
        float(first.mean()),
        float(second.mean()),
        paired_difference_interval(lost, won, n),
        (lost + won) / n,
    )


def _agreement(record: OutputRecord) -> Score:
    n = len(record.places)
    apart = int(np.sum(record.places[:, 0] != record.places[:, 1]))
    return Score(
        "top-1 agreement", record.name, n, 1.0, 1 - apart / n, wilson_interval(apart, n), apart / n
    )


def _equal_elements(record: OutputRecord) -> Score:
    n = len(record.sums)
    apart = float(n - record.sums[:, 4].sum())
    # Wilson's interval is conservative for shares, whose spread is below that of yes and no.
    return Score(
        "equal elements", record.name, n, 1.0, 1 - apart / n, wilson_interval(apart, n), apart / n
    )


def _explained_variance(record: OutputRecord, seed: int) -> Score:
    sums, n = record.sums[:, :4].copy(), len(record.sums)
    mean = sums[:, 1].sum() / max(sums[:, 0].sum(), 1)
    around = sums[:, 2] - 2 * mean * sums[:, 1] + mean**2 * sums[:, 0]
    sums[record.lost, 3] = np.maximum(around, sums[:, 3])[record.lost]

    def drop(totals: _Floats) -> _Floats:
        variance = totals[:, 2] - totals[:, 1] ** 2 / np.maximum(totals[:, 0], 1)
        # What cancellation leaves of a constant output's variance is none.
        constant = variance <= 1e-13 * totals[:, 2]
        share = totals[:, 3] / np.where(constant, 1, variance)
        return np.where(constant, (totals[:, 3] > 0).astype(np.float64), share)

    lost = 1.0 if record.lost.all() else float(drop(sums.sum(axis=0, keepdims=True))[0])
    interval = (0.0, max(1.0, lost))
    if n > 1:
        low, high = bootstrap_interval(sums, drop, seed=seed)
        interval = (max(low, 0.0), max(high, lost))
    return Score("explained variance", record.name, n, 1.0, 1 - lost, interval)
