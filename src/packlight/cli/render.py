"""What the commands print on a terminal, or as plain text on a pipe.

All text is put into rich as `Text`, so that a name in square brackets is no markup,
and made visible, so that it is no escape sequence.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from packlight.cli.anatomy import show_anatomy
from packlight.cli.language_anatomy import show_language_anatomy
from packlight.report.visible import visible

if TYPE_CHECKING:
    from packlight.api import Result
    from packlight.cli.choices import ChoiceLine
    from packlight.graph.anatomy import Anatomy
    from packlight.language.result import LanguageResult
    from packlight.llm.anatomy import LanguageAnatomy
    from packlight.proof import Verification
    from packlight.report.choices import Gain
    from packlight.transport import Transport

_PIPE_WIDTH = 110
# How a target's latency is got.
_MEASURED = {
    "onnxruntime": "here, in onnxruntime",
    "openvino": "here, in OpenVINO where it is installed",
    "browser": "here, in a headless browser where one is installed",
    "predicted": "no: latency is predicted from this machine's processor",
}


def print_result(result: Result | LanguageResult, folder: Path) -> None:
    """Verdict, table, and where the result lies."""
    console = _console()
    console.print(result)
    console.print()
    model = folder if result.model.is_dir() else folder / result.model.name
    lines = [("Model", str(model)), ("Report", str(folder / "report.html"))]
    packed = getattr(result.evidence, "packed_bytes", None)
    if packed is not None and result.verdict != "not-worth-it":
        lines.append(("To download", f"packlight pack {shlex.quote(str(folder))}"))
    width = max(len(what) for what, _ in lines) + 3
    for what, said in lines:
        console.print(Text(f"{what + ':':<{width}}{visible(said)}"), soft_wrap=True)


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


# The groups in which choices are listed: what they gain, and how they come by it.
_GROUPS: tuple[tuple[Gain, str], ...] = (
    ("none", "Left as it is"),
    ("speed", "Smaller and faster: the runtime computes in integers, where the target can"),
    (
        "exactness",
        "Smaller and finer: few runtimes compute with 16-bit activations, so seldom faster",
    ),
    ("memory", "Smaller in memory too: weights stay packed in blocks of 32 while the model runs"),
    ("file", "Smaller file only: weights become floats when the model is loaded; no faster"),
)


def print_choices(choices: Sequence[ChoiceLine]) -> None:
    """A block for each kind of gain, and how to use the words."""
    console = _console()
    for gain, title in _GROUPS:
        console.print(Text(title, style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=21, style="cyan")
        grid.add_column(min_width=17, justify="right", style="dim")
        grid.add_column()
        for one in choices:
            if one.gain == gain:
                bits = f"{one.bits:.2f}".rstrip("0").rstrip(".")
                unit = "bit" if one.bits == 1 else "bits"
                grid.add_row(f"  {one.choice}", f"{bits} {unit} a weight", one.what)
        console.print(grid)
        console.print()
    for line in (
        "Bits count the weights of the packed file (packlight pack), with the scales of blocks; in "
        "model.onnx itself most weights take 8 or 4 bits.",
        "weights-coded takes any number of bits from 0.05 to 6, as in weights-coded0.35; "
        "weights-sparse any share of zeros, or so many kept of so many, as in "
        "weights-sparse0.8-int4 and weights-sparse4:8.",
        "packlight compress chooses by itself; --pin LAYER=CHOICE and --forbid CHOICE overrule it.",
    ):
        console.print(Text(line, style="dim"))


def print_anatomy(anatomy: Anatomy | LanguageAnatomy) -> None:
    """Where the bytes and the milliseconds are, and what was found."""
    from packlight.graph.anatomy import Anatomy

    console = _console()
    if not isinstance(anatomy, Anatomy):
        console.print(show_language_anatomy(anatomy))
    else:
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


_SIGNS = {
    "passed": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "not-checked": ("·", "dim"),
}


def print_verification(found: Verification) -> None:
    """The verdict, and a line for each check."""
    from packlight.proof.verification import SAID

    console = _console()
    color = {"proven": "green", "intact": "yellow", "failed": "bold red"}[found.verdict]
    console.print(Text(SAID[found.verdict], style=color))
    console.print()
    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column(overflow="fold")
    for check in found.checks:
        sign, style = _SIGNS[check.status]
        grid.add_row(Text(sign, style=style), check.name, Text(visible(check.said, limit=1000)))
    console.print(grid)
    if found.seal:
        console.print()
        console.print(Text(f"Seal:  {found.seal}", style="dim"), soft_wrap=True)


def _console() -> Console:
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)
