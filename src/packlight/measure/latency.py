"""How long files take to run, side by side.

Files are compared by interleaved runs in one process: what slows the machine for a
while slows both, and cancels in the ratio of each pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.maths.bootstrap import bootstrap_ratio
from packlight.measure.evidence import LatencyEvidence
from packlight.runtime import Limits, Process, runtime_name

# Fewer pairs allow no interval at 95 % for a median.
LEAST_ROUNDS = 6

_Feeds = Mapping[str, NDArray[Any]]
_DEFAULT = Limits()


@dataclass(frozen=True)
class RankedLatency:
    """Time of one of several files.

    ms: median milliseconds of a run. ratio: median of the paired ratios to the first file;
    ratio_interval_95: its interval.
    """

    path: Path
    ms: float
    ratio: float
    ratio_interval_95: tuple[float, float]


def measure_latency(
    original: Path,
    compressed: Path,
    feeds_original: _Feeds,
    feeds_compressed: _Feeds | None = None,
    *,
    threads: int,
    rounds: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    limits: Limits = _DEFAULT,
) -> LatencyEvidence:
    """Latency of both files in milliseconds, and the ratio compressed / original.

    feeds_compressed: None where both take the same. seconds: after that long no further
    round begins (six are always done). seed: of the bootstrap.
    """
    feeds = [feeds_original, feeds_original if feeds_compressed is None else feeds_compressed]
    first, second = rank_latencies(
        [original, compressed],
        feeds if feeds_compressed is not None else feeds_original,
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        limits=limits,
    )
    return LatencyEvidence(
        runtime=runtime_name(),
        threads=threads,
        original=first.ms,
        compressed=second.ms,
        ratio=second.ratio,
        ratio_interval_95=second.ratio_interval_95,
    )


def rank_latencies(
    paths: Sequence[Path],
    feeds: _Feeds | Sequence[_Feeds],
    *,
    threads: int = 1,
    rounds: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    limits: Limits = _DEFAULT,
) -> tuple[RankedLatency, ...]:
    """Latency of many files, in the order given, each against the first.

    feeds: one mapping for all files, or one for each. seconds: for all files together.
    All files are held in one child at the same time.
    """
    if not paths or rounds < LEAST_ROUNDS:
        raise WrongUsage(
            f"Latency is measured on at least one file in at least {LEAST_ROUNDS} rounds, "
            f"not on {len(paths)} in {rounds}."
        )
    with Process(limits=limits) as process:
        sessions = [process.load(path, threads=threads) for path in paths]
        table = process.time(sessions, feeds, rounds=rounds, seconds=seconds)
    # A clock that did not tick between two readings must not divide by zero.
    table = np.maximum(table, 1e-6)
    ranked = []
    for path, row in zip(paths, table, strict=True):
        estimate = bootstrap_ratio(row, table[0], seed=seed)
        interval = (estimate.low, estimate.high)
        ranked.append(RankedLatency(path, float(np.median(row)), estimate.ratio, interval))
    return tuple(ranked)
