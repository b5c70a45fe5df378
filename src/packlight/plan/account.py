"""What a run found, as evidence: the verdict and everything that the report shows."""

from __future__ import annotations

from collections.abc import Sequence

from packlight.graph.layers import Layer
from packlight.graph.rewrite.simplify import NEARLY_EQUAL, SimplifyStep
from packlight.measure.evidence import Evidence, Trial, Tuning
from packlight.plan.answer import Answer, Question
from packlight.plan.goal import average_bits
from packlight.plan.judge import Figures, environment, judge, layer_evidence
from packlight.plan.tried import Tried
from packlight.runtime import runtime_name


def state_evidence(
    question: Question,
    answer: Answer,
    steps: Sequence[SimplifyStep],
    figures: Figures,
    tuning: Tuning | None = None,
) -> Evidence:
    """The evidence of a run, with its verdict: all but how long it took.

    steps: of simplifying.
    """
    bench, found, budget, prepared = answer.bench, answer.found, answer.budget, question.prepared
    model, chosen, generated = bench.model, found.chosen, prepared.samples.generated
    goal, thinned = question.goal, answer.thinned
    packed = goal.wish in ("download", "nothing") or budget.max_download_bytes is not None
    verdict, reason = judge(figures, budget, generated=generated, packed=packed)
    about, skipped = layer_evidence(bench, found, answer.layers, bench.first_feeds(), chosen.notes)
    undone = tuple(
        f"simplifying: '{step.name}' was undone, because {step.reason}"
        for step in steps
        if not step.kept
    )
    merged = sum(
        step.bytes_before - step.bytes_after
        for step in steps
        if step.name == NEARLY_EQUAL and step.changed and step.kept
    )
    shared = (f"constants that differ by rounding noise only are stored once ({merged:,} bytes)",)
    return Evidence(
        verdict=verdict,
        reason=reason,
        model=model.source.name,
        target=bench.target.name,
        budget=budget,
        size_bytes=figures.size,
        metric=None if generated else figures.metric,
        latency_ms=figures.latency,
        latency_all_threads_ms=figures.latency_all_threads,
        peak_memory_bytes=figures.memory,
        layers=about,
        not_compressed=skipped,
        trials=_trials(answer, generated=generated),
        notes=(
            *prepared.notes,
            *answer.notes,
            *figures.notes,
            *(shared if merged else ()),
            *undone,
        ),
        inputs=tuple(str(spec) for spec in model.inputs),
        samples=prepared.samples.source,
        environment=environment(runtime_name(bench.device.engine)),
        seed=bench.seed,
        packed_bytes=figures.packed_bytes,
        preset=goal.name,
        thinning=None if thinned is None else thinned.evidence,
        tuning=tuning,
    )


def _trials(answer: Answer, *, generated: bool) -> tuple[Trial, ...]:
    """All that was tried, that of answers put aside first."""
    chosen = answer.chosen.recipe
    return tuple(
        _trial(
            one,
            chosen=of is answer and one.recipe == chosen,
            generated=generated,
            layers=of.layers,
            share=of.thinned.evidence.share if answer.before and of.thinned is not None else 0.0,
        )
        for of in (*answer.before, answer)
        for one in of.found.tried
    )


def _trial(
    one: Tried, *, chosen: bool, generated: bool, layers: Sequence[Layer], share: float
) -> Trial:
    # On made-up samples a drop says nothing of the user's accuracy.
    drop = None if one.metric is None or generated else one.metric.drop
    return Trial(
        label=one.label + (f", {share:.0%} less to multiply" if share else ""),
        size_bytes=one.size_bytes,
        drop=drop,
        noise_db=one.metric.noise_db if one.metric is not None else None,
        latency_ratio=one.latency_ratio,
        chosen=chosen,
        note=one.failure,
        latency_ms=one.latency_ms,
        packed_bytes=one.packed_bytes,
        average_bits=average_bits(one.recipe, layers),
    )
