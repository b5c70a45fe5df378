"""What is measured of a finished file: beside the original, in llama.cpp, on text held back."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra, PacklightError
from packlight.language.scratch import Scratch
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.text import Windows
from packlight.measure.evidence import Pair
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import Continuation, SpeedEvidence
from packlight.measure.language_run import (
    continue_texts,
    measure_divergence,
    measure_speed,
    measure_text_memory,
)
from packlight.progress import Progress
from packlight.runtime import cpu_features
from packlight.runtime.llamacpp import LlamaCpp, check_llamacpp, llamacpp_name
from packlight.version import __version__

SECONDS = 300.0
"""Reading the text in both files takes about so long, on `LEAST_WINDOWS` at least."""
LEAST_WINDOWS = 3

PROMPT, GENERATED = 64, 32
CONTINUED = 3
WRITTEN = 48
"""Tokens of the side-by-side: prompts are the beginnings of windows of the proof."""


@dataclass(frozen=True)
class Proof:
    """What was measured; None and empty where it could not be, and a note says why."""

    divergence: Divergence | None = None
    speed: SpeedEvidence | None = None
    memory: Pair | None = None
    continuations: tuple[Continuation, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def original_file(checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
    """The original as llama.cpp reads it: the GGUF file itself, or one with 16 bits a weight."""
    if checkpoint.path.suffix.lower() == ".gguf":
        return checkpoint.path
    stored = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1}
    kind = "BF16" if stored == {"BF16"} else "F16"
    path = scratch.file("original", "model.gguf")
    if not path.is_file():
        progress.stage("writing the original for llama.cpp")
        write_gguf(path, checkpoint, plain_contents(checkpoint, kind))
    return path


def agreement_lost(
    checkpoint: Checkpoint,
    file: Path,
    windows: Windows,
    scratch: Scratch,
    seed: int,
    progress: Progress,
) -> tuple[float, float]:
    """Share of most probable tokens that changed on the text for choosing, and the mean KL."""
    original = original_file(checkpoint, scratch, progress)
    chosen = _affordable(original, windows.search)
    progress.stage("measuring what is lost", len(chosen))
    found = measure_divergence(
        original, file, chosen, threads=_threads(), seed=seed, on_window=progress.step
    )
    return 1 - found.top_agreement, found.mean_kl


def prove(
    checkpoint: Checkpoint,
    file: Path,
    windows: Windows | None,
    scratch: Scratch,
    seed: int,
    progress: Progress,
) -> Proof:
    """Measure the file against the original; without llama.cpp a note says what is missing."""
    environment = _environment()
    try:
        check_llamacpp()
    except MissingExtra as missing:
        return Proof(notes=(f"nothing was measured: {missing}",), environment=environment)
    environment["runtime"] = llamacpp_name()
    original = original_file(checkpoint, scratch, progress)
    divergence, text, notes = None, "", []
    continuations: tuple[Continuation, ...] = ()
    if windows is not None:
        chosen = _affordable(original, windows.proof)
        progress.stage("proving on text held back", len(chosen))
        divergence = measure_divergence(
            original, file, chosen, threads=_threads(), seed=seed, on_window=progress.step
        )
        text = f"{windows.source}: {len(chosen)} windows of {windows.length} tokens held back"
        prompts = [window[: min(PROMPT // 2, windows.length)] for window in chosen[:CONTINUED]]
        continuations = continue_texts(original, file, prompts, WRITTEN, threads=_threads())
        prompt = windows.proof.reshape(-1)[:PROMPT]
    else:
        drawn = np.random.default_rng(seed).integers(3, checkpoint.config.vocabulary, PROMPT)
        prompt = drawn.astype(np.int32)
    progress.stage("measuring speed and memory")
    speed = memory = None
    try:
        speed = measure_speed(original, file, prompt, GENERATED, threads=_threads(), seed=seed)
        memory = measure_text_memory(original, file, prompt, GENERATED, threads=_threads())
    except PacklightError as error:
        notes.append(f"speed and memory could not be measured: {error}")
    return Proof(divergence, speed, memory, continuations, text, tuple(notes), environment)


def _affordable(original: Path, windows: NDArray[np.int32]) -> NDArray[np.int32]:
    """As many windows, evenly spread, as can be read in time."""
    with LlamaCpp(original, threads=_threads(), context=windows.shape[1]) as model:
        begun = time.monotonic()
        for _ in model.logits(windows[0]):
            pass
        each = 2 * (time.monotonic() - begun)
    most = max(LEAST_WINDOWS, int(SECONDS / max(each, 1e-6)))
    if len(windows) <= most:
        return windows
    return windows[np.linspace(0, len(windows) - 1, most).astype(np.int64)]


def _threads() -> int:
    return os.cpu_count() or 1


def _environment() -> dict[str, str]:
    cpu = cpu_features()
    return {
        "packlight": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{cpu.model}, {cpu.cores} cores",
    }
