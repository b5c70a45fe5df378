"""The size/quality plot of all that was tried, as one inline SVG.

Left is smaller, up is better. Colours come from the page's style sheet through
classes, so that the plot is light or dark with the page; nothing is scripted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from packlight.measure.evidence import Evidence, Trial
from packlight.report.units import format_bytes, format_number, format_percent
from packlight.report.visible import escape, visible
from packlight.report.wording import SHARES

_FONT_PX = 12
_CHARACTER_PX = 6.6  # a cautious mean width at 12 px in the fonts that systems bring
_MARK_PX = 5.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 46


@dataclass(frozen=True)
class _Point:
    """One dot: size in bytes, quality upwards, its label and kind (a class of the style sheet)."""

    x: float
    y: float
    label: str
    kind: str
    hint: str
    number: int
    clipped: bool = False


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def within(self, other: _Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class _Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, wanted: int) -> list[float]:
        step = _round_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def draw_trials(
    evidence: Evidence, *, width: int, height: int, name: str, numbers: bool = False
) -> str:
    """The plot as an SVG of `width` x `height` pixels; empty when there is nothing to plot.

    name: makes its element ids unique in the page.
    numbers: label all but the chosen one by its number in the table, for small screens.

    Quality is the change of the metric where it was measured, else the signal-to-noise
    ratio of the outputs.
    """
    points, kind = _collect(evidence)
    if not points:
        return ""
    share = evidence.metric is None or evidence.metric.name in SHARES
    limit, floor = None, None
    if kind == "drop":
        limit = evidence.budget.max_drop
        points, floor = _clip(points, limit, share=share)
    elif kind == "noise":
        points = _cap_noise(points)
    if numbers:
        points = [replace(p, label=str(p.number)) if p.kind == "tried" else p for p in points]
    if limit is not None and floor is not None and -limit < floor:
        limit = None
    area = _Box(_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    across = _span([p.x for p in points], area.left, area.right)
    ys = [p.y for p in points] + ([-limit] if limit is not None else [])
    upwards = _span(ys, area.bottom, area.top)

    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">Size and quality of everything that was tried</title>',
        f'<desc id="{name}-desc">{escape(_describe(points, kind), limit=2000)}</desc>',
    ]
    parts += _draw_axes(area, across, upwards, kind=kind, share=share)
    taken = [_mark_box(across.place(p.x), upwards.place(p.y)) for p in points]
    if limit is not None:
        text = f"your limit: {_change(-limit, share)}"
        parts += _draw_limit(area, upwards.place(-limit), text, taken)
    parts += _draw_points(points, area, across, upwards, taken)
    return "\n".join([*parts, "</svg>"])


def _collect(evidence: Evidence) -> tuple[list[_Point], str]:
    """The points, and what their height is: "drop" of the metric or "noise" in decibels."""
    numbered = list(enumerate(evidence.trials, start=1))
    if any(_finite(trial.drop) for _, trial in numbered):
        kind = "drop"
    elif any(_finite(trial.noise_db) for _, trial in numbered):
        kind = "noise"
    else:
        return [], "none"
    points = []
    if kind == "drop":
        size = evidence.size_bytes.original
        points.append(_Point(size, 0.0, "original", "original", "", 0))
    for number, trial in numbered:
        value = trial.drop if kind == "drop" else trial.noise_db
        if value is None or not math.isfinite(value):
            continue
        points.append(
            _Point(
                x=trial.size_bytes,
                y=-value if kind == "drop" else value,
                label=visible(trial.label, limit=36),
                kind="chosen" if trial.chosen else "tried",
                hint=_hint(trial, share=evidence.metric is None or evidence.metric.name in SHARES),
                number=number,
            )
        )
    return points, kind


def _hint(trial: Trial, *, share: bool) -> str:
    parts = [visible(trial.label), format_bytes(trial.size_bytes)]
    if trial.drop is not None and math.isfinite(trial.drop):
        parts.append(f"change {_change(-trial.drop, share)}")
    if trial.noise_db is not None and math.isfinite(trial.noise_db):
        parts.append(f"{trial.noise_db:.1f} dB")
    return ", ".join(parts)


def _describe(points: Sequence[_Point], kind: str) -> str:
    tried = [p for p in points if p.kind != "original"]
    chosen = next((p.hint for p in tried if p.kind == "chosen"), "none of them")
    what = "change of the metric" if kind == "drop" else "signal-to-noise ratio of the outputs"
    return (
        f"{len(tried)} versions by size (across) and {what} (upwards). Chosen: {chosen}. "
        "All figures are in the table below the plot."
    )


def _clip(
    points: list[_Point], max_drop: float | None, *, share: bool
) -> tuple[list[_Point], float | None]:
    """Points that lost far more than any that matters are put at the lower edge.

    Otherwise one ruined model would press all the others into one line.
    """
    chosen = max((-p.y for p in points if p.kind == "chosen"), default=0.0)
    losses = sorted(-p.y for p in points)
    middle = losses[len(losses) // 2]
    matters = max(3 * (max_drop or 0.0), 3 * chosen, 2 * middle, 0.005)
    if losses[-1] <= 1.5 * matters:
        return points, None
    floor = -1.3 * max(max_drop or 0.0, *(loss for loss in losses if loss <= matters))
    floor = min(floor, -0.25 * matters)
    return [
        replace(p, y=floor, clipped=True, label=f"{p.label} ({_change(p.y, share)})")
        if p.y < floor
        else p
        for p in points
    ], floor


def _cap_noise(points: list[_Point]) -> list[_Point]:
    """Above 60 dB (an error of 0.1 %) outputs are as good as equal: those go to the upper edge."""
    chosen = max((p.y for p in points if p.kind == "chosen"), default=0.0)
    ceiling = max(60.0, chosen + 10)
    return [
        replace(p, y=ceiling, clipped=True, label=f"{p.label} ({p.y:.0f} dB)")
        if p.y > ceiling
        else p
        for p in points
    ]


def _span(values: Sequence[float], start_px: float, end_px: float) -> _Axis:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - pad, high + pad, start_px, end_px)


def _round_step(rough: float) -> float:
    """The 1, 2 or 5 times a power of ten that is nearest to `rough` as a factor."""
    power = 10.0 ** math.floor(math.log10(rough))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))


def _draw_axes(area: _Box, across: _Axis, upwards: _Axis, *, kind: str, share: bool) -> list[str]:
    parts = []
    for value in upwards.ticks(5):
        y = upwards.place(value)
        text = _change(value, share) if kind == "drop" else f"{value:g} dB"
        parts.append(
            f'<line class="grid" x1="{area.left}" x2="{area.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{area.left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{text}</text>"
        )
    for value in across.ticks(max(3, round((area.right - area.left) / 110))):
        x = across.place(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{area.top}" y2="{area.bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{area.bottom + 17}" text-anchor="middle">'
            f"{format_bytes(value)}</text>"
        )
    parts.append(
        f'<text class="axis" x="{area.left}" y="{area.bottom + 38}">← smaller file</text>'
        f'<text class="axis" x="{area.right}" y="{area.bottom + 38}" text-anchor="end">'
        "higher is better ↑</text>"
    )
    return parts


def _draw_limit(area: _Box, y: float, text: str, taken: list[_Box]) -> list[str]:
    """A dashed line at the user's limit; its label goes where no dot is."""
    width = _text_width(text)
    label = None
    for top in (y + 3, y - 18):
        for right in (area.right - 4, area.left + 4 + width):
            box = _Box(right - width, top, right, top + 15)
            if box.within(area) and not any(box.meets(other) for other in taken):
                label = label or box
    parts = [
        f'<line class="limit" x1="{area.left}" x2="{area.right}" y1="{y:.1f}" y2="{y:.1f}"/>',
    ]
    taken.append(_Box(area.left, y - 1, area.right, y + 1))
    if label is not None:
        taken.append(label)
        parts.append(
            f'<text class="limit-label" x="{label.right:.1f}" y="{label.bottom - 4:.1f}" '
            f'text-anchor="end">{text}</text>'
        )
    return parts


