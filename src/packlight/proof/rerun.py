"""Runs what a folder promises on this machine: answers, latency, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.errors import PacklightError, RuntimeFailure
from packlight.graph.model import load_model
from packlight.measure.latency import measure_latency, rank_latencies
from packlight.measure.memory import measure_memory
from packlight.plan.prepare import prepare_samples
from packlight.plan.solve import SLOWER
from packlight.proof.golden import GoldenSample
from packlight.proof.manifest import Manifest
from packlight.proof.tolerance import Difference, OutputPromise, compare_runs
from packlight.proof.verification import Check
from packlight.report.units import format_bytes, format_ms, format_number, format_percent
from packlight.report.visible import visible
from packlight.runtime import Process, measure_peak_memory
from packlight.samples import feeds_of

Feeds = Mapping[str, NDArray[Any]]

_SECONDS = 5.0
_ROUNDS = 200
_MORE_MEMORY = 1.1


def check_answers(
    path: Path,
    samples: Sequence[GoldenSample],
    promises: Sequence[OutputPromise],
    *,
    name: str = "answers",
    of_original: bool = False,
    elsewhere: str = "",
) -> Check:
    """Run a file on the golden samples and hold its outputs against those promised.

    of_original: it is the original. elsewhere: a sentence where this is another processor.
    """
    promised = [one.original if of_original else one.compressed for one in samples]
    wanted = [promise.name for promise in promises]
    try:
        with Process() as process:
            session = process.load(path)
            found = [session.run(sample.feeds, wanted) for sample in samples]
    except RuntimeFailure as error:
        return Check(name, "failed", f"The model does not run here: {error}")
    differences = [
        compare_runs(
            promise,
            [(one[promise.name], other[promise.name])
             for one, other in zip(promised, found, strict=True)],
            of_original=of_original,
        )
        for promise in promises
    ]  # fmt: skip
    wrong = [one for one in differences if not one.within]
    worst = max(wrong or differences, key=lambda one: one.largest / max(one.tolerance, 1e-300))
    ranked = next((one for one in (*wrong, *differences) if one.classes), None)
    figures: dict[str, float | str | None] = {
        "samples": len(samples),
        "output": worst.name,
        "largest_difference": worst.largest,
        "tolerance": worst.tolerance,
        "share_of_range": worst.share,
        "same_class": ranked.same_class if ranked else None,
        "classes": ranked.classes if ranked else None,
    }
    said = describe_differences(len(samples), differences, worst, ranked)
    return Check(name, "failed" if wrong else "passed", said + elsewhere, figures)


def describe_differences(
    samples: int, differences: Sequence[Difference], worst: Difference, ranked: Difference | None
) -> str:
    """The sentence about all outputs."""
    runs = f"{samples} golden sample{'' if samples == 1 else 's'}"
    if all(one.identical for one in differences):
        said = f"{runs}: the outputs are bit for bit those promised"
    elif worst.misplaced:
        said = f"{runs}: output {visible(worst.name)!r} has another shape or type than promised, " \
               "or is not finite where it should be"  # fmt: skip
    else:
        allowed = worst.tolerance / worst.largest * worst.share if worst.largest else 0.0
        said = (
            f"{runs}: outputs differ by at most {_percent(worst.share)} of their range "
            f"({_percent(allowed)} allowed)"
        )
    if ranked is not None:
        said += f"; the same class on {ranked.same_class} of {ranked.classes}"
        if ranked.near_ties:
            said += f", a near tie on {ranked.near_ties}"
    return f"{said}."


def feeds_for(manifest: Manifest, path: Path, samples: Sequence[GoldenSample]) -> Feeds:
    """What to measure with: the first golden sample, or a made-up one where there is none."""
    if samples:
        return samples[0].feeds
    model = load_model(path)
    prepared = prepare_samples(model, None)
    return next(iter(feeds_of(prepared.samples, (0,), model.inputs, batch=1)))


def check_latency(path: Path, original: Path | None, feeds: Feeds, manifest: Manifest) -> Check:
    """Time the model here, in turns with the original where that is at hand."""
    before, after = (manifest.claim("latency_ms", which) for which in ("original", "compressed"))
    there = f" ({format_ms(after)} where it was made)" if after is not None else ""
    try:
        if original is None:
            alone = rank_latencies([path], feeds, rounds=_ROUNDS, seconds=_SECONDS)[0].ms
            return Check(
                "latency",
                "not-checked",
                f"{format_ms(alone)} a run here, one thread{there}; --original MODEL compares it "
                "with the original.",
                {"compressed_ms": alone, "promised_ms": after},
            )
        found = measure_latency(original, path, feeds, threads=1, rounds=_ROUNDS, seconds=_SECONDS)
    except PacklightError as error:
        return Check("latency", "failed", f"It could not be timed here: {error}")
    slower = found.ratio_interval_95[0] > 1 and found.ratio > SLOWER
    promised = f", {before / after:.2f} where it was made" if before and after else ""
    said = (
        f"{format_ms(found.compressed)} a run here, the original {format_ms(found.original)}: "
        f"{1 / found.ratio:.2f} times as fast{promised}."
    )
    figures = {
        "original_ms": found.original,
        "compressed_ms": found.compressed,
        "ratio": found.ratio,
        "promised_ratio": after / before if before and after else None,
    }
    expected = before and after and after <= before
    return Check("latency", "failed" if slower and expected else "passed", said, figures)


def check_memory(path: Path, original: Path | None, feeds: Feeds, manifest: Manifest) -> Check:
    """Measure peak memory here, of the original too where that is at hand."""
    before, after = (
        manifest.claim("peak_memory_bytes", which) for which in ("original", "compressed")
    )
    there = f" ({format_bytes(after)} where it was made)" if after is not None else ""
    try:
        if original is None:
            alone = measure_peak_memory(path, feeds)
            said = f"{format_bytes(alone)} at most here{there}; --original MODEL compares it."
            return Check("memory", "not-checked", said, {"compressed": alone, "promised": after})
        found = measure_memory(original, path, feeds)
    except PacklightError as error:
        return Check("memory", "failed", f"It could not be measured here: {error}")
    more = found.compressed > _MORE_MEMORY * found.original
    said = (
        f"{format_bytes(found.compressed)} at most here{there}, the original "
        f"{format_bytes(found.original)}."
    )
    expected = before is not None and after is not None and after <= before
    figures = {
        "original": found.original,
        "compressed": found.compressed,
        "promised": after,
    }
    return Check("memory", "failed" if more and expected else "passed", said, figures)


def _percent(share: float) -> str:
    return (
        format_percent(share) if share >= 1e-4 or not share else f"{format_number(100 * share)} %"
    )
