"""A plot of all that was tried, as one inline SVG.

Left is better, up is better. Colours come from the page's style sheet through classes, so that
the plot is light or dark with the page; nothing is scripted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from packlight.report.labels import Box, find_leader, place_label, text_width
from packlight.report.views import Limit, Point, View
from packlight.report.visible import escape

_MARK_PX = 5.5
_SMALL_MARK_PX = 4.0
_FAR = 4.0
"""Sizes that are so many times one another stand on a logarithmic scale."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 46


@dataclass(frozen=True)
class _Axis:
    """A scale from values to pixels, linear or (for positive values) logarithmic."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start_px + (value - low) / (high - low) * (self.end_px - self.start_px)

    def ticks(self, wanted: int) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                fine = [step * 10.0**power for power in decades for step in steps]
                fine = [value for value in fine if self.low <= value <= self.high]
                if len(fine) <= 2 * wanted:
                    break
            return fine[:: max(1, math.ceil(len(fine) / (2 * wanted)))]
        step = _round_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class Layout:
    """A view on `width` x `height` pixels: scales that say where each point lies."""

    view: View
    width: int
    height: int
    area: Box
    across: _Axis
    upwards: _Axis

    def place(self, point: Point) -> tuple[float, float]:
        """The pixel of a point, from the upper left."""
        return self.across.place(point.x), self.upwards.place(point.y)


def lay_out(view: View, *, width: int, height: int) -> Layout:
    """Scales that show all points of the view and its limits."""
    area = Box(_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    xs = [p.x for p in view.points] + [a.value for a in view.limits if a.axis == "x"]
    ys = [p.y for p in view.points] + [a.value for a in view.limits if a.axis == "y"]
    # What is a tenth as large is as far away as what is ten times as large.
    log = view.name != "time-quality" and 0 < _FAR * min(xs) < max(xs)
    across = _span(xs, area.left, area.right, log=log)
    return Layout(view, width, height, area, across, _span(ys, area.bottom, area.top))


def draw(layout: Layout, *, name: str, numbers: bool = False) -> str:
    """The layout as SVG.

    name: makes its element ids unique in the page.
    numbers: label all but the chosen one by its number in the table, for small screens.
    """
    view, area = layout.view, layout.area
    points = list(view.points)
    if numbers:
        points = [replace(p, label=str(p.number)) if p.kind == "tried" else p for p in points]
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {layout.width} {layout.height}" '
        f'width="{layout.width}" height="{layout.height}" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(view.title)}</title>',
        f'<desc id="{name}-desc">{escape(view.described, limit=2000)}</desc>',
        *_draw_axes(layout),
        *_draw_front(layout),
    ]
    taken = [_mark_box(*layout.place(point)) for point in points]
    for limit in view.limits:
        place = (layout.across if limit.axis == "x" else layout.upwards).place(limit.value)
        parts += _draw_limit(area, limit, place, taken)
    parts += _draw_points(points, layout, taken)
    return "\n".join([*parts, "</svg>"])


def _span(values: Sequence[float], start_px: float, end_px: float, *, log: bool = False) -> _Axis:
    low, high = min(values), max(values)
    if log:
        pad = (high / low) ** 0.08
        return _Axis(low / pad, high * pad, start_px, end_px, log=True)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - pad, high + pad, start_px, end_px)


def _round_step(rough: float) -> float:
    """The 1, 2 or 5 times a power of ten that is nearest to `rough` as a factor."""
    power = 10.0 ** math.floor(math.log10(rough))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))


def _draw_axes(layout: Layout) -> list[str]:
    area, view = layout.area, layout.view
    parts = []
    for value in layout.upwards.ticks(5):
        y = layout.upwards.place(value)
        parts.append(
            f'<line class="grid" x1="{area.left}" x2="{area.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{area.left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{view.write_y(value)}</text>"
        )
    for value in layout.across.ticks(max(3, round((area.right - area.left) / 110))):
        x = layout.across.place(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{area.top}" y2="{area.bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{area.bottom + 17}" text-anchor="middle">'
            f"{view.write_x(value)}</text>"
        )
    parts.append(
        f'<text class="axis" x="{area.left}" y="{area.bottom + 38}">{view.better_x}</text>'
        f'<text class="axis" x="{area.right}" y="{area.bottom + 38}" text-anchor="end">'
        f"{view.better_y}</text>"
    )
    return parts


def _draw_front(layout: Layout) -> list[str]:
    """The Pareto front as steps: for each x the best that can be had with so much."""
    front = sorted((p for p in layout.view.points if p.front), key=lambda p: (p.x, p.y))
    if len(front) < 2:
        return []
    x, y = layout.place(front[0])
    path = f"M{x:.1f} {y:.1f}"
    for point in front[1:]:
        x, y = layout.place(point)
        path += f"H{x:.1f}V{y:.1f}"
    return [f'<path class="front-line" d="{path}"/>']


def _draw_limit(area: Box, limit: Limit, place: float, taken: list[Box]) -> list[str]:
    """A dashed line at the user's limit; its label goes where no dot is."""
    width = text_width(limit.text)
    if limit.axis == "y":
        line = Box(area.left, place - 1, area.right, place + 1)
        ends = f'x1="{area.left}" x2="{area.right}" y1="{place:.1f}" y2="{place:.1f}"'
        corners = [
            (right - width, top)
            for top in (place + 3, place - 18)
            for right in (area.right - 4, area.left + 4 + width)
        ]
    else:
        line = Box(place - 1, area.top, place + 1, area.bottom)
        ends = f'x1="{place:.1f}" x2="{place:.1f}" y1="{area.top}" y2="{area.bottom}"'
        corners = [
            (left, top)
            for top in (area.top + 2, area.bottom - 17)
            for left in (place + 5, place - 5 - width)
        ]
    boxes = [Box(left, top, left + width, top + 15) for left, top in corners]
    free = (
        box for box in boxes if box.within(area) and not any(box.meets(other) for other in taken)
    )
    label = next(free, None)
    parts = [f'<line class="limit" {ends}/>']
    taken.append(line)
    if label is not None:
        taken.append(label)
        parts.append(
            f'<text class="limit-label" x="{label.right:.1f}" y="{label.bottom - 4:.1f}" '
            f'text-anchor="end">{escape(limit.text)}</text>'
        )
    return parts


