"""Energy of a run, where the machine tells: the processor's own counters (RAPL, on Linux)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.runtime import Engine, Process

COUNTERS = Path("/sys/class/powercap")
_ROUNDS = 1_000_000
_SECONDS = 2.0
"""The counters move about once a millisecond: two seconds make their steps small."""


def read_counters(folder: Path = COUNTERS) -> dict[str, tuple[int, int]] | None:
    """Microjoules that each processor package has used, with the number at which it begins again.

    None where there are no such counters, or they may not be read.
    """
    found = {}
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):
            name = (zone / "name").read_text(encoding="ascii").strip()
            if zone.name.count(":") == 1 and name.startswith("package"):
                used, most = (
                    int((zone / part).read_text(encoding="ascii"))
                    for part in ("energy_uj", "max_energy_range_uj")
                )
                found[zone.name] = (used, most)
    except (OSError, ValueError):
        return None
    return found or None


def used_between(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> float:
    """Joules used by all packages between two readings, each begun again at most once."""
    total = 0
    for name, (used, most) in after.items():
        gone = used - before[name][0]
        total += gone if gone >= 0 else gone + most
    return total / 1e6


def measure_energy(
    path: Path,
    feeds: Mapping[str, NDArray[Any]],
    *,
    engine: Engine,
    folder: Path = COUNTERS,
) -> float | None:
    """Millijoules of one run with one thread: the processor's power meanwhile, times the latency.

    What else the machine does is in it, idle cores too. None where the machine does not tell.
    """
    if read_counters(folder) is None:
        return None
    with Process() as process:
        session = process.load(path, engine=engine)
        process.time([session], feeds, rounds=6)
        before, begun = read_counters(folder), time.monotonic()
        table = process.time([session], feeds, rounds=_ROUNDS, seconds=_SECONDS)
        after, seconds = read_counters(folder), time.monotonic() - begun
    if before is None or after is None or before.keys() != after.keys():
        return None
    return float(used_between(before, after) / seconds * np.median(table))
