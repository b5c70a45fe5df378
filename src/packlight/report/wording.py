"""What the evidence says, in words and rows: shared by the page and the terminal.

Every sentence here is for someone who has never heard of quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from packlight.measure.evidence import (
    Budget,
    Evidence,
    LatencyEvidence,
    LayerEvidence,
    MetricEvidence,
)
from packlight.recipe import is_choice, size_only
from packlight.report.units import (
    format_bytes,
    format_ms,
    format_number,
    format_percent,
    format_times,
)

Tone = Literal["better", "worse", "same", "unknown"]

SHARES = frozenset({"top-1 accuracy", "top-1 agreement", "explained variance"})
"""Metrics that are shares of 1, and so are written in percent."""

_FAR_SMALLER = 1.5
"""A packed file that is so many times smaller than the file itself is worth a word."""

VERDICTS = {
    "met": "Budget met",
    "best-effort": "Best effort",
    "not-worth-it": "Not worth it",
}

WISHES = {
    "balanced": "a fast model, then a small one",
    "fastest": "the fastest model",
    "smallest": "the smallest download",
    "lossless": "nothing rounded",
}
"""What each preset wishes for."""

NOT_MEASURED = (
    "Accuracy could not be measured: no real samples were given. Try the compressed model on your "
    "own data before you rely on it, or run again with --data."
)


@dataclass(frozen=True)
class Figure:
    """One row of the before/after table; `spread` is the 95 % interval of `change`, or empty."""

    name: str
    before: str
    after: str
    change: str
    spread: str = ""
    tone: Tone = "unknown"


def list_figures(evidence: Evidence) -> tuple[Figure, ...]:
    """The rows of the before/after table: size, download, latencies, memory, metric."""
    size = evidence.size_bytes
    rows = [compare_amounts("Size", size.original, size.compressed)]
    if evidence.packed_bytes is not None:
        rows.append(compare_amounts("Download, once packed", size.original, evidence.packed_bytes))
    latencies = (evidence.latency_ms, evidence.latency_all_threads_ms)
    rows += [_latency(latency) for latency in latencies if latency is not None]
    thinning = evidence.thinning
    if thinning is not None:
        fewer = 1 - thinning.macs_left / max(thinning.macs_original, 1)
        rows.append(
            Figure(
                "Multiplications, one sample",
                f"{thinning.macs_original:,}",
                f"{thinning.macs_left:,}",
                f"{format_percent(fewer)} fewer",
                tone="better",
            )
        )
    memory = evidence.peak_memory_bytes
    if memory is not None:
        rows.append(compare_amounts("Peak memory", memory.original, memory.compressed))
    metric = evidence.metric
    if metric is None:
        rows.append(Figure("Accuracy", "not measured", "not measured", "not known"))
    else:
        rows.append(_metric(metric, evidence.budget.max_drop))
        if metric.agreement is not None and metric.name != "top-1 agreement":
            share = format_percent(metric.agreement)
            rows.append(Figure("Same answer as the original", "100 %", share, ""))
    return tuple(rows)


def state_verdict(evidence: Evidence) -> str:
    """The verdict in one sentence: how much smaller, how much faster, and is it still right."""
    found = _smaller_and_faster(evidence)
    metric = evidence.metric
    if evidence.verdict == "not-worth-it":
        lead = f"Keep your original model: the best version found is {found}"
    else:
        lead = f"Your model is {found}"
    if metric is None:
        return f"{lead}, but whether it still gives the right answers is not known."
    lead += f", and {_still_right(metric)}"
    limit = evidence.budget.max_drop
    over = limit is not None and not metric.drop <= limit
    if limit is None or (evidence.verdict == "not-worth-it" and not over):
        return f"{lead}."
    allowed = format_metric(metric.name, limit)
    if over:
        return f"{lead}: more is lost than the {allowed} you allow."
    if metric.proven:
        return f"{lead}: within the loss of {allowed} that you allow, with 95 % certainty."
    return f"{lead}: probably within the loss of {allowed} that you allow, but not proven."


def explain_proof(metric: MetricEvidence) -> str:
    """What the interval of the metric means, and how many samples would make a proof."""
    low, high = (format_metric(metric.name, end) for end in metric.drop_interval_95)
    text = (
        f"Measured on {count(metric.samples, 'sample')} that were used for nothing else. "
        f"With 95 % certainty the loss of {metric.name} lies between {low} and {high}."
    )
    if metric.proven:
        return text
    if metric.samples_needed is not None:
        return f"{text} A proof would need about {metric.samples_needed:,} samples."
    return f"{text} That does not prove the budget."


def list_budget(budget: Budget, metric_name: str = "top-1 accuracy") -> tuple[tuple[str, str], ...]:
    """What the user asked for, as (what, limit) pairs; empty when they asked for nothing."""
    rows = []
    if budget.max_drop is not None:
        rows.append(("Loss of quality at most", format_metric(metric_name, budget.max_drop)))
    if budget.max_size_bytes is not None:
        rows.append(("Size at most", format_bytes(budget.max_size_bytes)))
    if budget.max_latency_ms is not None:
        rows.append(("Latency at most", format_ms(budget.max_latency_ms)))
    if budget.max_download_bytes is not None:
        rows.append(("Packed download at most", format_bytes(budget.max_download_bytes)))
    return tuple(rows)


def state_request(evidence: Evidence) -> str:
    """What the user asked for, in one sentence: the preset and the limits."""
    name = evidence.metric.name if evidence.metric is not None else "top-1 accuracy"
    wish = WISHES.get(evidence.preset, "")
    said = [f"{wish} (preset {evidence.preset})" if wish else f"preset {evidence.preset}"]
    said += [f"{what.lower()} {limit}" for what, limit in list_budget(evidence.budget, name)]
    return f"Asked for: {'; '.join(said)}."


def explain_gain(evidence: Evidence) -> str:
    """Which gains are of size only, plainly; empty where every compressed layer is computed in
    fewer bits or held in them.
    """
    changed = [layer for layer in evidence.layers if layer.choice != "float32"]
    only = sum(_is_decoded(one) for one in changed)
    if not only:
        return ""
    if only == len(changed):
        text = (
            "Only the file is smaller: when the model is loaded, the weights become floats again "
            "and are computed with as before, in as much memory."
        )
        latency = evidence.latency_ms or evidence.latency_all_threads_ms
        if latency is not None and _speed_factor(latency) > 1:
            text += " What it gained in speed comes from the simpler graph."
        return text
    verb, whose = ("is", "its") if only == 1 else ("are", "their")
    return (
        f"{only:,} of {count(len(changed), 'compressed layer')} {verb} smaller in the file only: "
        f"when the model is loaded, {whose} weights become floats again."
    )


def _is_decoded(layer: LayerEvidence) -> bool:
    """Whether weights become floats when the file is loaded; rows that are looked up do not."""
    looked_up = layer.op == "Gather" and layer.choice == "weights-int8"
    return is_choice(layer.choice) and size_only(layer.choice) and not looked_up


def as_sentence(text: str) -> str:
    """With a capital letter at the beginning and a full stop at the end."""
    text = text.strip()
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def format_metric(name: str, value: float) -> str:
    """A metric or a drop of it: in percent for shares of 1, else a plain number."""
    if name in SHARES:
        return format_percent(value)
    return format_number(value, digits=4).replace("-", "−")


def count(number: int, noun: str) -> str:
    """`1 sample`, `2,000 samples`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _smaller_and_faster(evidence: Evidence) -> str:
    size = find_factor(evidence.size_bytes.original, evidence.size_bytes.compressed)
    smaller = say_factor(size, "smaller", "larger", "of the same size")
    latency = evidence.latency_ms or evidence.latency_all_threads_ms
    asides = _download_aside(evidence, size)
    if latency is None:
        return f"{smaller} ({', '.join([*asides, 'its speed was not measured'])})"
    if asides:
        smaller += f" ({asides[0]})"
    speed = _speed_factor(latency)
    faster = say_factor(speed, "faster", "slower", "about as fast as before")
    agree = (size >= 1) == (speed >= 1) or 1.0 in (size, speed)
    return f"{smaller} {'and' if agree else 'but'} {faster}"


