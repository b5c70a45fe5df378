"""What is measured of a finished file: beside the original, in llama.cpp, on text held back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.text import Windows
from packlight.measure.language_proof import PROOF_TOKENS, LanguageProof, prove_language
from packlight.measure.language_run import measure_divergence
from packlight.progress import Progress
from packlight.runtime import cpu_features
from packlight.runtime.llamacpp import LlamaCpp, check_llamacpp
from packlight.scratch import Scratch

SECONDS = 300.0
"""Reading a text in both files takes about so long, on `LEAST_WINDOWS` at least."""
LEAST_WINDOWS = 3


def original_file(checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
    """The original as llama.cpp reads it: the GGUF file itself, or one with 16 bits a weight."""
    if checkpoint.path.suffix.lower() == ".gguf":
        return checkpoint.path
    stored = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1}
    path = scratch.file("original", "model.gguf")
    if not path.is_file():
        progress.stage("writing the original for llama.cpp")
        kind = "BF16" if stored == {"BF16"} else "F16"
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
        original, file, chosen, threads=cpu_features().cores, seed=seed, on_window=progress.step
    )
    return 1 - found.top_agreement, found.mean_kl


def prove(
    checkpoint: Checkpoint,
    file: Path,
    windows: Windows | None,
    scratch: Scratch,
    seed: int,
    progress: Progress,
) -> tuple[LanguageProof, str]:
    """The file against the original, and the text in words; notes say what is missing."""
    try:
        check_llamacpp()
    except MissingExtra as missing:
        return LanguageProof(None, None, None, (), (f"nothing was measured: {missing}",)), ""
    if windows is None:
        return LanguageProof(None, None, None, (), ()), ""
    original = original_file(checkpoint, scratch, progress)
    chosen = _affordable(original, windows.proof[: max(2, PROOF_TOKENS // windows.length)])
    progress.stage("proving on text held back", 4)
    proof = prove_language(
        original, file, chosen, threads=cpu_features().cores, seed=seed, on_step=progress.step
    )
    text = f"{windows.source}: {len(chosen)} windows of {windows.length} tokens, held back"
    return proof, text


def _affordable(original: Path, windows: NDArray[np.int32]) -> NDArray[np.int32]:
    """As many windows, evenly spread, as can be read in time."""
    with LlamaCpp(original, threads=cpu_features().cores, context=windows.shape[1]) as model:
        begun = time.monotonic()
        for _ in model.logits(windows[0]):
            pass
        each = 2 * (time.monotonic() - begun)
    most = max(LEAST_WINDOWS, int(SECONDS / max(each, 1e-6)))
    if len(windows) <= most:
        return windows
    return windows[np.linspace(0, len(windows) - 1, most).astype(np.int64)]
