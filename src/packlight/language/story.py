"""The story of a language model, from its checkpoint to the proof.

checkpoint (+ text) -> types of tensors under the budget -> rounded block by block -> GGUF ->
run beside the original in llama.cpp -> Evidence -> save
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from packlight.errors import WrongUsage
from packlight.language.ask import DEFAULT_BITS, Ask
from packlight.language.forecast import LanguageForecast, forecast_language
from packlight.language.proof import agreement_lost, prove
from packlight.language.recipe import LanguageRecipe, write_language_recipe
from packlight.language.result import MODEL, LanguageResult
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import Compressed, compress_checkpoint
from packlight.llm.compress_alone import Spread, spread_over_threads
from packlight.llm.compress_forecast import rounded_names
from packlight.llm.costs import Choose, TensorCosts
from packlight.llm.formats import FORMATS, fallback
from packlight.llm.rounding import Settings
from packlight.llm.text import Windows
from packlight.measure.evidence import Pair, Skipped
from packlight.measure.language_evidence import (
    LanguageBudget,
    LanguageEvidence,
    LanguageTrial,
    TensorEvidence,
)
from packlight.measure.language_proof import LanguageProof
from packlight.measure.language_verdict import judge_language
from packlight.nearest import did_you_mean
from packlight.plan.judge import environment
from packlight.plan.types import CANDIDATES, NARROW, plan_types
from packlight.plan.workers import run_in_turn
from packlight.progress import Progress
from packlight.runtime.llamacpp import has_llamacpp, llamacpp_name
from packlight.scratch import Scratch

ROUNDS = 3
"""Files that are made until the agreement is what was asked for."""

SAFETY = 0.8
"""Share of the allowed loss of agreement that the text for choosing may show."""

KL_OF_LOST = 1.0
"""Estimated divergence over the square of the share of changed tokens, to begin with. On a Llama of
5.8 million weights the measured one was 1.9 of it in files of 3.6 to 5.1 bits, whoever made them,
and estimates came to about half of what was measured."""


@dataclass(frozen=True)
class _Made:
    """A file, and the share of most probable tokens that changed on the text for choosing."""

    label: str
    compressed: Compressed
    lost: float | None = None
    mean_kl: float | None = None


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
    """Make a checkpoint smaller for llama.cpp, and measure what it still does.

    windows: of the user's text; None: each tensor is rounded on its own, and nothing is proven.
    scratch: where files are made; a killed run with the same scratch goes on. inputs: what the
    output must not replace. workers: processes or a Ray cluster for what needs no text.
    Raises PacklightError with a sentence for the user.
    """
    begun = time.monotonic()
    _check_pins(checkpoint, ask.pins)
    if dry_run:
        return forecast_language(checkpoint, ask, windows)
    made = _make(checkpoint, ask, windows, scratch, seed, workers, progress)
    chosen = _choose(made, ask)
    proof, text = prove(checkpoint, chosen.compressed.path, windows, scratch, seed, progress)
    evidence = _evidence(checkpoint, ask, windows, made, chosen, proof, seed)
    evidence = replace(evidence, text=text, seconds=time.monotonic() - begun)
    recipe = LanguageRecipe(ask.target, chosen.compressed.types, windows is not None, seed)
    texts = {"recipe.yaml": write_language_recipe(recipe)}
    if ask.target == "ollama":
        texts["Modelfile"] = f"FROM ./{MODEL}\n"
    return LanguageResult(
        evidence, recipe.content, chosen.compressed.path, texts, tuple(inputs), scratch
    )


def _check_pins(checkpoint: Checkpoint, pins: Mapping[str, str]) -> None:
    """Hold pins against the tensors that there are and the widths of their rows."""
    names = rounded_names(checkpoint)
    for name, kind in pins.items():
        if name not in names:
            raise WrongUsage(
                f"--pin {name}={kind}: the model has no tensor {name!r} that a type can be given to"
                f"{did_you_mean(name, names)}."
            )
        width = checkpoint.tensors[name].shape[-1]
        if fallback(kind, width) != kind:
            raise WrongUsage(
                f"--pin {name}={kind}: its rows of {width} weights do not divide by "
                f"{FORMATS[kind].block}; use {fallback(kind, width)}."
            )


def _make(
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    scratch: Scratch,
    seed: int,
    workers: int | str,
    progress: Progress,
) -> list[_Made]:
    """One file for a size; for a quality up to `ROUNDS`, each corrected by what was measured."""
    settings = Settings(seed=seed)
    planner = _Planner(checkpoint, ask, windows, scratch, settings, progress, workers)
    if ask.types is not None:
        return [_Made("the given recipe", planner.write("given", {**ask.types, **ask.pins}))]
    if ask.max_drop is None:
        label = f"{ask.bits:g} bits" if ask.bits is not None else f"{ask.max_size_bytes} bytes"
        return [_Made(label, planner.make(label))]
    if windows is None:
        raise WrongUsage(
            "--max-drop needs a text to measure what is lost: give --data, or ask for a size with "
            "--bits or --max-size."
        )
    made: list[_Made] = []
    kl = KL_OF_LOST * (SAFETY * ask.max_drop) ** 2
    for number in range(ROUNDS):
        label = f"estimated divergence {kl:.2g}"
        compressed = planner.make(f"round {number + 1}", kl)
        lost, found = agreement_lost(checkpoint, compressed.path, windows, scratch, seed, progress)
        made.append(_Made(label, compressed, lost, found))
        same = len(made) > 1 and made[-2].compressed.types == compressed.types
        if same or 0.85 <= lost / (SAFETY * ask.max_drop) <= 1.0:
            break
        kl *= min(max((SAFETY * ask.max_drop / max(lost, 1e-6)) ** 2, 0.05), 20.0)
    return made


class _Planner:
    """Makes files, with types chosen from costs that are estimated once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ask: Ask,
        windows: Windows | None,
        scratch: Scratch,
        settings: Settings,
        progress: Progress,
        workers: int | str = 1,
    ) -> None:
        self.checkpoint, self.ask, self.windows = checkpoint, ask, windows
        self.scratch, self.settings, self.progress = scratch, settings, progress
        self.spread: Spread = spread_over_threads
        if workers != 1:
            self.spread = partial(run_in_turn, workers=workers)
        self.slopes = SlopeStore(scratch.path, ".slopes-")
        self.costs: Sequence[TensorCosts] = ()
        self.other = 0

    def make(self, label: str, kl: float | None = None) -> Compressed:
        """The file of the best types under the budget; kl: the estimated divergence allowed."""

        def choose(costs: Sequence[TensorCosts], other: int) -> Mapping[str, str]:
            self.costs, self.other = costs, other
            return self.plan(kl)

        return self.write(label, self.plan(kl) if self.costs else choose, f"{self.ask} {kl}")

    def write(self, label: str, types: Mapping[str, str] | Choose, budget: str = "") -> Compressed:
        """The file of these types, in a folder of the attempt's own."""
        return compress_checkpoint(
            self.checkpoint,
            self.scratch.file(label.replace(" ", "-"), MODEL),
            types,
            windows=self.windows,
            candidates=_candidates(self.checkpoint),
            budget=budget,
            settings=self.settings,
            spread=self.spread,
            slopes=self.slopes,
            progress=self.progress,
        )

    def plan(self, kl: float | None) -> Mapping[str, str]:
        """Types for the budget. Pinned tensors have one option."""
        costs = [_pinned(one, self.ask.pins.get(one.name)) for one in self.costs]
        if kl is not None:
            return plan_types(costs, max_drop=kl).types
        if self.ask.max_size_bytes is not None:
            most = self.ask.max_size_bytes
            return plan_types(costs, max_size_bytes=most, other_bytes=self.other).types
        # Bits are those of all tensors: of what is kept in 32 bits too, but not of the tokenizer.
        tensors = self.checkpoint.tensors
        total = sum(info.weights for info in tensors.values())
        rounded = sum(tensors[one.name].weights for one in self.costs)
        most = int((self.ask.bits or DEFAULT_BITS) * total / 8)
        return plan_types(costs, max_size_bytes=most, other_bytes=4 * (total - rounded)).types