def _download_aside(evidence: Evidence, size: float) -> list[str]:
    """How much smaller the packed file is, where that is wished for or says far more."""
    packed = evidence.packed_bytes
    if not packed:
        return []
    factor = find_factor(evidence.size_bytes.original, packed)
    wished = evidence.preset in ("smallest", "lossless")
    wished = wished or evidence.budget.max_download_bytes is not None
    if factor == 1.0 or not (wished or factor > _FAR_SMALLER * size):
        return []
    said = say_factor(factor, "smaller", "larger", "")
    return [f"{said.removesuffix(' smaller')} once packed for download"]


def _still_right(metric: MetricEvidence) -> str:
    samples = f"on {count(metric.samples, 'sample')}"
    before, after = (format_metric(metric.name, v) for v in (metric.original, metric.compressed))
    if metric.name == "top-1 agreement":
        return f"{samples} it gave the same answers {after} of the time"
    if metric.name == "top-1 accuracy":
        return f"{samples} it was right {after} of the time (before: {before})"
    if metric.name == "explained variance":
        return f"{samples} its outputs matched the original's to {after}"
    return f"{samples} its {metric.name} is {after} (before: {before})"


def find_factor(original: float, compressed: float) -> float:
    """Original / compressed, 1.0 where they differ by less than 1 %."""
    if original <= 0 or compressed <= 0:
        return 1.0
    factor = original / compressed
    return 1.0 if abs(factor - 1) < 0.01 else factor


