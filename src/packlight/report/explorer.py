"""The plots of all that was tried, to be explored without any script.

Radio buttons before the plots switch between them, by the style sheet alone. Over each plot lie
radio buttons, one a dot: the whole group is one stop of the Tab key, arrow keys walk from dot to
dot, a finger or the mouse picks one, and what is known of it stands next to it.
"""

from __future__ import annotations

from packlight.measure.evidence import Evidence
from packlight.report.plot import Layout, draw, lay_out
from packlight.report.views import NAMES, TITLES, Point, View, collect_view
from packlight.report.visible import escape, escape_prose


def write_plots(evidence: Evidence) -> str:
    """All views that there are figures for; empty where there is none."""
    names = sorted(NAMES, key=lambda name: name != "download-quality") if _asks(evidence) else NAMES
    views = [view for name in names if (view := collect_view(evidence, name)) is not None]
    if not views:
        return ""
    picks = "".join(
        f'<input class="hidden" type="radio" name="view" id="show-{view.name}"'
        f"{' checked' if not index else ''}>"
        for index, view in enumerate(views)
    )
    tabs = "".join(
        f'<label for="show-{view.name}">{escape(TITLES[view.name])}</label>' for view in views
    )
    switch = f'{picks}<div class="switch">{tabs}</div>' if len(views) > 1 else ""
    alone = "" if len(views) > 1 else " alone"
    bodies = "".join(
        f'<div class="view view-{view.name}{alone}"><h3 class="printed">{escape(view.title)}</h3>'
        f"{_write_view(view)}</div>"
        for view in views
    )
    return f'<div class="plots" role="group" aria-label="Plots">{switch}{bodies}</div>'


def _asks(evidence: Evidence) -> bool:
    """Whether the download is what the user looks at."""
    return evidence.preset == "smallest" or evidence.budget.max_download_bytes is not None


def _write_view(view: View) -> str:
    wide = lay_out(view, width=880, height=440)
    narrow = lay_out(view, width=340, height=360)
    return (
        f'<div class="wide">{_write_canvas(wide, f"{view.name}-wide", numbers=False)}</div>'
        f'<div class="narrow">{_write_canvas(narrow, f"{view.name}-narrow", numbers=True)}'
        '<p class="fine">The numbers are those of the table below.</p></div>'
    )


def _write_canvas(layout: Layout, name: str, *, numbers: bool) -> str:
    # From left to right: the arrow keys then walk along the plot.
    points = sorted(layout.view.points, key=lambda p: (p.x, -p.y, p.number))
    dots = "".join(_write_dot(point, layout, name) for point in points)
    return (
        f'<div class="canvas">{draw(layout, name=name, numbers=numbers)}'
        f'<div class="dots" role="radiogroup" aria-label="{escape(layout.view.title)}">{dots}</div>'
        "</div>"
    )


def _write_dot(point: Point, layout: Layout, name: str) -> str:
    x, y = layout.place(point)
    left, top = 100 * x / layout.width, 100 * y / layout.height
    # A tip opens towards the middle, where there is room for it.
    side = f"{'to-left' if left > 50 else 'to-right'} {'upwards' if top > 55 else 'downwards'}"
    checked = " checked" if point.kind == "chosen" else ""
    number = f"{point.number}. " if point.number else ""
    lines = "".join(f"<span>{escape_prose(hint)}</span>" for hint in point.hints[1:])
    said = escape(", ".join([*point.hints, *(["on the front"] if point.front else [])]), limit=600)
    return (
        f'<label class="dot {point.kind}" style="left:{left:.2f}%;top:{top:.2f}%">'
        f'<input type="radio" name="dot-{name}" aria-label="{number}{said}"{checked}>'
        f'<span class="tip {side}" aria-hidden="true"><b>{number}'
        f"<bdi>{escape(point.hints[0], limit=80)}</bdi></b>{lines}</span></label>"
    )
