"""The anatomy of a language model for a terminal: what it is, its tensors, and files to expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from packlight.cli.anatomy import facts, listed, plain_table, say_count, say_share, titled
from packlight.report.units import format_bytes, format_number
from packlight.report.visible import visible

if TYPE_CHECKING:
    from packlight.llm.anatomy import FileSize, LanguageAnatomy, TensorAnatomy

_ROWS = 40


def show_language_anatomy(anatomy: LanguageAnatomy) -> RenderableType:
    """Head, tensors by role, sizes of files to expect, what stays in 32 bits, notes."""
    parts: list[RenderableType] = [facts(_describe(anatomy))]
    parts += titled("Tensors, the largest first", _show_tensors(anatomy))
    if anatomy.files:
        title = "A GGUF file, were all tensors of one type (packlight compress mixes them)"
        parts += titled(title, _show_files(anatomy.files, anatomy.size_bytes))
    kept: dict[str, list[TensorAnatomy]] = {}
    for one in anatomy.tensors:
        if one.kept:
            kept.setdefault(one.kept, []).append(one)
    if kept:
        lines = [
            f"{reason}: {_several(len(ones), 'tensor')}, "
            f"{say_count(sum(one.weights for one in ones))} weights"
            for reason, ones in kept.items()
        ]
        parts += titled("Kept in 32 bits", *listed(lines))
    if anatomy.notes:
        parts += titled("Notes", *listed(anatomy.notes))
    return Group(*parts)


def _describe(anatomy: LanguageAnatomy) -> Iterator[tuple[str, str]]:
    known = "" if anatomy.known else " (not known here: what tensors are for is guessed)"
    bits = 8 * anatomy.size_bytes / max(anatomy.parameters, 1)
    yield "model", f"{anatomy.path}, {format_bytes(anatomy.size_bytes)} of tensors"
    yield "architecture", f"{anatomy.architecture}{known}"
    yield "parameters", f"{say_count(anatomy.parameters)}, {format_number(bits)} bits each"
    yield "blocks", f"{anatomy.blocks}, {anatomy.width:,} wide"
    shared = f", {anatomy.key_value_heads} of keys and values"
    yield "heads", f"{anatomy.heads}{shared}, {anatomy.head_width} wide"
    experts = ""
    if anatomy.experts:
        experts = f" in each of {anatomy.experts} experts, {anatomy.experts_used} used for a token"
    yield "feed-forward", f"{anatomy.feed_forward:,} hidden units{experts}"
    tied = "; the output head is the embedding" if anatomy.tied else ""
    yield "vocabulary", f"{anatomy.vocabulary:,} tokens{tied}"
    window = f", {anatomy.sliding_window:,} in some blocks" if anatomy.sliding_window else ""
    yield "context", f"{anatomy.context:,} tokens{window}"
    template = "with" if anatomy.chat_template else "without"
    yield "tokenizer", f"{anatomy.tokenizer or 'none'}, {template} a chat template"


def _show_tensors(anatomy: LanguageAnatomy) -> Table:
    """Tensors that differ in nothing but their block share a row."""
    groups: dict[tuple[str, str, tuple[int, ...], str], list[TensorAnatomy]] = {}
    for one in anatomy.tensors:
        name = one.name.replace(f".{one.block}.", ".*.", 1)
        groups.setdefault((name, one.role, one.shape, one.type), []).append(one)
    ordered = sorted(groups.items(), key=lambda group: -sum(one.bytes for one in group[1]))
    table = plain_table("tensor", "role", "number", "shape", "stored as", "bytes", "")
    for index in (2, 5, 6):
        table.columns[index].justify = "right"
    table.columns[0].overflow = "fold"
    for (name, role, shape, kind), ones in ordered[:_ROWS]:
        size = sum(one.bytes for one in ones)
        cells = (visible(name, limit=80), role, f"{len(ones):,}", "×".join(map(str, shape)), kind)
        share = say_share(size, anatomy.size_bytes)
        table.add_row(*map(Text, (*cells, format_bytes(size), share)))
    rest = [one for _, ones in ordered[_ROWS:] for one in ones]
    if rest:
        size = sum(one.bytes for one in rest)
        share = say_share(size, anatomy.size_bytes)
        head = (f"{len(ordered) - _ROWS:,} other kinds", "", f"{len(rest):,}", "", "")
        table.add_row(*map(Text, (*head, format_bytes(size), share)), style="dim")
    return table


def _show_files(files: Sequence[FileSize], original: int) -> Table:
    table = plain_table("type", "bits a weight", "file", "", "")
    for index in (1, 2, 3):
        table.columns[index].justify = "right"
    for one in files:
        others = ", ".join(f"{count} in {kind}" for kind, count in one.others.items())
        said = f"{others} instead" if others else ""
        cells = (
            one.type,
            f"{one.bits:.2f}",
            format_bytes(one.bytes),
            say_share(one.bytes, original),
        )
        table.add_row(*(Text(cell) for cell in (*cells, said)))
    return table


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
