"""Two files side by side, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from packlight.report.report_json import to_plain
from packlight.report.table import render_plain
from packlight.report.visible import visible


def comparison_to_json(
    first: Path, second: Path, figures: Mapping[str, Any], samples: str
) -> dict[str, Any]:
    """The figures of two files; original is the first, compressed the second."""
    return {
        "schema": 1,
        "first": str(first),
        "second": str(second),
        "samples": samples,
        **{name: to_plain(figure) for name, figure in figures.items()},
    }


def comparison_table(first: Path, second: Path, figures: Mapping[str, Any], samples: str) -> str:
    """A plain-text table: A, B, and B against A."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "A", "B", "B against A"):
        table.add_column(title, justify="left" if not title else "right")
    rows: list[tuple[str, str, str, str]] = []
    metric = figures["metric"]
    if metric is not None:
        low, high = metric["drop_interval_95"]
        rows.append(
            (
                f"{metric['name']} ({metric['samples']} samples)",
                f"{metric['original']:.4f}",
                f"{metric['compressed']:.4f}",
                f"{-metric['drop']:+.4f}  [{-high:+.4f}, {-low:+.4f}]",
            )
        )
        if metric["agreement"] is not None:
            rows.append(("same top answer", "", f"{metric['agreement']:.2%}", ""))
        if metric["noise_db"] is not None:
            rows.append(("output signal to noise", "", f"{metric['noise_db']:.1f} dB", ""))
    for key, title in (("latency", "latency"), ("latency_all_threads", "latency")):
        latency = figures[key]
        if latency is not None:
            low, high = latency["ratio_interval_95"]
            threads = latency["threads"]
            rows.append(
                (
                    f"{title}, {threads} thread{'s' if threads > 1 else ''}",
                    f"{latency['original']:.3g} ms",
                    f"{latency['compressed']:.3g} ms",
                    f"{latency['ratio']:.2f} x  [{low:.2f}, {high:.2f}]",
                )
            )
    for key, title in (("memory", "peak memory"), ("size", "size")):
        pair = figures[key]
        if pair is not None:
            one, other = pair["original"], pair["compressed"]
            rows.append(
                (title, f"{one / 1e3:,.0f} KB", f"{other / 1e3:,.0f} KB", f"{other / one:.2f} x")
            )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    head = f"A: {visible(str(first))}\nB: {visible(str(second))}\nsamples: {visible(samples)}\n\n"
    notes = "".join(f"\n- {visible(note, limit=1000)}" for note in figures["notes"])
    return head + render_plain(table) + notes
