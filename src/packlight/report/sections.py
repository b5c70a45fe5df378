"""The parts of the page below its first screen, each a function from evidence to HTML.

A part that has nothing to show is the empty string, and the page leaves it out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from packlight.measure.evidence import Evidence, LayerEvidence, Trial
from packlight.recipe import is_choice, parse_choice, size_only
from packlight.report.bars import Bar, draw_bars, keep_largest
from packlight.report.choices import GAINS, describe_choice, find_gain
from packlight.report.explorer import write_plots
from packlight.report.units import (
    format_bytes,
    format_ms,
    format_number,
    format_percent,
    format_seconds,
)
from packlight.report.views import find_front
from packlight.report.visible import escape, escape_prose
from packlight.report.wording import count, format_metric

_ROWS = 12
_TRIALS_SHOWN = 15
_NAMES_SHOWN = 8
_HELD_BITS = 7
"""Below, a file takes clearly more bits than its weights have."""
_LEGEND = (
    '<p class="legend"><span class="key original"></span>original '
    '<span class="key compressed"></span>compressed'
)


def write_use(evidence: Evidence, how_to_run: str) -> str:
    """The lines that run the result, ready to copy, and how it becomes one small file."""
    parts = []
    if how_to_run.strip():
        code = escape(how_to_run.strip("\n"), limit=20_000, keep="\n\t")
        parts.append(f'<pre tabindex="0"><code>{code}</code></pre>')
    if evidence.packed_bytes is not None:
        parts.append(
            "<p>To send it: <code>packlight pack DIR</code>, with the folder of this page for DIR, "
            f"makes one file of {_bytes(evidence.packed_bytes)} of the model and its recipe; "
            "<code>packlight unpack FILE</code> gives the same bytes back.</p>"
        )
    return "".join(parts)


def write_trials(evidence: Evidence) -> str:
    """The plots, for wide and for narrow screens, and the same figures as a table."""
    if not evidence.trials:
        return ""
    plots = write_plots(evidence)
    parts = []
    if plots:
        parts.append(
            "<p>Each dot is a whole model that was built and run; the ringed one is what you got. "
            "Left is better, up is better, and the line joins those that no other beats. Point at "
            "a dot, or reach it with the Tab and arrow keys, to read its figures.</p>"
            f"{plots}"
        )
    front = find_front(evidence.trials)
    numbered = list(enumerate(evidence.trials, start=1))
    ordered = sorted(numbered, key=lambda p: (not p[1].chosen, not front[p[0] - 1], p[0]))
    rows = [_trial_row(number, trial, front[number - 1], evidence) for number, trial in ordered]
    # A few fit on the screen; of many those that matter come first, and the others are folded.
    best = sum(front[number - 1] or trial.chosen for number, trial in numbered)
    shown = len(rows) if len(rows) <= _TRIALS_SHOWN else max(min(best, _TRIALS_SHOWN), 1)
    summary = f"All {count(len(rows), 'version')} in figures"
    if shown == len(rows):
        parts.append(
            write_fold(summary, _trial_table(rows, "Everything that was tried"), opened=True)
        )
    else:
        head = "Chosen, and what no other beats"
        if shown < best:
            head += f" (the first {shown} of {best})"
        parts.append(f"<h3>{escape(head)}</h3>{_trial_table(rows[:shown], head)}")
        parts.append(write_fold(summary, _trial_table(rows, "Everything that was tried")))
    parts.append(
        '<p class="fine">Loss and output SNR (signal-to-noise ratio) here come from the samples '
        "that were used for choosing; the figures at the top come from other samples.</p>"
    )
    return "".join(parts)


def _trial_row(number: int, trial: Trial, front: bool, evidence: Evidence) -> tuple[str, ...]:
    name = evidence.metric.name if evidence.metric is not None else "top-1 accuracy"
    pills = ' <span class="pill">chosen</span>' if trial.chosen else ""
    pills += ' <span class="pill front">front</span>' if front else ""
    times = [] if trial.latency_ms is None else [format_ms(trial.latency_ms)]
    if trial.latency_ratio is not None:
        times.append(format_percent(trial.latency_ratio))
    return (
        f"{number}",
        f"<bdi>{escape(trial.label, limit=120)}</bdi>{pills}",
        format_bytes(trial.size_bytes),
        "" if trial.packed_bytes is None else format_bytes(trial.packed_bytes),
        "" if trial.average_bits is None else format_number(trial.average_bits),
        "" if trial.drop is None else format_metric(name, trial.drop),
        "" if trial.noise_db is None else f"{format_number(trial.noise_db)} dB",
        ", ".join(times),
        escape_prose(trial.note),
    )


def _trial_table(rows: Sequence[Sequence[str]], name: str) -> str:
    heads = (
        *("No.", "Version", "Size", "Packed", "Bits a weight", "Loss", "Output SNR"),
        *("Time, of the original", "Note"),
    )
    table = write_table(heads, rows, numbers={0, 2, 3, 4, 5, 6, 7}, name=name)
    return f'<div class="trials">{table}</div>'


def write_bytes(evidence: Evidence) -> str:
    """Bytes by layer, largest first."""
    bars = [
        Bar(layer.name, layer.op, layer.bytes_original, layer.bytes_compressed)
        for layer in evidence.layers
    ]
    if not any(bar.before for bar in bars):
        return ""
    heads = ("Layer", "Bytes", "Before", "After")
    table = draw_bars(
        keep_largest(bars, rows=_ROWS), caption="Bytes by layer", write=_bytes, heads=heads
    )
    return f"{_LEGEND}</p>{table}"


def write_times(evidence: Evidence) -> str:
    """Milliseconds by layer, slowest first."""
    timed = [layer for layer in evidence.layers if layer.ms_original is not None]
    if not timed:
        return ""
    bars = [
        Bar(layer.name, layer.op, layer.ms_original or 0.0, layer.ms_compressed) for layer in timed
    ]
    shown = keep_largest(bars, rows=_ROWS)
    heads = ("Layer", "Milliseconds", "Before", "After")
    # As many decimals as make three digits of the slowest, the same in every row.
    slowest = max(max(bar.before, bar.after or 0.0) for bar in bars)
    decimals = max(0, 2 - math.floor(math.log10(slowest))) if slowest > 0 else 0
    table = draw_bars(
        shown,
        caption="Milliseconds by layer",
        write=lambda ms: f"{ms:,.{decimals}f}",
        heads=heads,
    )
    missing = len(evidence.layers) - len(timed)
    note = "Measured by the runtime's own profiler, which slows it a little: read the shares."
    if missing:
        note += (
            f" {count(missing, 'layer')} could not be told apart, having been fused with others."
        )
    return f'{_LEGEND}, in milliseconds</p>{table}<p class="fine">{escape_prose(note)}</p>'


def write_errors(evidence: Evidence) -> str:
    """How far each layer's output is off when it alone is compressed, worst first."""
    measured = [
        (layer, layer.error_db)
        for layer in evidence.layers
        if layer.error_db is not None and not math.isnan(layer.error_db)
    ]
    if not measured:
        return ""
    bars = [Bar(layer.name, layer.choice, _relative(db), None) for layer, db in measured]
    worst = sorted(bars, key=lambda bar: -bar.before)[:_ROWS]
    intro = (
        "How far the output of each layer is off, on average, when this layer alone is compressed. "
        "One layer at 10 % may matter less than another at 1 %, so whole models are measured too."
    )
    table = draw_bars(
        worst,
        caption="Error by layer",
        write=_percent_and_db,
        heads=("Layer", "Error", "Off by"),
    )
    hidden = len(measured) - len(worst)
    tail = ""
    if hidden:
        tail = f'<p class="fine">{count(hidden, "other layer")} lost less; see the table below.</p>'
    return f"<p>{escape_prose(intro)}</p>{table}{tail}"


