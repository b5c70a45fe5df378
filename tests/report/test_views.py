from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.measure.evidence import Budget, Evidence, Trial
from packlight.report.views import NAMES, collect_view, find_front


def timed(evidence: Evidence) -> Evidence:
    """The run with times in milliseconds and packed sizes as well."""
    trials = tuple(
        replace(
            t,
            latency_ms=None if t.latency_ratio is None else 0.481 * t.latency_ratio,
            packed_bytes=t.size_bytes // 2,
        )
        for t in evidence.trials
    )
    return replace(evidence, trials=trials)


def test_better_is_left_and_up_in_every_view(evidence: Evidence) -> None:
    worse = Trial("worse", 900_000, drop=0.02, latency_ratio=0.9, packed_bytes=700_000)
    better = Trial("better", 300_000, drop=0.0, latency_ratio=0.4, packed_bytes=90_000)
    for name in NAMES:
        view = collect_view(replace(evidence, trials=(worse, better)), name)
        assert view is not None
        one, other = (p for p in view.points if p.label in ("worse", "better"))
        assert (one.label, other.label) == ("worse", "better")
        assert other.x < one.x
        assert other.y > one.y
        assert other.front
        assert not one.front


@given(
    st.lists(
        st.builds(
            Trial,
            label=st.just("t"),
            size_bytes=st.integers(1, 9),
            drop=st.integers(0, 9).map(float),
            latency_ratio=st.none() | st.integers(1, 9).map(float),
        ),
        max_size=12,
    )
)
def test_the_front_is_what_nothing_beats(trials: list[Trial]) -> None:
    def key(trial: Trial) -> tuple[float, ...]:
        time = math.inf if trial.latency_ratio is None else trial.latency_ratio
        return (trial.size_bytes, time, trial.drop or 0.0)

    for i, (trial, front) in enumerate(zip(trials, find_front(trials), strict=True)):
        mine = key(trial)
        beaten = any(
            all(a <= b for a, b in zip(key(other), mine, strict=True))
            and (key(other) != mine or j < i)
            for j, other in enumerate(trials)
        )
        assert front is not beaten


def test_the_planner_has_the_last_word_on_the_front() -> None:
    trials = (Trial("a", 5, drop=0.0), Trial("b", 9, drop=0.5, front=True))
    assert find_front(trials) == (False, True)
    assert find_front((Trial("nothing measured", 5), Trial("b", 9, drop=0.5))) == (False, True)


def test_limits_stand_in_the_views_they_belong_to(evidence: Evidence) -> None:
    budget = Budget(0.01, 400_000, 0.3, max_download_bytes=150_000)
    found = {}
    for name in NAMES:
        view = collect_view(replace(timed(evidence), budget=budget), name)
        assert view is not None
        found[name] = {(limit.axis, limit.value) for limit in view.limits}
    assert found["size-quality"] == {("y", -0.01), ("x", 400_000.0)}
    assert found["download-quality"] == {("y", -0.01), ("x", 150_000.0)}
    assert found["time-quality"] == {("y", -0.01), ("x", 0.3)}
    assert found["size-time"] == {("x", 400_000.0), ("y", -0.3)}


def test_without_milliseconds_a_limit_on_time_is_a_share_of_the_original(
    evidence: Evidence,
) -> None:
    view = collect_view(replace(evidence, budget=Budget(max_latency_ms=0.2405)), "time-quality")
    assert view is not None
    assert [limit.value for limit in view.limits] == [pytest.approx(0.5)]
    assert view.write_x(0.5) == "50 %"


def test_one_that_is_far_slower_stands_at_the_edge(evidence: Evidence) -> None:
    slow = Trial("slow", 300_000, drop=0.0, latency_ratio=8.0)
    for name, edge in (("time-quality", "right"), ("size-time", "down")):
        view = collect_view(replace(evidence, trials=(*evidence.trials, slow)), name)  # type: ignore[arg-type]
        assert view is not None
        point = next(p for p in view.points if p.number == 13)
        assert point.clipped == edge
        assert point.label == "slow (800 %)"


def test_of_many_only_those_on_the_front_are_labelled(evidence: Evidence) -> None:
    many = tuple(
        Trial(f"t{i}", 300_000 + 1000 * i, drop=0.001 * (i % 7), chosen=i == 30) for i in range(60)
    )
    view = collect_view(replace(evidence, trials=many), "size-quality")
    assert view is not None
    named = [p for p in view.points if p.named]
    assert all(p.front or p.kind in ("chosen", "original") for p in named)
    assert len(named) < 10
    few = collect_view(evidence, "size-quality")
    assert few is not None
    assert all(p.named for p in few.points)


def test_times_that_were_not_measured_make_no_view(evidence: Evidence) -> None:
    untimed = tuple(replace(trial, latency_ratio=None) for trial in evidence.trials)
    assert collect_view(replace(evidence, trials=untimed), "time-quality") is None
    assert collect_view(replace(evidence, trials=untimed), "size-time") is None
    assert collect_view(replace(evidence, trials=()), "size-time") is None


def test_without_packed_sizes_there_is_no_view_of_the_download(evidence: Evidence) -> None:
    assert collect_view(evidence, "download-quality") is None
    view = collect_view(timed(evidence), "download-quality")
    assert view is not None
    chosen = next(p for p in view.points if p.kind == "chosen")
    assert chosen.x == 443_000 // 2
    assert view.write_x(chosen.x) == "222 KB"


def test_all_that_is_known_is_told(evidence: Evidence) -> None:
    trial = Trial("a", 331_900, 0.0098, 28.3, 0.47, False, "", 0.226, 120_000, 4.25, True)
    view = collect_view(replace(evidence, trials=(trial,)), "size-quality")
    assert view is not None
    assert view.points[-1].hints == (
        *("a", "332 KB, packed 120 KB", "change −0.98 %", "output SNR 28.3 dB"),
        *("0.226 ms, 47 % of the original's time", "4.25 bits a weight"),
    )
