"""The story of a language model, from its checkpoint to the proof.

checkpoint (+ text) -> blocks that go, if any are to -> types or a scheme of tensors -> rounded
block by block -> file or folder -> run beside the original in the target's runtime -> Evidence ->
save
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from packlight.errors import MissingExtra, RuntimeFailure
from packlight.language.ask import Ask
from packlight.language.forecast import LanguageForecast
from packlight.language.gguf import SAFETY
from packlight.language.proof import prove
from packlight.language.recipe import LanguageRecipe, write_language_recipe
from packlight.language.result import LanguageResult
from packlight.language.shorten import forecast_shortened, shorten, tell_removed
from packlight.language.target import LanguageTarget, Made
from packlight.language.targets import LANGUAGE_TARGETS
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.depth import Shortened
from packlight.llm.text import Windows
from packlight.measure.evidence import Pair, Skipped
from packlight.measure.language_evidence import (
    BlockEvidence,
    LanguageBudget,
    LanguageEvidence,
    LanguageTrial,
    TensorEvidence,
)
from packlight.measure.language_proof import LanguageProof
from packlight.measure.language_verdict import judge_language
from packlight.plan.judge import environment
from packlight.plan.workers import keep_connected
from packlight.progress import Progress
from packlight.scratch import Scratch


def compress_language_model(
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    scratch: Scratch,
    *,
    inputs: Sequence[Path] = (),
    seed: int = 0,
    workers: int | str = 1,
    dry_run: bool = False,
    progress: Progress,
) -> LanguageResult | LanguageForecast:
    """Make a checkpoint smaller for its target, and measure what it still does.

    windows: of the user's text; None: each tensor is rounded on its own, and nothing is proven.
    scratch: where files are made; a killed run with the same scratch goes on. inputs: what the
    output must not replace. workers: processes, or a Ray cluster; see `LanguageTarget.make`.
    Raises PacklightError with a sentence for the user.
    """
    begun = time.monotonic()
    target = LANGUAGE_TARGETS[ask.target]
    if dry_run:
        return forecast_shortened(target, checkpoint, ask, windows, workers)
    short = shorten(checkpoint, ask, windows, scratch, progress)
    with keep_connected(workers):
        made = target.make(
            short.checkpoint, checkpoint, ask, windows, scratch, seed, workers, progress
        )
    chosen = _choose(made, ask)
    proof, text = _prove(target, checkpoint, chosen, windows, scratch, seed, progress)
    evidence = _evidence(target, checkpoint, short, ask, windows, made, chosen, proof, seed)
    evidence = replace(evidence, text=text, seconds=time.monotonic() - begun)
    types = {} if ask.scheme else chosen.types
    removed = tuple(one.number for one in short.removed)
    recipe = LanguageRecipe(ask.target, types, windows is not None, seed, ask.scheme, removed)
    texts = {"recipe.yaml": write_language_recipe(recipe), **target.texts(ask)}
    return LanguageResult(evidence, recipe.content, chosen.path, texts, tuple(inputs), scratch)


def _prove(
    target: LanguageTarget,
    checkpoint: Checkpoint,
    chosen: Made,
    windows: Windows | None,
    scratch: Scratch,
    seed: int,
    progress: Progress,
) -> tuple[LanguageProof, str]:
    """What was measured, and on which text; notes say what is missing."""
    try:
        target.runtime.check()
        if windows is None:
            return LanguageProof(None, None, None, (), ()), ""
        original = target.original(checkpoint, scratch, progress)
        proof, text = prove(
            target.runtime, original, chosen.path, windows, seed, progress, untimed=target.untimed
        )
    except (MissingExtra, RuntimeFailure) as failure:
        return LanguageProof(None, None, None, (), (f"nothing was measured: {failure}",)), ""
    notes = (target.untimed,) if target.untimed else ()
    return replace(proof, notes=(*notes, *proof.notes)), text


def _choose(made: Sequence[Made], ask: Ask) -> Made:
    """The smallest that keeps the agreement; where none does, the one that comes nearest."""
    if ask.max_drop is None:
        return made[-1]

    def lost(one: Made) -> float:
        return 1.0 if one.lost is None else one.lost

    kept = [one for one in made if lost(one) <= SAFETY * ask.max_drop]
    return min(kept, key=lambda one: one.size_bytes) if kept else min(made, key=lost)


def _evidence(
    target: LanguageTarget,
    checkpoint: Checkpoint,
    short: Shortened,
    ask: Ask,
    windows: Windows | None,
    made: Sequence[Made],
    chosen: Made,
    proof: LanguageProof,
    seed: int,
) -> LanguageEvidence:
    weights = sum(info.weights for info in checkpoint.tensors.values())
    bits = chosen.bits_per_weight
    size = Pair(checkpoint.size_bytes, chosen.size_bytes)
    budget = LanguageBudget(ask.bits, ask.max_size_bytes, ask.max_drop)
    verdict, reason = judge_language(
        budget,
        size_bytes=size,
        bits_per_weight=bits,
        divergence=proof.divergence,
        speed=proof.speed,
    )
    notes = [*tell_removed(checkpoint, short), *chosen.notes, *proof.notes]
    if ask.by_default:
        notes.insert(0, target.default_note)
    if windows is None:
        notes.insert(0, "no text was given: nothing was measured against a text of yours")
    return LanguageEvidence(
        verdict=verdict,
        reason=reason,
        model=checkpoint.path.name,
        architecture=checkpoint.config.architecture,
        parameters=weights,
        target=ask.target,
        budget=budget,
        size_bytes=size,
        bits_per_weight=bits,
        divergence=proof.divergence,
        speed=proof.speed,
        peak_memory_bytes=proof.peak_memory_bytes,
        tensors=tuple(
            TensorEvidence(
                row.name,
                row.type,
                row.bits,
                row.weights,
                row.error if row.compensated else None,
                row.note,
            )
            for row in chosen.rows
        ),
        not_compressed=tuple(Skipped(name, reason) for name, reason in chosen.kept.items()),
        continuations=proof.continuations,
        trials=tuple(
            LanguageTrial(
                one.label,
                one.size_bytes,
                one.mean_kl,
                None if one.lost is None else 1 - one.lost,
                one is chosen,
            )
            for one in made
        ),
        removed=tuple(BlockEvidence(o.number, o.influence, o.kl) for o in short.removed),
        blocks=checkpoint.config.layers,
        notes=tuple(notes),
        scheme=ask.scheme,
        environment=environment(_runtime_name(target)),
        seed=seed,
    )


def _runtime_name(target: LanguageTarget) -> str | None:
    try:
        target.runtime.check()
    except MissingExtra:
        return None
    return target.runtime.name()
