"""Language models for llama.cpp, and ollama: one GGUF file, each tensor with a type of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packlight.errors import WrongUsage
from packlight.language.ask import DEFAULT_BITS, Ask
from packlight.language.proof import agreement_lost
from packlight.language.target import Made, spread_over
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import Compressed, compress_checkpoint, uniform_types
from packlight.llm.compress_alone import Spread
from packlight.llm.compress_forecast import (
    CompressionForecast,
    forecast_compression,
    rounded_names,
)
from packlight.llm.costs import GGUF, Choose, TensorCosts
from packlight.llm.formats import FORMATS, has_codebooks
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.rounding import Settings
from packlight.llm.text import Windows
from packlight.nearest import did_you_mean
from packlight.plan.types import (
    CANDIDATES,
    CODEBOOKS,
    FEW_BITS,
    FEWEST_BITS,
    NARROW,
    ONE_BIT,
    plan_types,
)
from packlight.progress import Progress
from packlight.runtime.llamacpp import LLAMACPP
from packlight.scratch import Scratch

MODEL = "model.gguf"

ROUNDS = 3
"""Files that are made until the agreement is what was asked for."""

SAFETY = 0.8
"""Share of the allowed loss of agreement that the text for choosing may show."""

KL_OF_LOST = 1.0
"""Estimated divergence over the square of the share of changed tokens, to begin with. On a Llama of
5.8 million weights the measured one was 1.9 of it in files of 3.6 to 5.1 bits, whoever made them,
and estimates came to about half of what was measured."""

_NO_CODEBOOKS = (
    "types with a codebook (IQ1_S to IQ3_S), which lose less at few bits, were not weighed: they "
    "need the package gguf (pip install 'packlight[llm]')"
)

_KEPT = "a norm, bias or router: small, and kept in 32 bits"


class GgufTarget:
    """See `packlight.language.target.LanguageTarget`."""

    runtime = LLAMACPP
    model = MODEL
    formats = GGUF
    untimed = ""
    default_note = f"no budget was named: {DEFAULT_BITS} bits a weight were asked for"

    def check(self, checkpoint: Checkpoint, ask: Ask) -> None:
        """Hold pins against the tensors that there are and the widths of their rows."""
        names = rounded_names(checkpoint)
        for name, kind in ask.pins.items():
            if name not in names:
                raise WrongUsage(
                    f"--pin {name}={kind}: the model has no tensor {name!r} that a type can be "
                    f"given to{did_you_mean(name, names)}."
                )
            width = checkpoint.tensors[name].shape[-1]
            fits = self.formats.fallback(kind, width)
            if fits != kind:
                raise WrongUsage(
                    f"--pin {name}={kind}: its rows of {width} weights do not divide by "
                    f"{self.formats.blocks[kind]}; use {fits}."
                )

    def forecast(
        self, checkpoint: Checkpoint, ask: Ask, windows: Windows | None
    ) -> tuple[CompressionForecast, tuple[str, ...]]:
        """What a run will take, and what else there is to say."""
        weights = sum(info.weights for info in checkpoint.tensors.values())
        likely = self._likely_types(checkpoint, ask) if ask.types is None else ask.types
        types = {**likely, **ask.pins}
        found = forecast_compression(
            checkpoint,
            types,
            tokens=0 if windows is None else int(windows.calibration.size),
            weighed=0 if ask.types is not None else len(self.candidates(checkpoint, ask)),
        )
        if ask.max_drop is not None:
            said = "The size depends on what the text shows: 4.5 bits a weight are assumed."
            return found, (said,)
        if ask.bits is not None:
            found = replace(found, size_bytes=int(ask.bits * weights / 8))
        elif ask.max_size_bytes is not None:
            found = replace(found, size_bytes=ask.max_size_bytes)
        return found, ()

    def _likely_types(self, checkpoint: Checkpoint, ask: Ask) -> dict[str, str]:
        """One type for all tensors, of about the size that was asked for."""
        bits = _bits_asked(checkpoint, ask)
        found = self.candidates(checkpoint, ask)
        nearest = min(found, key=lambda kind: abs(FORMATS[kind].bits_per_weight - bits))
        return uniform_types(checkpoint, nearest)

    def make(
        self,
        checkpoint: Checkpoint,
        original: Checkpoint,
        ask: Ask,
        windows: Windows | None,
        scratch: Scratch,
        seed: int,
        workers: int | str,
        progress: Progress,
    ) -> Sequence[Made]:
        """One file for a size; for a quality up to `ROUNDS`, each corrected by what is measured."""
        settings = Settings(seed=seed)
        planner = _Planner(self, checkpoint, ask, windows, scratch, settings, workers, progress)
        if ask.types is not None:
            return [planner.write("given", {**ask.types, **ask.pins}, label="the given recipe")]
        if ask.max_drop is None:
            label = f"{ask.bits:g} bits" if ask.bits is not None else f"{ask.max_size_bytes} bytes"
            return [planner.make(label)]
        if windows is None:
            raise WrongUsage(
                "--max-drop needs a text to measure what is lost: give --data, or ask for a size "
                "with --bits or --max-size."
            )
        made: list[Made] = []
        kl = KL_OF_LOST * (SAFETY * ask.max_drop) ** 2
        whole = self.original(original, scratch, progress)
        for number in range(ROUNDS):
            label = f"estimated divergence {kl:.2g}"
            one = planner.make(f"round {number + 1}", kl, label=label)
            lost, found = agreement_lost(self.runtime, whole, one.path, windows, seed, progress)
            made.append(replace(one, lost=lost, mean_kl=found))
            same = len(made) > 1 and made[-2].types == one.types
            if same or 0.85 <= lost / (SAFETY * ask.max_drop) <= 1.0:
                break
            kl *= min(max((SAFETY * ask.max_drop / max(lost, 1e-6)) ** 2, 0.05), 20.0)
        return made

    def original(self, checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
        """The GGUF file itself, or one with 16 bits a weight."""
        if checkpoint.path.suffix.lower() == ".gguf":
            return checkpoint.path
        stored = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1}
        path = scratch.file("original", MODEL)
        if not path.is_file():
            progress.stage("writing the original for llama.cpp")
            kind = "BF16" if stored == {"BF16"} else "F16"
            write_gguf(path, checkpoint, plain_contents(checkpoint, kind))
        return path

    def candidates(self, checkpoint: Checkpoint, ask: Ask) -> tuple[str, ...]:
        """The types that are weighed, fewest bits first: those of short blocks where rows need
        them, those with a codebook where few bits are asked for.
        """
        widths = {checkpoint.tensors[name].shape[-1] for name in rounded_names(checkpoint)}
        if any(width % 256 for width in widths):
            return (*CANDIDATES, *NARROW)
        bits, found = _bits_asked(checkpoint, ask), list(CANDIDATES)
        if has_codebooks():
            found += CODEBOOKS if bits < FEW_BITS else ()
            found += ONE_BIT if bits < FEWEST_BITS else ()
        return tuple(sorted(found, key=lambda kind: FORMATS[kind].bits_per_weight))

    def compress(
        self,
        checkpoint: Checkpoint,
        path: Path,
        types: Mapping[str, str] | Choose,
        *,
        candidates: Sequence[str],
        windows: Windows | None,
        budget: str,
        settings: Settings,
        spread: Spread,
        slopes: SlopeStore,
        progress: Progress,
    ) -> Compressed:
        """The file of these types; see `packlight.llm.compress.compress_checkpoint`."""
        return compress_checkpoint(
            checkpoint,
            path,
            types,
            windows=windows,
            candidates=candidates,
            budget=budget,
            settings=settings,
            spread=spread,
            slopes=slopes,
            progress=progress,
        )

    def texts(self, ask: Ask) -> Mapping[str, str]:
        """A Modelfile for ollama."""
        return {"Modelfile": f"FROM ./{MODEL}\n"} if ask.target == "ollama" else {}


class _Planner:
    """Makes files, with types chosen from costs that are estimated once."""

    def __init__(
        self,
        target: GgufTarget,
        checkpoint: Checkpoint,
        ask: Ask,
        windows: Windows | None,
        scratch: Scratch,
        settings: Settings,
        workers: int | str,
        progress: Progress,
    ) -> None:
        self.target = target
        self.checkpoint, self.ask, self.windows = checkpoint, ask, windows
        self.scratch, self.settings, self.progress = scratch, settings, progress
        self.spread = spread_over(workers)
        self.slopes = SlopeStore(scratch.path, ".slopes-")
        self.costs: Sequence[TensorCosts] = ()
        self.other = 0
        few = ask.types is None and _bits_asked(checkpoint, ask) < FEW_BITS
        lacking = few and target.formats is GGUF and not has_codebooks()
        self.notes = (_NO_CODEBOOKS,) if lacking else ()

    def make(self, name: str, kl: float | None = None, *, label: str = "") -> Made:
        """The file of the best types under the budget; kl: the estimated divergence allowed."""

        def choose(costs: Sequence[TensorCosts], other: int) -> Mapping[str, str]:
            self.costs, self.other = costs, other
            return self.plan(kl)

        types = self.plan(kl) if self.costs else choose
        return self.write(name, types, f"{self.ask} {kl}", label=label or name)

    def write(
        self, name: str, types: Mapping[str, str] | Choose, budget: str = "", *, label: str
    ) -> Made:
        """The file of these types, in a folder of the attempt's own."""
        found = self.target.compress(
            self.checkpoint,
            self.scratch.file(name.replace(" ", "-"), self.target.model),
            types,
            candidates=self.target.candidates(self.checkpoint, self.ask),
            windows=self.windows,
            budget=budget,
            settings=self.settings,
            spread=self.spread,
            slopes=self.slopes,
            progress=self.progress,
        )
        weights = sum(info.weights for info in self.checkpoint.tensors.values())
        rounded = sum(row.weights for row in found.rows)
        held = sum(row.bits * row.weights for row in found.rows) + 32 * (weights - rounded)
        return Made(
            label,
            found.path,
            found.size_bytes,
            held / max(weights, 1),
            found.rows,
            dict.fromkeys(found.kept, _KEPT),
            (*found.notes, *self.notes),
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


def _bits_asked(checkpoint: Checkpoint, ask: Ask) -> float:
    """Bits a weight, or about as many; what most people load where a quality is asked for."""
    weights = sum(info.weights for info in checkpoint.tensors.values())
    size = ask.max_size_bytes
    return ask.bits or (8 * size / weights if size else DEFAULT_BITS)


def _pinned(one: TensorCosts, kind: str | None) -> TensorCosts:
    if kind is None:
        return one
    options = tuple(option for option in one.options if option.type == kind)
    if not options:
        known = ", ".join(option.type for option in one.options)
        raise WrongUsage(f"--pin {one.name}={kind}: beside a budget pin one of {known}.")
    return replace(one, options=options)
