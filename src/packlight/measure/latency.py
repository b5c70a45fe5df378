"""How long files take to run, side by side.

Files are compared by interleaved runs in one process (or in one page of a browser): what
slows the machine for a while slows both, and cancels in the ratio of each pair.
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
from packlight.measure.device import LatencyEngine
from packlight.measure.evidence import LatencyEvidence
from packlight.runtime import Limits, Process, runtime_name
from packlight.runtime.browser import run_in_browser

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
    engine: LatencyEngine = "onnxruntime",
) -> LatencyEvidence:
    """Latency of both files in milliseconds, and the ratio compressed / original.

    feeds_compressed: None where both take the same. seconds: after that long no further
    round begins (six are always done). seed: of the bootstrap. engine: what runs them; a browser
    has one thread only.
    """
    feeds = [feeds_original, feeds_original if feeds_compressed is None else feeds_compressed]
    paths = [original, compressed]
    shared = feeds if feeds_compressed is not None else feeds_original
    table, runtime = _time(paths, shared, threads, rounds, seconds, limits, engine)
    first, second = _compare(paths, table, seed)
    return LatencyEvidence(
        runtime=runtime,
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
    engine: LatencyEngine = "onnxruntime",
) -> tuple[RankedLatency, ...]:
    """Latency of many files, in the order given, each against the first.

    feeds: one mapping for all files, or one for each. seconds: for all files together.
    All files are held in one child at the same time. engine: see measure_latency.
    """
    table, _ = _time(paths, feeds, threads, rounds, seconds, limits, engine)
    return _compare(paths, table, seed)


def _time(
    paths: Sequence[Path],
    feeds: _Feeds | Sequence[_Feeds],
    threads: int,
    rounds: int,
    seconds: float,
    limits: Limits,
    engine: LatencyEngine,
) -> tuple[NDArray[np.float64], str]:
    """Milliseconds, [files, rounds done], and the name of the runtime that took them."""
    if not paths or rounds < LEAST_ROUNDS:
        raise WrongUsage(
            f"Latency is measured on at least one file in at least {LEAST_ROUNDS} rounds, "
            f"not on {len(paths)} in {rounds}."
        )
    if engine == "browser":
        if threads != 1:
            raise WrongUsage(f"A browser is measured with one thread, not with {threads}.")
        run = run_in_browser(paths, feeds, rounds=rounds, seconds=seconds, limits=limits)
        return run.milliseconds, run.runtime
    with Process(limits=limits) as process:
        sessions = [process.load(path, threads=threads, engine=engine) for path in paths]
        table = process.time(sessions, feeds, rounds=rounds, seconds=seconds)
    return table, runtime_name(engine)


def _compare(
    paths: Sequence[Path], table: NDArray[np.float64], seed: int
) -> tuple[RankedLatency, ...]:
    # A clock that did not tick between two readings must not divide by zero.
    table = np.maximum(table, 1e-6)
    ranked = []
    for path, row in zip(paths, table, strict=True):
        estimate = bootstrap_ratio(row, table[0], seed=seed)
        interval = (estimate.low, estimate.high)
        ranked.append(RankedLatency(path, float(np.median(row)), estimate.ratio, interval))
    return tuple(ranked)
