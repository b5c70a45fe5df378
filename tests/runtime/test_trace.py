from __future__ import annotations

import json
from typing import Any

import pytest

from packlight.runtime.trace import operator_times, read_events


def _node(name: str, op: str, start: int, duration: int) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": op},
    }


def _run(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration}


def test_means_leave_out_warmup_and_an_incomplete_run() -> None:
    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5},
        _node("a", "Conv", 10, 9000),  # warm-up
        _run(10, 9001),
        _node("a", "Conv", 10000, 20),
        _node("b", "Relu", 10021, 4),
        _run(10000, 30),
        _node("a", "Conv", 20000, 40),
        _node("b", "Relu", 20041, 0),
        _run(20000, 45),
        _node("a", "Conv", 30000, 7000),  # recording stopped before this run's end
    ]
    assert operator_times(events, warmup=1) == [("a", "Conv", 0.030), ("b", "Relu", 0.002)]


def test_a_node_that_holds_others_counts_without_them() -> None:
    events = [
        _node("before", "Add", 0, 10),
        _node("inner", "Mul", 12, 30),
        _node("inner", "Mul", 45, 20),
        _node("nested", "If", 44, 25),
        _node("loop", "Loop", 11, 80),
        _node("after", "Add", 91, 5),
        _run(0, 100),
    ]
    times = {name: ms for name, _, ms in operator_times(events, warmup=0)}
    assert times == pytest.approx(
        {"before": 0.010, "inner": 0.050, "nested": 0.005, "loop": 0.025, "after": 0.005}
    )


def test_nothing_but_warmup_gives_nothing() -> None:
    assert operator_times([_node("a", "Conv", 0, 1), _run(0, 2)], warmup=3) == []


def test_events_are_read_line_by_line() -> None:
    events = [_node("a", "Conv", 0, 1), _run(0, 2)]
    lines = [
        "[\n",
        *(json.dumps(event) + ",\n" for event in events[:1]),
        json.dumps(events[1]),
        "]",
    ]
    assert list(read_events(lines)) == events
