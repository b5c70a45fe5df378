"""Reads onnxruntime's profile: which operator took how long."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

_SUFFIX = "_kernel_time"


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of a profile, one a line, as onnxruntime writes its JSON list.

    Line by line, since a long profile as one list of objects takes gigabytes.
    """
    for line in lines:
        text = line.strip().rstrip(",")
        if text.startswith("{"):
            yield json.loads(text)


def operator_times(
    events: Iterable[dict[str, Any]], *, warmup: int
) -> list[tuple[str, str, float]]:
    """(node name, operator, mean milliseconds of a run), in the order of execution.

    The first `warmup` runs are left out, as is an incomplete last one (onnxruntime stops
    recording after a million events). A node that holds others (If, Loop, Scan) counts
    without them, so that the times add up to the run. A node that a loop runs
    several times counts with the sum.
    """
    totals: dict[tuple[str, str], int] = {}
    runs = 0
    current: dict[tuple[str, str], int] = {}
    finished: list[tuple[int, int]] = []  # (start, duration) not yet inside another, in us
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            runs += 1
            if runs > warmup:
                for key, microseconds in current.items():
                    totals[key] = totals.get(key, 0) + microseconds
            current = {}
            finished = []
        elif event.get("cat") == "Node" and name.endswith(_SUFFIX):
            start, duration = int(event["ts"]), int(event["dur"])
            own = duration
            # Events are written when they end: those that began later are inside this one.
            while finished and finished[-1][0] >= start:
                own -= finished.pop()[1]
            finished.append((start, duration))
            key = (name.removesuffix(_SUFFIX), str(event.get("args", {}).get("op_name", "")))
            current[key] = current.get(key, 0) + max(own, 0)
    measured = runs - warmup
    return [(name, op, total / measured / 1000) for (name, op), total in totals.items()]
