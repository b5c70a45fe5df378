"""What the commands print on a terminal, or as plain text on a pipe.

All text is put into rich as `Text`, so that a name in square brackets is no markup,
and made visible, so that it is no escape sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from packlight.cli.anatomy import show_anatomy
from packlight.measure.evidence import Evidence
from packlight.report.table import show_evidence
from packlight.report.visible import visible

if TYPE_CHECKING:
    from packlight.graph.anatomy import Anatomy

_PIPE_WIDTH = 110


def print_result(evidence: Evidence, folder: Path) -> None:
    """Verdict, table, and where the result lies."""
    console = _console()
    console.print(show_evidence(evidence))
    console.print()
    for what, name in (("Model", "model.onnx"), ("Report", "report.html")):
        line = f"{what + ':':<8}{visible(str(folder / name))}"
        console.print(Text(line), soft_wrap=True)


def print_targets(targets: Sequence[Any]) -> None:
    """One block a target: what runs fast on it, what not, and whether it can be measured here."""
    console = _console()
    for number, target in enumerate(targets):
        if number:
            console.print()
        head = Text(visible(target.name), style="bold cyan")
        console.print(head.append(f"  {visible(target.title)}", style="default"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=8, style="dim")
        grid.add_column()
        here = "yes" if target.measured_here else "no: sizes and accuracy only"
        rows = [("runtime", target.runtime), ("fast", "; ".join(target.fast))]
        rows += [("avoid", "; ".join(target.avoid)), ("measured", here), ("note", target.note)]
        for what, said in rows:
            if said:
                grid.add_row(f"  {what}", Text(visible(said, limit=1000)))
        console.print(grid)


def print_anatomy(anatomy: Anatomy) -> None:
    """Where the bytes and the milliseconds are, and what was found."""
    console = _console()
    console.print(show_anatomy(anatomy))


def _console() -> Console:
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)
