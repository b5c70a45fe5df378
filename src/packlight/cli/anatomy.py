"""The anatomy of a model for a terminal: its layers by cost, and what looks redundant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from packlight.report.units import format_bytes, format_ms, format_number, format_percent
from packlight.report.visible import visible

if TYPE_CHECKING:
    from packlight.graph.anatomy import Anatomy, LayerAnatomy

_ROWS = 20
_NAMES = 4


def show_anatomy(anatomy: Anatomy) -> RenderableType:
    """Head, layers (costliest first), operators, what cannot be compressed, what is redundant."""
    parts: list[RenderableType] = [_show_head(anatomy)]
    if anatomy.layers:
        parts += titled("Layers, the costliest first", _show_layers(anatomy.layers))
    parts += titled("Operators", _show_operators(anatomy))
    groups: dict[str, list[str]] = {}
    for node in anatomy.not_layers:
        groups.setdefault(f"{node.op}: {node.reason}", []).append(node.name)
    if groups:
        lines = [f"{reason} ({_name(names)})" for reason, names in groups.items()]
        parts += titled("Multiplies matrices, but cannot be compressed", *listed(lines))
    found = []
    for item in anatomy.redundancies:
        saves = f", {format_bytes(item.bytes)} to save" if item.bytes else ""
        found.append(f"{item.kind}{saves}: {visible(item.detail)} ({_name(item.names)})")
    parts += titled("What looks redundant or special", *listed(found or ["nothing was found"]))
    if anatomy.targets:
        able = [f"{visible(name)}: {visible(said, limit=500)}" for name, said in anatomy.targets]
        parts += titled("Targets that run it", *listed(able))
    return Group(*parts)


def _show_head(anatomy: Anatomy) -> Table:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in anatomy.opsets)
    layers = format_percent(anatomy.layer_bytes / max(1, anatomy.parameter_bytes))
    rows = [
        ("model", f"{anatomy.path}, {format_bytes(anatomy.size_bytes)}"),
        ("inputs", "; ".join(str(spec) for spec in anatomy.inputs)),
        ("outputs", "; ".join(str(spec) for spec in anatomy.outputs)),
        ("made by", f"{anatomy.producer or 'unknown'}, opset {opsets}"),
        ("nodes", say_count(anatomy.nodes)),
        (
            "parameters",
            f"{say_count(anatomy.parameters)} ({format_bytes(anatomy.parameter_bytes)}, {layers} "
            "of them in the layers below)",
        ),
        ("MACs", f"{say_count(anatomy.macs)} multiply-accumulates for one sample"),
    ]
    return facts(rows)


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """What is known of the whole, a line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for what, said in rows:
        grid.add_row(what, Text(visible(said, limit=1000)))
    return grid


def _show_layers(layers: Sequence[LayerAnatomy]) -> Table:
    """By time where it was measured, else by bytes; the rest is summed, so that it adds up."""
    timed = any(layer.ms is not None for layer in layers)
    ordered = sorted(layers, key=lambda layer: (-(layer.ms or 0.0), -layer.bytes))
    table = plain_table("layer", "kind", "weight", "bytes", "", "MACs", "", *(["time", ""] * timed))
    for index, column in enumerate(table.columns):
        column.justify = "right" if index > 2 else "left"
        column.overflow = "fold"
    sums = (
        sum(layer.bytes for layer in layers),
        sum(layer.macs or 0 for layer in layers),
        sum(layer.ms or 0.0 for layer in layers),
    )
    for layer in ordered[:_ROWS]:
        inside = "".join(f"{part}/" for part in layer.graph_path)
        shape = "×".join(map(str, layer.weight_shape))
        head = (f"{visible(inside + layer.name, limit=80)}", visible(layer.op), shape)
        table.add_row(*_cells(head, (layer.bytes, layer.macs, layer.ms), sums, timed=timed))
    rest = ordered[_ROWS:]
    if rest:
        held = (
            sum(layer.bytes for layer in rest),
            sum(layer.macs or 0 for layer in rest),
            sum(layer.ms or 0.0 for layer in rest),
        )
        head = (f"{len(rest):,} others together", "", "")
        table.add_row(*_cells(head, held, sums, timed=timed), style="dim")
    return table


def _cells(
    head: tuple[str, str, str],
    costs: tuple[int, int | None, float | None],
    sums: tuple[int, int, float],
    *,
    timed: bool,
) -> list[Text]:
    """The cells of one row: each cost, and its share of the sum of all layers."""
    size, macs, ms = costs
    cells = [*head, format_bytes(size), say_share(size, sums[0])]
    cells += ["?" if macs is None else say_count(macs), say_share(macs, sums[1])]
    if timed:
        cells += ["?" if ms is None else format_ms(ms), say_share(ms, sums[2])]
    return [Text(cell) for cell in cells]


def _show_operators(anatomy: Anatomy) -> RenderableType:
    if not any(operator.ms is not None for operator in anatomy.operators):
        told = ", ".join(f"{item.count:,} {visible(item.op)}" for item in anatomy.operators)
        return Text(told or "none")
    table = plain_table("operator", "nodes", "time")
    table.columns[1].justify = table.columns[2].justify = "right"
    for item in sorted(anatomy.operators, key=lambda item: -(item.ms or 0.0)):
        ms = "not measured" if item.ms is None else format_ms(item.ms)
        table.add_row(Text(visible(item.op)), f"{item.count:,}", ms)
    return table


def titled(title: str, *parts: RenderableType) -> list[RenderableType]:
    """Parts under a title, with a line of space above."""
    return [Text(), Text(title, style="bold"), *parts]


def listed(lines: Iterable[str]) -> list[RenderableType]:
    """A dash before each line."""
    return [Text(f"- {visible(line, limit=600)}") for line in lines]


def _name(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(visible(name, limit=60) or "unnamed" for name in names[:_NAMES])
    more = len(names) - _NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def plain_table(*heads: str) -> Table:
    """A table with a line below its head and none around it."""
    return Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def say_share(part: float | None, whole: float) -> str:
    """A part in percent of the whole; nothing where either is not known."""
    return "" if part is None or whole <= 0 else f"{100 * part / whole:.0f} %"


def say_count(number: int) -> str:
    """A count: whole below a million, in millions and billions above."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{format_number(number / size)} {unit}"
    return f"{number:,}"