def _draw_points(
    points: Sequence[_Point], area: _Box, across: _Axis, upwards: _Axis, taken: list[_Box]
) -> list[str]:
    marks, labels = [], []
    # The chosen one and the original get the best places; then from left to right.
    order = sorted(points, key=lambda p: (p.kind != "chosen", p.kind != "original", p.x, p.y))
    for point in order:
        x, y = across.place(point.x), upwards.place(point.y)
        marks.append(_draw_mark(point, x, y))
        placed = None
        for text in (point.label, str(point.number) if point.number else ""):
            nearest = 15 if point.kind == "chosen" else 10
            placed = placed or (text and _place_label(text, x, y, nearest, area, taken))
        if placed:
            box, text = placed
            taken.append(box)
            labels.append(_draw_label(point, text, box, x, y))
    # Chosen last, so that it lies on top of its neighbours.
    return [*labels, *reversed(marks)]


def _draw_mark(point: _Point, x: float, y: float) -> str:
    title = f"<title>{escape(point.hint or point.label)}</title>"
    if point.clipped:  # an arrow to where it really lies
        rise = 10 if point.y < 0 else -10
        start = f"M{x - 6:.1f} {y - rise / 2:.1f}"
        shape = f'<path d="{start}h12l-6 {rise}z" class="mark {point.kind}">{title}</path>'
    elif point.kind == "original":
        shape = (
            f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" class="mark original">{title}</path>'
        )
    else:
        radius = 7 if point.kind == "chosen" else _MARK_PX
        shape = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="mark {point.kind}">'
            f"{title}</circle>"
        )
        if point.kind == "chosen":
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11.5" class="ring"/>{shape}'
    return shape