def _speed_factor(latency: LatencyEvidence) -> float:
    """How many times faster; 1.0 where the interval does not tell it from 1."""
    low, high = latency.ratio_interval_95
    if low <= 1 <= high or not latency.ratio > 0:
        return 1.0
    return find_factor(1.0, latency.ratio)


def say_factor(factor: float, up: str, down: str, same: str) -> str:
    """`3.3 times smaller`: `up` is the word for more than 1, `down` for less."""
    if factor == 1.0:
        return same
    word, factor = (up, factor) if factor > 1 else (down, 1 / factor)
    if factor < 1.095:
        return f"{format_percent(factor - 1)} {word}"
    return f"{format_times(factor)} times {word}"


def tone_of(factor: float) -> Tone:
    """Whether a factor, above 1 where it is better, is good news."""
    return "same" if factor == 1.0 else ("better" if factor > 1 else "worse")


def compare_amounts(name: str, original: int, compressed: int) -> Figure:
    """The row of two amounts of bytes, where less is better."""
    factor = find_factor(original, compressed)
    change = say_factor(factor, "smaller", "larger", "the same").replace(" times ", "× ")
    return Figure(
        name, format_bytes(original), format_bytes(compressed), change, tone=tone_of(factor)
    )


def _latency(latency: LatencyEvidence) -> Figure:
    factor = _speed_factor(latency)
    change = say_factor(factor, "faster", "slower", "no clear change").replace(" times ", "× ")
    low, high = latency.ratio_interval_95
    if factor < 1:
        ends = (low, high)
    else:  # "faster" is the inverse of the ratio of times, so its ends change places
        ends = (1 / high if high > 0 else math.inf, 1 / low if low > 0 else math.inf)
    spread = f"{ends[0]:.2f}× to {ends[1]:.2f}×" if all(map(math.isfinite, ends)) else ""
    return Figure(
        f"Latency, {count(latency.threads, 'thread')}",
        format_ms(latency.original),
        format_ms(latency.compressed),
        change,
        spread,
        tone_of(factor),
    )


def _metric(metric: MetricEvidence, max_drop: float | None) -> Figure:
    low, high = metric.drop_interval_95
    tone: Tone = "same"  # a loss that was allowed is no alarm
    if max_drop is not None and metric.drop > max_drop:
        tone = "worse"
    elif high < 0:
        tone = "better"
    word = "lost" if metric.drop > 0 else "gained"
    amount = format_metric(metric.name, abs(metric.drop))
    change = "no change" if metric.drop == 0 else f"{amount} {word}"
    if metric.drop < 0:
        low, high = -high, -low
    spread = f"{format_metric(metric.name, low)} to {format_metric(metric.name, high)}"
    return Figure(
        metric.name[:1].upper() + metric.name[1:],
        format_metric(metric.name, metric.original),
        format_metric(metric.name, metric.compressed),
        change,
        spread,
        tone,
    )
