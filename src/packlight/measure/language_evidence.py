"""Evidence of a compressed language model: all that one run has to show, as frozen values.

`report/language.py` turns it into a table, a page and `report.json`, and every figure in them
comes from here. Sizes are bytes, divergences nats, speeds tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from packlight.measure.evidence import Pair, Skipped, Verdict
from packlight.measure.language import Divergence

Interval = tuple[float, float]


@dataclass(frozen=True)
class LanguageBudget:
    """What the user asked for; None where they did not.

    bits: a weight, on average over the whole file. max_drop: of top-token agreement, absolute:
    0.02 asks for the same most probable token 98 % of the time.
    """

    bits: float | None = None
    max_size_bytes: int | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class Speed:
    """Tokens a second of both files, in interleaved rounds.

    ratio: median of compressed / original, above 1 where the compressed one is faster.
    """

    original: float
    compressed: float
    ratio: float
    ratio_interval_95: Interval


@dataclass(frozen=True)
class SpeedEvidence:
    """How fast both files are.

    prompt: reading `prompt_tokens` at once. generation: `generated_tokens` one by one after them.
    """

    runtime: str
    threads: int
    prompt_tokens: int
    generated_tokens: int
    prompt: Speed
    generation: Speed


@dataclass(frozen=True)
class TensorEvidence:
    """What became of one tensor.

    type: as the file names it ("Q4_K", "F16", "int4"). bits: a weight, scales included.
    error: relative error of the layer's output on the calibration text, |x(W-V)|^2 / |xW|^2
        (None: not measured). reason: why this type, or why it was left alone.
    """

    name: str
    type: str
    bits: float
    weights: int
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Continuation:
    """What both files wrote after the same words, choosing the most probable token each time."""

    prompt: str
    original: str
    compressed: str


@dataclass(frozen=True)
class LanguageTrial:
    """One whole file that was tried: its size, mean KL and agreement on the text for choosing."""

    label: str
    size_bytes: int
    mean_kl: float | None = None
    top_agreement: float | None = None
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class BlockEvidence:
    """A decoder block that was removed.

    number: in the original. influence: 1 - mean cosine of the stream before and behind it. kl:
    divergence without it and those that went before it, as measured for choosing, before the rest
    made up for it. None: not measured.
    """

    number: int
    influence: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class LanguageEvidence:
    """All that one run of `compress` on a language model has to show.

    model: its name. parameters: its weights, and blocks: how many it has, of which those in
    `removed` went, in their order. size_bytes: of all files of weights.
    bits_per_weight: of the compressed file's tensors, scales counted. divergence: on text that
    nothing was chosen with (None: no text was given, or its runtime is not installed). text: what
    it was measured on, in words. scheme: of compressed-tensors, '' where types differ from tensor
    to tensor.
    """

    verdict: Verdict
    reason: str
    model: str
    architecture: str
    parameters: int
    target: str
    budget: LanguageBudget
    size_bytes: Pair
    bits_per_weight: float
    divergence: Divergence | None
    speed: SpeedEvidence | None
    peak_memory_bytes: Pair | None
    tensors: tuple[TensorEvidence, ...]
    not_compressed: tuple[Skipped, ...] = ()
    continuations: tuple[Continuation, ...] = ()
    trials: tuple[LanguageTrial, ...] = ()
    removed: tuple[BlockEvidence, ...] = ()
    blocks: int = 0
    notes: tuple[str, ...] = ()
    text: str = ""
    scheme: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