def _place_label(
    text: str, x: float, y: float, nearest: int, area: _Box, taken: Sequence[_Box]
) -> tuple[_Box, str] | None:
    """The first free place around the dot at (x, y), ever further away; None where all are full."""
    width, height = _text_width(text), _FONT_PX + 3
    others = [box for box in taken if not box.holds(x, y)]
    for reach in (nearest, nearest + 4, 22, 32, 44, 58, 76):
        for step_x, step_y in (
            *((1, 0), (-1, 0), (0, -1), (0, 1)),
            *((0.7, -0.8), (-0.7, -0.8), (0.7, 0.8), (-0.7, 0.8)),
        ):
            centre_x = x + step_x * reach + (width / 2 if step_x > 0 else -width / 2) * bool(step_x)
            centre_y = y + step_y * (reach + height / 2)
            box = _Box(
                centre_x - width / 2,
                centre_y - height / 2,
                centre_x + width / 2,
                centre_y + height / 2,
            )
            if (
                box.within(area)
                and not any(box.meets(other) for other in taken)
                and not _crosses(_leader(x, y, box), others)
            ):
                return box, text
    return None


def _leader(x: float, y: float, box: _Box) -> tuple[float, float, float, float] | None:
    """The line from a dot to its label, where the label is not plainly next to it."""
    near_x = min(max(x, box.left), box.right)
    near_y = min(max(y, box.top), box.bottom)
    far = math.hypot(near_x - x, near_y - y) > 18
    return (x, y, near_x, near_y) if far else None


def _crosses(line: tuple[float, float, float, float] | None, boxes: Sequence[_Box]) -> bool:
    if line is None:
        return False
    x, y, end_x, end_y = line
    steps = [index / 12 for index in range(1, 12)]
    path = [(x + t * (end_x - x), y + t * (end_y - y)) for t in steps]
    return any(box.holds(*place) for box in boxes for place in path)


def _draw_label(point: _Point, text: str, box: _Box, x: float, y: float) -> str:
    line = _leader(x, y, box)
    leader = ""
    if line is not None:
        start_x, start_y, end_x, end_y = line
        leader = (
            f'<line class="leader" x1="{start_x:.1f}" y1="{start_y:.1f}" '
            f'x2="{end_x:.1f}" y2="{end_y:.1f}"/>'
        )
    return (
        f'{leader}<text class="label {point.kind}" x="{(box.left + box.right) / 2:.1f}" '
        f'y="{box.bottom - 4:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


def _mark_box(x: float, y: float) -> _Box:
    return _Box(x - 8, y - 8, x + 8, y + 8)


def _text_width(text: str) -> float:
    return _CHARACTER_PX * len(text)


def _change(value: float, share: bool) -> str:
    if abs(value) < 1e-12:
        return "0 %" if share else "0"
    if share:
        return format_percent(value, signed=True)
    return f"{'+' if value > 0 else ''}{format_number(value)}".replace("-", "−")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
