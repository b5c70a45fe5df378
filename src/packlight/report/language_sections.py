"""The parts of a language model's page below its first screen, from evidence to HTML."""

from __future__ import annotations

import math
from collections import Counter

from packlight.measure.language_evidence import LanguageEvidence, TensorEvidence
from packlight.report.bars import Bar, draw_bars
from packlight.report.sections import write_fold, write_table
from packlight.report.units import format_bytes, format_number, format_percent, format_seconds
from packlight.report.visible import escape, escape_prose
from packlight.report.wording import count

_ROWS = 12
_TEXT_SHOWN = 1200
_LINE_END = "\n"


def write_run(how_to_run: str) -> str:
    """The lines that run the result, ready to copy."""
    if not how_to_run.strip():
        return ""
    code = escape(how_to_run.strip("\n"), limit=20_000, keep="\n\t")
    return f'<pre tabindex="0"><code>{code}</code></pre>'


def write_answers(evidence: LanguageEvidence) -> str:
    """What both models write after the same words, side by side."""
    if not evidence.continuations:
        return ""
    rows = [
        tuple(
            f"<bdi>{escape(text, limit=_TEXT_SHOWN, keep=_LINE_END)}</bdi>"
            for text in (one.prompt, one.original, one.compressed)
        )
        for one in evidence.continuations
    ]
    table = write_table(
        ("After these words", "the original writes", "the compressed one writes"),
        rows,
        numbers=set(),
        name="What both models write",
    )
    same = sum(one.original == one.compressed for one in evidence.continuations)
    told = (
        "Both choose the most probable token each time. Once they differ in one, what follows is "
        "another text, which may be as good: read it, and judge by the figures at the top. "
        f"{same} of {count(len(rows), 'text')} are the same to the end."
    )
    return f'<p>{escape_prose(told)}</p><div class="answers">{table}</div>'


def write_removed(evidence: LanguageEvidence) -> str:
    """A row for each block that went, in their order."""
    if not evidence.removed:
        return ""
    rows = [
        (
            str(one.number),
            "" if one.kl is None else format_number(one.kl),
            "" if one.influence is None else format_number(one.influence),
        )
        for one in evidence.removed
    ]
    heads = ("Block", "KL divergence", "Influence")
    table = write_table(heads, rows, numbers={0, 1, 2}, name="Blocks that were removed")
    told = (
        f"{count(len(rows), 'block')} of {evidence.blocks}, in the order in which they went, "
        "numbered from 0 as in the original. The divergence is that of the model without the "
        "block and those above it, on text for choosing, before the blocks that stay were fitted "
        "to make up for it. Influence says how much a block turns what passes through it."
    )
    return f"<p>{escape_prose(told)}</p><div>{table}</div>"


def write_types(evidence: LanguageEvidence) -> str:
    """A row for each type, its tensors, weights and bytes; bars of where the bytes are."""
    if not evidence.tensors:
        return ""
    groups: dict[str, list[TensorEvidence]] = {}
    for tensor in evidence.tensors:
        groups.setdefault(tensor.type, []).append(tensor)
    ordered = sorted(groups.items(), key=lambda group: -sum(_bytes(one) for one in group[1]))
    rows = [
        (
            f"<code>{escape(kind, limit=40)}</code>",
            f"{len(tensors):,}",
            f"{sum(one.weights for one in tensors):,}",
            format_number(tensors[0].bits),
            format_bytes(sum(_bytes(one) for one in tensors)),
        )
        for kind, tensors in ordered
    ]
    heads = ("Type", "Tensors", "Weights", "Bits a weight", "Bytes")
    table = write_table(heads, rows, numbers={1, 2, 3, 4}, name="Tensors by type")
    kinds = Counter(one.type for one in evidence.tensors)
    told = f"{count(sum(kinds.values()), 'tensor')}, in {count(len(kinds), 'type')}."
    return f"<p>{escape_prose(told)}</p><div>{table}</div>"


def write_losses(evidence: LanguageEvidence) -> str:
    """How far each tensor's output is off on the calibration text, worst first."""
    measured = [
        (one, one.error)
        for one in evidence.tensors
        if one.error is not None and math.isfinite(one.error) and one.error > 0
    ]
    if not measured:
        return ""
    worst = sorted(measured, key=lambda pair: -pair[1])[:_ROWS]
    bars = [Bar(one.name, one.type, math.sqrt(error), None) for one, error in worst]
    table = draw_bars(
        bars,
        caption="Error by tensor",
        write=lambda share: f"{format_number(100 * share, digits=2)}&nbsp;%",
        heads=("Tensor", "Error", "Off by"),
    )
    hidden = len(measured) - len(worst)
    tail = ""
    if hidden:
        tail = (
            f'<p class="fine">{count(hidden, "other tensor")} lost less; see the table below.</p>'
        )
    intro = (
        "How far what a layer gives is off on the calibration text, on average, when this layer "
        "alone is compressed."
    )
    return f"<p>{escape_prose(intro)}</p>{table}{tail}"


