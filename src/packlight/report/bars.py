"""Bars by layer: a table whose rows carry two thin bars, original above compressed.

A table, since it is what a screen reader and a phone can use; the bars are inline
SVGs that stretch with their cell, and every number stands beside them as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packlight.report.visible import escape


@dataclass(frozen=True)
class Bar:
    """One row: what it is, and its amounts before and after (`after` None: one bar only).

    summed: it stands for several layers, and so is told in numbers only.
    """

    name: str
    detail: str
    before: float
    after: float | None
    summed: bool = False


def keep_largest(bars: Sequence[Bar], *, rows: int) -> tuple[Bar, ...]:
    """The `rows` largest bars in falling order, and one that sums the rest."""
    ordered = sorted(bars, key=lambda bar: -max(bar.before, bar.after or 0.0))
    if len(ordered) <= rows + 1:  # a sum of one layer would save no row
        return tuple(ordered)
    shown, rest = ordered[:rows], ordered[rows:]
    after = None if all(bar.after is None for bar in rest) else sum(b.after or 0.0 for b in rest)
    before = sum(bar.before for bar in rest)
    return (*shown, Bar(f"{len(rest):,} smaller layers together", "", before, after, summed=True))


def draw_bars(
    bars: Sequence[Bar], *, caption: str, write: Callable[[float], str], heads: tuple[str, ...]
) -> str:
    """The bars as an HTML table; `write` turns an amount into text.

    `heads` names the columns: (what, bar, amount) or (what, bar, before, after).
    """
    amounts = [v for bar in bars if not bar.summed for v in (bar.before, bar.after or 0.0)]
    longest = max((value for value in amounts if math.isfinite(value)), default=0.0) or 1.0
    # Roles are written out because a phone's layout takes the table display away.
    lines = [
        f'<table class="bars" role="table"><caption>{escape(caption)}</caption>',
        '<thead role="rowgroup"><tr role="row">',
        *(f'<th role="columnheader" scope="col">{escape(head)}</th>' for head in heads),
        '</tr></thead><tbody role="rowgroup">',
    ]
    for bar in bars:
        detail = f' <span class="op">{escape(bar.detail)}</span>' if bar.detail else ""
        name = f"<bdi>{escape(bar.name, limit=120)}</bdi>{detail}"
        cells = [
            f'<th role="rowheader" scope="row">{name}</th>',
            f'<td role="cell" class="bar">{"" if bar.summed else _draw_pair(bar, longest)}</td>',
            f'<td role="cell" class="number before">{write(bar.before)}</td>',
        ]
        if len(heads) > 3:
            after = "" if bar.after is None else write(bar.after)
            cells.append(f'<td role="cell" class="number after">{after}</td>')
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _draw_pair(bar: Bar, longest: float) -> str:
    if bar.after is None:
        rects = _rect(bar.before, longest, y=4, height=10, kind="compressed")
    else:
        rects = _rect(bar.before, longest, y=1, height=7, kind="original")
        rects += _rect(bar.after, longest, y=10, height=7, kind="compressed")
    return f'<svg width="100%" height="18" aria-hidden="true" focusable="false">{rects}</svg>'


def _rect(value: float, longest: float, *, y: int, height: int, kind: str) -> str:
    share = value / longest if math.isfinite(value) and value > 0 else 0.0
    width = max(100 * min(1.0, share), 0.4 if value > 0 else 0.0)
    return f'<rect class="{kind}" x="0" y="{y}" width="{width:.2f}%" height="{height}" rx="2"/>'