def _draw_points(points: Sequence[Point], layout: Layout, taken: list[Box]) -> list[str]:
    marks, labels = [], []
    small = any(not point.named for point in points)
    # The chosen one and the original get the best places, then the front; from left to right.
    order = sorted(
        points, key=lambda p: (p.kind != "chosen", p.kind != "original", not p.front, p.x, p.y)
    )
    for point in order:
        x, y = layout.place(point)
        marks.append(_draw_mark(point, x, y, small=small))
        for text in (point.label, str(point.number) if point.number else ""):
            nearest = 15 if point.kind == "chosen" else 10
            box = None
            if text and point.named:
                box = place_label(text, x, y, nearest, layout.area, taken)
            if box is not None:
                taken.append(box)
                labels.append(_draw_label(point, text, box, x, y))
                break
    # Chosen last, so that it lies on top of its neighbours; labels over the crowd.
    return [*reversed(marks), *labels] if small else [*labels, *reversed(marks)]


def _draw_mark(point: Point, x: float, y: float, *, small: bool) -> str:
    kind = f"mark {point.kind}{' front' if point.front else ''}"
    if point.clipped:  # an arrow to where it really lies
        turn = {"down": 0, "right": -90, "up": 180}[point.clipped]
        return (
            f'<path d="M-6 -5h12l-6 10z" transform="translate({x:.1f} {y:.1f}) rotate({turn})" '
            f'class="{kind}"/>'
        )
    if point.kind == "original":
        return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" class="{kind}"/>'
    radius = _SMALL_MARK_PX if small and not point.front else _MARK_PX
    radius = 7 if point.kind == "chosen" else radius
    mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>'
    if point.kind == "chosen":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11.5" class="ring"/>{mark}'
    return mark


def _draw_label(point: Point, text: str, box: Box, x: float, y: float) -> str:
    line = find_leader(x, y, box)
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


def _mark_box(x: float, y: float) -> Box:
    return Box(x - 8, y - 8, x + 8, y + 8)