def write_language_trials(evidence: LanguageEvidence) -> str:
    """What was tried, smallest first."""
    rows = [
        (
            f"<bdi>{escape(one.label, limit=120)}</bdi>"
            + (' <span class="pill">chosen</span>' if one.chosen else ""),
            format_bytes(one.size_bytes),
            "" if one.mean_kl is None else format_number(one.mean_kl),
            "" if one.top_agreement is None else format_percent(one.top_agreement),
            escape_prose(one.note),
        )
        for one in sorted(evidence.trials, key=lambda trial: trial.size_bytes)
    ]
    if not rows:
        return ""
    heads = ("Version", "Size", "Mean KL", "Same first choice", "Note")
    fine = "These figures come from text for choosing; those at the top from other text."
    table = write_table(heads, rows, numbers={1, 2, 3}, name="Everything that was tried")
    return f'{table}<p class="fine">{fine}</p>'


def write_left_alone(evidence: LanguageEvidence) -> str:
    """What was not compressed, by reason."""
    groups: dict[str, list[str]] = {}
    for skipped in evidence.not_compressed:
        groups.setdefault(skipped.reason, []).append(skipped.name)
    items = []
    for reason, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        told = " ".join(
            f"<code><bdi>{escape(name, limit=120)}</bdi></code>" for name in names[:_ROWS]
        )
        more = f" and {len(names) - _ROWS:,} more" if len(names) > _ROWS else ""
        items.append(
            f'<dt>{escape_prose(reason)} <span class="count">{len(names):,}</span></dt>'
            f"<dd>{told}{more}</dd>"
        )
    return f'<dl class="kept">{"".join(items)}</dl>' if items else ""


def write_tensors(evidence: LanguageEvidence) -> str:
    """Every tensor with all that is known of it, folded away."""
    rows = [
        (
            f"<bdi>{escape(one.name, limit=160)}</bdi>",
            f"<code>{escape(one.type, limit=40)}</code>",
            format_number(one.bits),
            f"{one.weights:,}",
            "" if one.error is None else format_percent(math.sqrt(max(one.error, 0.0))),
            escape_prose(one.reason),
        )
        for one in evidence.tensors
    ]
    if not rows:
        return ""
    heads = ("Tensor", "Type", "Bits a weight", "Weights", "Off by", "Why")
    table = write_table(heads, rows, numbers={2, 3, 4}, name="All tensors")
    return write_fold(f"Show all {count(len(rows), 'tensor')} in the order of the file", table)


def write_language_method(evidence: LanguageEvidence) -> str:
    """Text, runtime, notes and environment."""
    facts: list[tuple[str, str]] = [
        ("Model", f"{evidence.architecture}, {count(evidence.parameters, 'weight')}")
    ]
    if evidence.text:
        facts.append(("Text", evidence.text))
    if evidence.divergence is not None:
        facts.append(
            (
                "Predictions",
                "read off both files in their runtime; each window starts anew, and all positions "
                "but its last count; 95 % intervals by resampling windows",
            )
        )
    speed = evidence.speed
    if speed is not None:
        facts.append(
            (
                "Speed",
                f"{speed.runtime}, {count(speed.threads, 'thread')}: reading "
                f"{count(speed.prompt_tokens, 'token')} at once, then writing "
                f"{speed.generated_tokens:,}; both files in turns after a warm-up, and the 95 % "
                "interval of the ratio by bootstrap",
            )
        )
    if evidence.peak_memory_bytes is not None:
        facts.append(("Peak memory", "of a fresh process that loads the file, reads and writes"))
    facts.append(("Took", f"{format_seconds(evidence.seconds)}, seed {evidence.seed}"))
    facts += sorted(evidence.environment.items())
    rows = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape_prose(said)}</dd></div>" for what, said in facts
    )
    notes = ""
    if evidence.notes:
        items = "".join(f"<li>{escape_prose(note)}</li>" for note in evidence.notes)
        notes = f'<h3>Notes</h3><ul class="notes">{items}</ul>'
    return f'<dl class="facts">{rows}</dl>{notes}'


def _bytes(tensor: TensorEvidence) -> float:
    return tensor.bits * tensor.weights / 8
