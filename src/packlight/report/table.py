"""The before/after table and the verdict line, for a terminal or a text file."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from packlight.measure.evidence import Evidence
from packlight.report.device_file import describe_device_file
from packlight.report.tuning import describe_tuning
from packlight.report.visible import visible
from packlight.report.wording import (
    NOT_MEASURED,
    VERDICTS,
    Figure,
    as_sentence,
    explain_gain,
    list_figures,
    state_request,
    state_verdict,
)

STYLES = {"met": "bold green", "best-effort": "bold yellow", "not-worth-it": "bold red"}
_TONES = {"better": "green", "worse": "red", "same": "", "unknown": "dim"}
_NOTES_SHOWN = 6


def show_evidence(evidence: Evidence) -> RenderableType:
    """Verdict, before/after table, reason and notes as one rich renderable.

    All text is put in as `Text`, so that a name in square brackets is no markup.
    """
    parts: list[RenderableType] = []
    if evidence.metric is None:
        parts += [Text(NOT_MEASURED, style="yellow"), Text()]
    verdict = Text(f"{VERDICTS[evidence.verdict]}. ", style=STYLES[evidence.verdict])
    parts.append(
        verdict.append(Text(visible(state_verdict(evidence), limit=1000), style="default"))
    )
    parts += [Text(), figures_table(list_figures(evidence))]
    said = [as_sentence(evidence.reason), explain_gain(evidence), *describe_device_file(evidence)]
    said.append(state_request(evidence))
    parts += [Text(), *(Text(visible(text, limit=1000)) for text in said if text)]
    told = (*describe_tuning(evidence.tuning), *evidence.notes[:_NOTES_SHOWN])
    notes = [Text(f"- {visible(note)}", style="dim") for note in told]
    if len(evidence.notes) > _NOTES_SHOWN:
        more = len(evidence.notes) - _NOTES_SHOWN
        notes.append(Text(f"- and {more} more notes in report.html", style="dim"))
    if notes:
        parts += [Text(), *notes]
    return Group(*parts)


def evidence_table(evidence: Evidence, *, width: int = 100) -> str:
    """The same as plain text, `width` columns wide, without colours or trailing spaces."""
    return render_plain(show_evidence(evidence), width=width)


def render_plain(renderable: RenderableType, *, width: int = 100) -> str:
    """Any rich renderable as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().split("\n"))


def figures_table(figures: Iterable[Figure]) -> Table:
    """The before/after table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("change")
    table.add_column("95 % interval", style="dim")
    for figure in figures:
        table.add_row(
            Text(visible(figure.name, limit=60)),
            Text(figure.before),
            Text(figure.after, style="bold"),
            Text(figure.change, style=_TONES[figure.tone]),
            Text(figure.spread),
        )
    return table
