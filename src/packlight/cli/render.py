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
    from packlight.transport import Transport

_PIPE_WIDTH = 110
# How a target's latency is got.
_MEASURED = {
    "onnxruntime": "here, in onnxruntime",
    "openvino": "here, in OpenVINO where it is installed",
    "browser": "here, in a headless browser where one is installed",
    "predicted": "no: latency is predicted from this machine's processor",
}


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
        here = _MEASURED[target.measured]
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


def print_transport(done: Transport, *, packing: bool) -> None:
    """A row a file, the whole, what was left out, and where the result lies."""
    console = _console()
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("file")
    for name in ("bytes", "packed", "ratio"):
        table.add_column(name, justify="right")
    table.add_column("how" if packing else "")
    tensors = 0
    for file in done.files:
        tensors += file.packed_bytes
        packed = f"{file.packed_bytes:,}" if file.packed_bytes else ""
        ways = ", ".join(file.methods)
        table.add_row(Text(visible(file.name)), f"{file.size_bytes:,}", packed, "", ways)
    rest = done.packed_bytes - tensors
    table.add_row("graph, names and text", "", f"{rest:,}", "", "together")
    ratio = f"{done.size_bytes / max(done.packed_bytes, 1):.2f}"
    table.add_row("all", f"{done.size_bytes:,}", f"{done.packed_bytes:,}", ratio, "")
    console.print(table)
    console.print()
    if done.left_out:
        names = visible(", ".join(done.left_out))
        console.print(Text(f"Left out:  {names} (--with-report packs them too)"), soft_wrap=True)
    what = "Packed:" if packing else "Unpacked:"
    console.print(Text(f"{what:<11}{visible(str(done.path))}"), soft_wrap=True)


def _console() -> Console:
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)
