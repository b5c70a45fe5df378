"""All that is measured of a compressed language model against its original, in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import RuntimeFailure, UnusableSamples, WrongUsage
from packlight.measure.evidence import Pair
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import Continuation, SpeedEvidence
from packlight.measure.language_run import (
    WINDOW,
    continue_texts,
    cut_windows,
    measure_divergence,
    measure_speed,
    measure_text_memory,
)
from packlight.runtime import Limits
from packlight.runtime.llamacpp import LLAMACPP
from packlight.runtime.text import TextRuntime

PROOF_TOKENS = 40_960
"""At most so many tokens of the text are compared: enough for three digits of the divergence."""
PROMPT, GENERATED = 128, 32
_PROMPT_WORDS = 24
_CONTINUED = 48

_DEFAULT = Limits()


@dataclass(frozen=True)
class LanguageProof:
    """What was measured; None where it could not be, which the notes say.

    tokens: of the text that were read, in `windows` windows.
    """

    divergence: Divergence | None
    speed: SpeedEvidence | None
    peak_memory_bytes: Pair | None
    continuations: tuple[Continuation, ...]
    notes: tuple[str, ...]


def prove_language(
    original: Path,
    compressed: Path,
    text: str | NDArray[np.integer],
    *,
    window: int = WINDOW,
    most: int = PROOF_TOKENS,
    texts: int = 3,
    threads: int = 1,
    rounds: int = 12,
    seed: int = 0,
    limits: Limits = _DEFAULT,
    on_step: Callable[[str], None] | None = None,
    runtime: TextRuntime = LLAMACPP,
    timed: bool = True,
) -> LanguageProof:
    """Divergence, speed, memory and continuations of both files on a text held back.

    text: itself, or its tokens [n], or windows of them [windows, length], which are compared as
    they are, a start token included where the model wants one. window: tokens of a window; most:
    of all windows, the first ones. texts: how many beginnings, taken from the text, both files
    continue. on_step: is told what comes next. timed: False where the runtime is not the one that
    the model is meant for, so that its speed and memory would say nothing.
    A text too short for one window of `window` tokens is read in one shorter window; shorter than
    two tokens raises UnusableSamples. MissingExtra and what the files' runtime refuses of
    predictions are raised; of speed, memory and continuations they become notes.
    """
    tell = on_step if on_step is not None else lambda _: None
    if texts < 0:
        raise WrongUsage(f"There cannot be {texts} texts to continue.")
    tell("comparing predictions")
    with runtime.open(original, limits=limits) as model:
        tokens = model.tokenize(text) if isinstance(text, str) else np.asarray(text, np.int32)
        start = model.model.start if model.model.adds_start else None
    if tokens.ndim == 2:
        windows = tokens[: max(2, most // max(tokens.shape[1], 1))]
        begun = start is not None and (tokens[:, 0] == start).all()
        tokens = tokens[:, 1:].reshape(-1) if begun else tokens.reshape(-1)
    else:
        windows = _cut(tokens, window, start, most)
    run: dict[str, Any] = {"threads": threads, "limits": limits, "runtime": runtime}
    divergence = measure_divergence(original, compressed, windows, seed=seed, **run)
    notes: list[str] = []
    if len(windows) < 2:
        notes.append(
            f"the text has one window of {windows.shape[1]} tokens only, so nothing is said of "
            "how sure the divergence is"
        )
    prompt = np.resize(tokens, PROMPT)  # a short text is read again and again
    speed = memory = None
    continuations: tuple[Continuation, ...] = ()
    try:
        if timed:
            tell("measuring speed")
            speed = measure_speed(
                original, compressed, prompt, GENERATED, rounds=rounds, seed=seed, **run
            )
            tell("measuring memory")
            memory = measure_text_memory(original, compressed, prompt, GENERATED, **run)
        tell("continuing texts")
        beginnings = _choose_beginnings(tokens, texts, start)
        if beginnings:
            continuations = continue_texts(original, compressed, beginnings, _CONTINUED, **run)
    except RuntimeFailure as failure:
        notes.append(f"not all could be measured: {failure}")
    return LanguageProof(divergence, speed, memory, continuations, tuple(notes))


def _cut(tokens: NDArray[np.int32], window: int, start: int | None, most: int) -> NDArray[np.int32]:
    """Windows of a text, a shorter one where the text is shorter."""
    length = min(window, len(tokens) + (start is not None))
    if length < 2:
        raise UnusableSamples(
            f"The text has {len(tokens)} tokens: at least two are needed to compare predictions."
        )
    return cut_windows(tokens, length, start=start, most=max(most, length))


def _choose_beginnings(
    tokens: NDArray[np.int32], count: int, start: int | None
) -> list[NDArray[np.int32]]:
    """Tokens of passages spread over the text, each from another part of it."""
    taken = min(_PROMPT_WORDS, len(tokens))
    places = np.linspace(0, len(tokens) - taken, count + 2)[1:-1].astype(int)
    head = [] if start is None else [start]
    return [
        np.array([*head, *tokens[place : place + taken]], np.int32)
        for place in dict.fromkeys(places.tolist())
    ]
