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
        parts += _titled("Layers, the costliest first", _show_layers(anatomy.layers))
    parts += _titled("Operators", _show_operators(anatomy))
    groups: dict[str, list[str]] = {}
    for node in anatomy.not_layers:
        groups.setdefault(f"{node.op}: {node.reason}", []).append(node.name)
    if groups:
        lines = [f"{reason} ({_name(names)})" for reason, names in groups.items()]
        parts += _titled("Multiplies matrices, but cannot be compressed", *_list(lines))
    found = []
    for item in anatomy.redundancies:
        saves = f", {format_bytes(item.bytes)} to save" if item.bytes else ""
        found.append(f"{item.kind}{saves}: {visible(item.detail)} ({_name(item.names)})")
    parts += _titled("What looks redundant or special", *_list(found or ["nothing was found"]))
    if anatomy.targets:
        able = [f"{visible(name)}: {visible(said, limit=500)}" for name, said in anatomy.targets]
        parts += _titled("Targets that run it", *_list(able))
    return Group(*parts)


def _show_head(anatomy: Anatomy) -> Table:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in anatomy.opsets)
    layers = format_percent(anatomy.layer_bytes / max(1, anatomy.parameter_bytes))
    rows = [
        ("model", f"{anatomy.path}, {format_bytes(anatomy.size_bytes)}"),
        ("inputs", "; ".join(str(spec) for spec in anatomy.inputs)),
        ("outputs", "; ".join(str(spec) for spec in anatomy.outputs)),
        ("made by", f"{anatomy.producer or 'unknown'}, opset {opsets}"),
        ("nodes", _count(anatomy.nodes)),
        (
            "parameters",
            f"{_count(anatomy.parameters)} ({format_bytes(anatomy.parameter_bytes)}, {layers} of "
            "them in the layers below)",
        ),
        ("MACs", f"{_count(anatomy.macs)} multiply-accumulates for one sample"),
    ]
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
    table = _table("layer", "kind", "weight", "bytes", "", "MACs", "", *(["time", ""] * timed))
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
    cells = [*head, format_bytes(size), _share(size, sums[0])]
    cells += ["?" if macs is None else _count(macs), _share(macs, sums[1])]
    if timed:
        cells += ["?" if ms is None else format_ms(ms), _share(ms, sums[2])]
    return [Text(cell) for cell in cells]


def _show_operators(anatomy: Anatomy) -> RenderableType:
    if not any(operator.ms is not None for operator in anatomy.operators):
        told = ", ".join(f"{item.count:,} {visible(item.op)}" for item in anatomy.operators)
        return Text(told or "none")
    table = _table("operator", "nodes", "time")
    table.columns[1].justify = table.columns[2].justify = "right"
    for item in sorted(anatomy.operators, key=lambda item: -(item.ms or 0.0)):
        ms = "not measured" if item.ms is None else format_ms(item.ms)
        table.add_row(Text(visible(item.op)), f"{item.count:,}", ms)
    return table


def _titled(title: str, *parts: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold"), *parts]


def _list(lines: Iterable[str]) -> list[RenderableType]:
    return [Text(f"- {visible(line, limit=600)}") for line in lines]


def _name(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(visible(name, limit=60) or "unnamed" for name in names[:_NAMES])
    more = len(names) - _NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _table(*heads: str) -> Table:
    return Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _share(part: float | None, whole: float) -> str:
    return "" if part is None or whole <= 0 else f"{100 * part / whole:.0f} %"


def _count(number: int) -> str:
    """A count: whole below a million, in millions and billions above."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{format_number(number / size)} {unit}"
    return f"{number:,}"