def _smaller_only(choices: Counter[str]) -> str:
    """A sentence on the layers whose gain is the size of the file and nothing else."""
    words = [word for word in choices if is_choice(word) and size_only(word)]
    if not words:
        return ""
    layers = count(sum(choices[word] for word in words), "layer")
    return f" Size only, computed in float as before: {layers} ({', '.join(words)})."


def write_kept(evidence: Evidence) -> str:
    """What was not compressed, grouped by reason, and the account that adds up."""
    parts = []
    if evidence.layers:
        choices = Counter(layer.choice for layer in evidence.layers)
        told = ", ".join(f"{number:,} {choice}" for choice, number in choices.most_common())
        account = f"{count(len(evidence.layers), 'layer')}: {told}.{_smaller_only(choices)}"
        parts.append(f"<p>{escape_prose(account)}</p>")
    if not evidence.not_compressed:
        return "".join([*parts, "<p>Nothing was left alone.</p>"]) if parts else ""
    groups: dict[str, list[str]] = {}
    for skipped in evidence.not_compressed:
        groups.setdefault(skipped.reason, []).append(skipped.name)
    items = []
    for reason, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        first = _name_list(names[:_NAMES_SHOWN])
        rest = names[_NAMES_SHOWN:]
        more = write_fold(f"and {len(rest):,} more", f"<p>{_name_list(rest)}</p>") if rest else ""
        items.append(
            f'<dt>{escape_prose(reason)} <span class="count">{len(names):,}</span></dt>'
            f"<dd>{first}{more}</dd>"
        )
    return "".join([*parts, f'<dl class="kept">{"".join(items)}</dl>'])


def write_layers(evidence: Evidence) -> str:
    """The layers by choice, in words; every layer with all that is known of it, folded away."""
    if not evidence.layers:
        return ""
    rows = [_layer_row(layer) for layer in evidence.layers]
    heads = (
        "Layer",
        "Kind",
        "Choice",
        "Output SNR",
        "Before",
        "After",
        "ms before",
        "ms after",
        "Why",
    )
    table = write_table(heads, rows, numbers={3, 4, 5, 6, 7}, name="All layers")
    table = write_fold(f"Show all {count(len(rows), 'layer')} in the order of the model", table)
    return f"{_write_choices(evidence)}{table}"