def _candidates(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The types that are weighed: those of short blocks too where rows need them."""
    widths = {checkpoint.tensors[name].shape[-1] for name in rounded_names(checkpoint)}
    return CANDIDATES if all(width % 256 == 0 for width in widths) else (*CANDIDATES, *NARROW)


def _pinned(one: TensorCosts, kind: str | None) -> TensorCosts:
    if kind is None:
        return one
    options = tuple(option for option in one.options if option.type == kind)
    if not options:
        known = ", ".join(option.type for option in one.options)
        raise WrongUsage(f"--pin {one.name}={kind}: beside a budget pin one of {known}.")
    return replace(one, options=options)


def _choose(made: Sequence[_Made], ask: Ask) -> _Made:
    """The smallest that keeps the agreement; where none does, the one that comes nearest."""
    if ask.max_drop is None:
        return made[-1]

    def lost(one: _Made) -> float:
        return 1.0 if one.lost is None else one.lost

    kept = [one for one in made if lost(one) <= SAFETY * ask.max_drop]
    return min(kept, key=lambda one: one.compressed.size_bytes) if kept else min(made, key=lost)


def _evidence(
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    made: Sequence[_Made],
    chosen: _Made,
    proof: LanguageProof,
    seed: int,
) -> LanguageEvidence:
    file = chosen.compressed
    weights = sum(info.weights for info in checkpoint.tensors.values())
    rounded = sum(row.weights for row in file.rows)
    held = sum(row.bits * row.weights for row in file.rows) + 32 * (weights - rounded)
    bits = held / max(weights, 1)
    size = Pair(checkpoint.size_bytes, file.size_bytes)
    budget = LanguageBudget(ask.bits, ask.max_size_bytes, ask.max_drop)
    verdict, reason = judge_language(
        budget,
        size_bytes=size,
        bits_per_weight=bits,
        divergence=proof.divergence,
        speed=proof.speed,
    )
    notes = [*file.notes, *proof.notes]
    if ask.by_default:
        notes.insert(0, f"no budget was named: {DEFAULT_BITS} bits a weight were asked for")
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
            for row in file.rows
        ),
        not_compressed=tuple(
            Skipped(name, "a norm, bias or router: small, and kept in 32 bits")
            for name in file.kept
        ),
        continuations=proof.continuations,
        trials=tuple(
            LanguageTrial(
                one.label,
                one.compressed.size_bytes,
                one.mean_kl,
                None if one.lost is None else 1 - one.lost,
                one is chosen,
            )
            for one in made
        ),
        notes=tuple(notes),
        environment=environment(llamacpp_name() if has_llamacpp() else None),
        seed=seed,
    )
