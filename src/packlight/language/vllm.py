"""Language models for vLLM: a Hugging Face folder in a scheme of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from packlight.language.ask import Ask
from packlight.language.target import Made, spread_over
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_forecast import CompressionForecast, Pace, forecast_work
from packlight.llm.rounding import Settings
from packlight.llm.schemes import DEFAULT, compress_folder, find_scheme, plan_folder
from packlight.llm.schemes.sources import check_folder
from packlight.llm.text import Windows
from packlight.progress import Progress
from packlight.runtime.transformers import TRANSFORMERS
from packlight.scratch import Scratch

DENSE = (
    "its zeros are stored as zeros: compressed-tensors (since 0.15) and vLLM have no layout for "
    "them any more, so that by them alone the folder is neither smaller nor faster"
)


_PACE = Pace(10e-6, 0.2e-6)
_PACES = {
    **dict.fromkeys(("w8a16", "w8a8"), Pace(3.5e-6, 0.1e-6)),
    "fp8": Pace(10e-6, 1.1e-6),
    "nvfp4": Pace(17e-6, 1.2e-6),
}


class VllmTarget:
    """See `packlight.language.target.LanguageTarget`."""

    runtime = TRANSFORMERS
    untimed = (
        "speed and memory were not measured: the figures come from transformers, which "
        "decompresses the weights, and vLLM, which computes with them as they are, is not run here"
    )
    default_note = f"no scheme was named: {DEFAULT} was taken"

    def check(self, checkpoint: Checkpoint, ask: Ask) -> None:
        """Raise WrongUsage for what is no folder with linear layers."""
        check_folder(checkpoint)

    def forecast(
        self, checkpoint: Checkpoint, ask: Ask, windows: Windows | None
    ) -> tuple[CompressionForecast, tuple[str, ...]]:
        """What a run will take; the size is exact."""
        scheme = find_scheme(ask.scheme)
        plan = plan_folder(checkpoint, scheme)
        tokens = 0 if windows is None else int(windows.calibration.size)
        size = plan.shards.size_bytes
        work = forecast_work(
            checkpoint, plan.rounded, size, tokens=tokens, pace=_PACES.get(scheme.name, _PACE)
        )
        notes = [f"Scheme {scheme.name}: {scheme.what}."]
        if not scheme.format:
            notes.append(f"With {scheme.name} {DENSE}.")
        return work, tuple(notes)

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
        """The folder of the scheme."""
        scheme = find_scheme(ask.scheme)
        found = compress_folder(
            checkpoint,
            scratch.file("folder", "model"),
            scheme,
            windows=windows,
            settings=Settings(seed=seed),
            spread=spread_over(workers),
            progress=progress,
        )
        weights = sum(info.weights for info in checkpoint.tensors.values())
        notes = found.notes if scheme.format else (*found.notes, DENSE)
        return [
            Made(
                f"scheme {scheme.name}",
                found.path,
                found.size_bytes,
                8 * found.size_bytes / max(weights, 1),
                found.rows,
                found.kept,
                notes,
            )
        ]

    def original(self, checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
        """The folder itself."""
        return checkpoint.path

    def texts(self, ask: Ask) -> Mapping[str, str]:
        """None."""
        return {}