def _write_choices(evidence: Evidence) -> str:
    """A row for each choice that was made, and the bits of a weight on average."""
    groups: dict[str, list[LayerEvidence]] = {}
    for layer in evidence.layers:
        groups.setdefault(layer.choice, []).append(layer)
    rows = []
    for choice, layers in sorted(groups.items(), key=lambda group: -len(group[1])):
        known = is_choice(choice)
        gain = GAINS[find_gain(choice)] if known and choice != "float32" else ""
        before = sum(layer.bytes_original for layer in layers)
        after = sum(layer.bytes_compressed for layer in layers)
        rows.append(
            (
                f"{len(layers):,}",
                describe_choice(choice),
                f"<code>{escape(choice, limit=40)}</code>",
                format_number(parse_choice(choice).bits) if known else "",
                format_bytes(before) if before else "",
                format_bytes(after) if before else "",
                gain,
            )
        )
    heads = ("Layers", "What became of them", "Choice", "Bits a weight", "Before", "After", "Gain")
    table = write_table(heads, rows, numbers={0, 3, 4, 5}, name="Layers by choice")
    return f'<div class="choices">{table}</div>{_write_average(evidence)}'


def _write_average(evidence: Evidence) -> str:
    bits = next((trial.average_bits for trial in evidence.trials if trial.chosen), None)
    if bits is None:
        return ""
    text = f"On average {format_number(bits)} bits a weight."
    packed = evidence.packed_bytes
    if packed is not None and bits < _HELD_BITS and packed < evidence.size_bytes.compressed:
        text += (
            " The runtime wants weights in whole bytes or half ones, so the file takes more; "
            f"packed it is {format_bytes(packed)}."
        )
    return f'<p class="fine">{escape_prose(text)}</p>'


def write_method(evidence: Evidence) -> str:
    """Samples, runtime, notes and environment."""
    facts: list[tuple[str, str]] = []
    if evidence.samples:
        facts.append(("Samples", evidence.samples))
    if evidence.inputs:
        facts.append(("Model inputs", "; ".join(evidence.inputs)))
    latency = evidence.latency_ms or evidence.latency_all_threads_ms
    if latency is not None:
        facts.append(
            (
                "Latency",
                f"{latency.runtime}, both files in turns in one process after a warm-up; "
                "median, and the 95 % interval of the ratio by bootstrap",
            )
        )
    if evidence.peak_memory_bytes is not None:
        facts.append(("Peak memory", "of a fresh process that loads the file and runs it"))
    metric = evidence.metric
    if metric is not None and metric.noise_db is not None:
        facts.append(("Output SNR", f"{format_number(metric.noise_db)} dB on the proof samples"))
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


def _layer_row(layer: LayerEvidence) -> tuple[str, ...]:
    return (
        f"<bdi>{escape(layer.name, limit=160)}</bdi>",
        escape(layer.op, limit=40),
        _name_choice(layer.choice),
        "" if layer.error_db is None else f"{format_number(layer.error_db)} dB",
        format_bytes(layer.bytes_original) if layer.bytes_original else "",
        format_bytes(layer.bytes_compressed) if layer.bytes_original else "",
        "" if layer.ms_original is None else format_number(layer.ms_original),
        "" if layer.ms_compressed is None else format_number(layer.ms_compressed),
        escape_prose(layer.reason),
    )


def _name_choice(word: str) -> str:
    """The word, and what it means for who does not know it."""
    about = describe_choice(word)
    meaning = f' <span class="op">{escape(about)}</span>' if about else ""
    return f"<code>{escape(word, limit=40)}</code>{meaning}"


def write_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int], name: str
) -> str:
    """A table of cells that are HTML already; columns that are all empty are left out."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    kind = {i: ' class="number"' if i in numbers else "" for i in kept}
    head = "".join(f'<th scope="col"{kind[i]}>{escape(heads[i])}</th>' for i in kept)
    body = "".join(
        f"<tr>{''.join(f'<td{kind[i]}>{row[i]}</td>' for i in kept)}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def write_fold(summary: str, body: str, *, opened: bool = False) -> str:
    """A part that opens when its summary is chosen; `body` is HTML already."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{body}</details>"


def _name_list(names: Sequence[str]) -> str:
    return " ".join(f"<code><bdi>{escape(name, limit=120)}</bdi></code>" for name in names)


def _relative(error_db: float) -> float:
    """Root-mean-square error as a share of the signal, from decibels."""
    return float(10 ** (-error_db / 20))


def _percent_and_db(share: float) -> str:
    if share <= 0:
        return "nothing"
    return f"{format_number(100 * share, digits=2)}&nbsp;% ({-20 * math.log10(share):.0f}&nbsp;dB)"


def _bytes(value: float) -> str:
    return format_bytes(value).replace(" ", "&nbsp;")
