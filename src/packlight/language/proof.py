"""What is measured of a finished model: beside the original, on text held back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.llm.text import Windows
from packlight.measure.language_proof import PROOF_TOKENS, LanguageProof, prove_language
from packlight.measure.language_run import measure_divergence
from packlight.progress import Progress
from packlight.runtime import cpu_features
from packlight.runtime.text import TextRuntime

SECONDS = 300.0
"""Reading a text in both files takes about so long, on `LEAST_WINDOWS` at least."""
LEAST_WINDOWS = 3


def agreement_lost(
    runtime: TextRuntime,
    original: Path,
    file: Path,
    windows: Windows,
    seed: int,
    progress: Progress,
) -> tuple[float, float]:
    """Share of most probable tokens that changed on the text for choosing, and the mean KL."""
    chosen = _affordable(runtime, original, windows.search)
    progress.stage("measuring what is lost", len(chosen))
    found = measure_divergence(
        original,
        file,
        chosen,
        threads=cpu_features().cores,
        seed=seed,
        on_window=progress.step,
        runtime=runtime,
    )
    return 1 - found.top_agreement, found.mean_kl


def prove(
    runtime: TextRuntime,
    original: Path,
    file: Path,
    windows: Windows,
    seed: int,
    progress: Progress,
    *,
    untimed: str = "",
) -> tuple[LanguageProof, str]:
    """The file against the original, and the text in words; notes say what is missing.

    untimed: why speed and memory are not measured, where they are not.
    """
    chosen = _affordable(runtime, original, windows.proof[: max(2, PROOF_TOKENS // windows.length)])
    progress.stage("proving on text held back", 2 if untimed else 4)
    proof = prove_language(
        original,
        file,
        chosen,
        threads=cpu_features().cores,
        seed=seed,
        on_step=progress.step,
        runtime=runtime,
        timed=not untimed,
    )
    text = f"{windows.source}: {len(chosen)} windows of {windows.length} tokens, held back"
    return proof, text


def _affordable(
    runtime: TextRuntime, original: Path, windows: NDArray[np.int32]
) -> NDArray[np.int32]:
    """As many windows, evenly spread, as can be read in time."""
    with runtime.open(original, threads=cpu_features().cores, context=windows.shape[1]) as model:
        begun = time.monotonic()
        for _ in model.logits(windows[0]):
            pass
        each = 2 * (time.monotonic() - begun)
    most = max(LEAST_WINDOWS, int(SECONDS / max(each, 1e-6)))
    if len(windows) <= most:
        return windows
    return windows[np.linspace(0, len(windows) - 1, most).astype(np.int64)]
