"""What the plots show of all that was tried: two quantities at a time, and the front of each.

Left is better and up is better in every view, so that what has nothing left of it and above it
is on the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from packlight.measure.evidence import Evidence, Trial
from packlight.report.units import format_bytes, format_ms, format_number, format_percent
from packlight.report.visible import visible
from packlight.report.wording import SHARES

Name = Literal["size-quality", "download-quality", "time-quality", "size-time"]
Edge = Literal["", "up", "down", "right"]
NAMES: tuple[Name, ...] = ("size-quality", "download-quality", "time-quality", "size-time")
TITLES: dict[Name, str] = {
    "size-quality": "Size and quality",
    "download-quality": "Download and quality",
    "time-quality": "Time and quality",
    "size-time": "Size and time",
}
_BETTER = {"size": "← smaller file", "download": "← smaller download", "time": "← faster"}
_FEW = 15
"""Up to so many versions all are labelled; beyond, those on the front."""


@dataclass(frozen=True)
class Point:
    """One dot: x to the right is worse, y upwards is better.

    kind: a class of the style sheet. hints: what is known of it, the label first. clipped: the
    edge of the plot where it stands instead of far beyond it.
    """

    x: float
    y: float
    label: str
    kind: str
    hints: tuple[str, ...]
    number: int
    front: bool = False
    named: bool = True
    clipped: Edge = ""


@dataclass(frozen=True)
class Limit:
    """A line at what the user asked for, across (x) or up (y)."""

    axis: Literal["x", "y"]
    value: float
    text: str


@dataclass(frozen=True)
class View:
    """One plot as numbers: its points, limits, and how its axes are written."""

    name: Name
    title: str
    points: tuple[Point, ...]
    limits: tuple[Limit, ...]
    write_x: Callable[[float], str]
    write_y: Callable[[float], str]
    better_x: str
    better_y: str
    described: str


def collect_view(evidence: Evidence, name: Name) -> View | None:
    """The view of that name; None where too few trials have both figures."""
    share = evidence.metric is None or evidence.metric.name in SHARES
    quality = _quality_of(evidence)
    across, up = name.split("-")
    if quality is None and "quality" in (across, up):
        return None
    in_ms = any(_finite(trial.latency_ms) for trial in evidence.trials)

    def time_of(trial: Trial) -> float | None:
        return trial.latency_ms if in_ms else trial.latency_ratio

    values: dict[str, Callable[[Trial], float | None]] = {
        "size": lambda trial: float(trial.size_bytes),
        "download": lambda trial: None if trial.packed_bytes is None else float(trial.packed_bytes),
        "time": time_of,
        "quality": lambda trial: (
            trial.noise_db if quality == "noise" else None if trial.drop is None else -trial.drop
        ),
    }
    latency = evidence.latency_ms
    original_time = (latency.original if latency else None) if in_ms else 1.0
    originals = {
        "size": float(evidence.size_bytes.original),
        "download": float(evidence.size_bytes.original),
        "time": original_time,
        "quality": 0.0 if quality == "drop" else None,
    }
    up_sign = -1.0 if up == "time" else 1.0
    points = []
    start_x, start_y = originals[across], originals[up]
    if start_x is not None and start_y is not None:
        about = ("original", format_bytes(evidence.size_bytes.original))
        points.append(Point(start_x, up_sign * start_y, "original", "original", about, 0))
    found = 0
    for number, trial in enumerate(evidence.trials, start=1):
        x, y = values[across](trial), values[up](trial)
        if x is None or y is None or not math.isfinite(x) or not math.isfinite(y):
            continue
        found += 1
        kind = "chosen" if trial.chosen else "tried"
        label, hints = visible(trial.label, limit=36), list_hints(trial, share=share)
        points.append(Point(x, up_sign * y, label, kind, hints, number))
    if found < (1 if name == "size-quality" else 2):
        return None
    points = _mark_front(points)
    limits = _limits(evidence, across, up, quality, share=share, in_ms=in_ms)
    floor = None
    write_y: Callable[[float], str] = _write_change(share=share)
    if up == "quality" and quality == "drop":
        points, floor = _clip_drop(points, evidence.budget.max_drop, share=share)
    elif up == "quality":
        points = _cap_noise(points)
        write_y = _write_db
    if "time" in (across, up):
        points = _clip_time(points, across, in_ms=in_ms)
    write_time = _write_time(in_ms=in_ms)
    if up == "time":
        write_y = _negated(write_time)
    shown = [point.y for point in points]
    kept = tuple(
        limit
        for limit in limits
        if not (limit.axis == "y" and floor is not None and limit.value < floor)
        and _near(limit, points)
    )
    what = {
        "size": "size",
        "download": "size of the packed file",
        "time": "time",
        "quality": "change of the metric"
        if quality == "drop"
        else "signal-to-noise ratio of the outputs",
    }
    chosen = next((", ".join(p.hints) for p in points if p.kind == "chosen"), "none of them")
    return View(
        name=name,
        title=f"{TITLES[name]} of everything that was tried",
        points=tuple(points),
        limits=kept,
        write_x=write_time if across == "time" else format_bytes,
        write_y=write_y,
        better_x=_BETTER[across],
        better_y="faster ↑" if up == "time" else "higher is better ↑",
        described=(
            f"{len(shown) - (points[0].kind == 'original')} versions by {what[across]} (across) "
            f"and {what[up]} (upwards). Chosen: {chosen}. All figures are in the table below the "
            "plot."
        ),
    )


def list_hints(trial: Trial, *, share: bool) -> tuple[str, ...]:
    """What is known of a trial, a line each: its label first."""
    size = format_bytes(trial.size_bytes)
    if trial.packed_bytes is not None:
        size += f", packed {format_bytes(trial.packed_bytes)}"
    parts = [visible(trial.label, limit=80), size]
    if _finite(trial.drop):
        parts.append(f"change {write_change(-(trial.drop or 0.0), share=share)}")
    if _finite(trial.noise_db):
        parts.append(f"output SNR {trial.noise_db:.1f} dB")
    times = []
    if _finite(trial.latency_ms):
        times.append(format_ms(trial.latency_ms))
    if _finite(trial.latency_ratio):
        times.append(f"{format_percent(trial.latency_ratio)} of the original's time")
    if times:
        parts.append(", ".join(times))
    if _finite(trial.average_bits):
        parts.append(f"{format_number(trial.average_bits or 0.0)} bits a weight")
    return tuple(parts)


def find_front(trials: Sequence[Trial]) -> tuple[bool, ...]:
    """Whether each trial is on the front of size, time and quality.

    As the trials say it; where none does, worked out from their figures. A figure that was not
    measured cannot speak for a trial.
    """
    if any(trial.front for trial in trials):
        return tuple(trial.front for trial in trials)
    keys = [
        (
            float(trial.size_bytes),
            _or_infinite(trial.latency_ratio),
            # Noise tells apart what the drop, counted in samples, does not: it only breaks ties.
            (_or_infinite(trial.drop), -_or_infinite(trial.noise_db, sign=-1)),
        )
        for trial in trials
    ]
    found = []
    for i, mine in enumerate(keys):
        beaten = any(
            other[0] <= mine[0]
            and other[1] <= mine[1]
            and other[2] <= mine[2]
            and (other != mine or j < i)
            for j, other in enumerate(keys)
            if j != i
        )
        found.append(mine[2] != (math.inf, math.inf) and not beaten)
    return tuple(found)


def _or_infinite(value: float | None, *, sign: int = 1) -> float:
    return value if value is not None and math.isfinite(value) else sign * math.inf


def write_change(value: float, *, share: bool) -> str:
    """A change of the metric: in percent for shares of 1."""
    if abs(value) < 1e-12:
        return "0 %" if share else "0"
    if share:
        return format_percent(value, signed=True)
    return f"{'+' if value > 0 else ''}{format_number(value)}".replace("-", "−")


def _quality_of(evidence: Evidence) -> Literal["drop", "noise"] | None:
    """What stands for quality: "drop" of the metric or "noise" in decibels."""
    if any(_finite(trial.drop) for trial in evidence.trials):
        return "drop"
    if any(_finite(trial.noise_db) for trial in evidence.trials):
        return "noise"
    return None


def _mark_front(points: Sequence[Point]) -> list[Point]:
    """Those that nothing else beats, and which are labelled: all where they are few."""
    best = -math.inf
    front = set()
    for point in sorted(points, key=lambda p: (p.x, -p.y, p.number)):
        if point.y > best:
            best = point.y
            front.add(point.number)
    few = len(points) <= _FEW
    return [
        replace(p, front=p.number in front, named=few or p.number in front or p.kind != "tried")
        for p in points
    ]


def _limits(
    evidence: Evidence, across: str, up: str, quality: str | None, *, share: bool, in_ms: bool
) -> list[Limit]:
    budget, latency = evidence.budget, evidence.latency_ms
    found = []
    if up == "quality" and quality == "drop" and budget.max_drop is not None:
        text = f"your limit: {write_change(-budget.max_drop, share=share)}"
        found.append(Limit("y", -budget.max_drop, text))
    if across == "size" and budget.max_size_bytes is not None:
        text = f"your limit: {format_bytes(budget.max_size_bytes)}"
        found.append(Limit("x", float(budget.max_size_bytes), text))
    if across == "download" and budget.max_download_bytes is not None:
        text = f"your limit: {format_bytes(budget.max_download_bytes)}"
        found.append(Limit("x", float(budget.max_download_bytes), text))
    slowest = budget.max_latency_ms
    if slowest is not None and (in_ms or latency is not None):
        value = slowest if in_ms or latency is None else slowest / latency.original
        text = f"your limit: {format_ms(slowest)}"
        if across == "time":
            found.append(Limit("x", value, text))
        elif up == "time":
            found.append(Limit("y", -value, text))
    return found


def _near(limit: Limit, points: Sequence[Point]) -> bool:
    """Whether a limit can be shown without pressing the points together."""
    values = [p.x if limit.axis == "x" else p.y for p in points]
    low, high = min(values), max(values)
    reach = max(high - low, 0.3 * max(abs(low), abs(high)))
    return low - reach <= limit.value <= high + reach or (limit.axis == "y" and limit.value < 0)


def _clip_drop(
    points: Sequence[Point], max_drop: float | None, *, share: bool
) -> tuple[list[Point], float | None]:
    """Points that lost far more than any that matters are put at the lower edge.

    Otherwise one ruined model would press all the others into one line.
    """
    chosen = max((-p.y for p in points if p.kind == "chosen"), default=0.0)
    losses = sorted(-p.y for p in points)
    middle = losses[len(losses) // 2]
    matters = max(3 * (max_drop or 0.0), 3 * chosen, 2 * middle, 0.005)
    if losses[-1] <= 1.5 * matters:
        return list(points), None
    floor = -1.3 * max(max_drop or 0.0, *(loss for loss in losses if loss <= matters))
    floor = min(floor, -0.25 * matters)
    return [
        replace(p, y=floor, clipped="down", label=f"{p.label} ({write_change(p.y, share=share)})")
        if p.y < floor
        else p
        for p in points
    ], floor


def _cap_noise(points: Sequence[Point]) -> list[Point]:
    """Above 60 dB (an error of 0.1 %) outputs are as good as equal: those go to the upper edge."""
    chosen = max((p.y for p in points if p.kind == "chosen"), default=0.0)
    ceiling = max(60.0, chosen + 10)
    return [
        replace(p, y=ceiling, clipped="up", label=f"{p.label} ({p.y:.0f} dB)")
        if p.y > ceiling
        else p
        for p in points
    ]


def _clip_time(points: Sequence[Point], across: str, *, in_ms: bool) -> list[Point]:
    """Points far slower than the original and the chosen go to the edge: no one will take them."""
    time_of: Callable[[Point], float] = (lambda p: p.x) if across == "time" else (lambda p: -p.y)
    known = [time_of(p) for p in points if p.kind in ("original", "chosen")]
    times = sorted(time_of(p) for p in points)
    slowest = 1.6 * max(known or times[len(times) // 2 : len(times) // 2 + 1])
    if times[-1] <= 1.5 * slowest:
        return list(points)
    write = _write_time(in_ms=in_ms)
    return [
        p
        if time_of(p) <= slowest
        else replace(
            p,
            x=slowest if across == "time" else p.x,
            y=p.y if across == "time" else -slowest,
            clipped="right" if across == "time" else "down",
            label=f"{p.label} ({write(time_of(p))})",
        )
        for p in points
    ]


def _write_change(*, share: bool) -> Callable[[float], str]:
    return lambda value: write_change(value, share=share)


def _write_db(value: float) -> str:
    return f"{value:g} dB"


def _write_time(*, in_ms: bool) -> Callable[[float], str]:
    # Ticks are round numbers: no zeros to fill them up.
    return (lambda ms: f"{round(ms, 9):g} ms") if in_ms else format_percent


def _negated(write: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: write(-value if value else 0.0)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
