"""Language models for onnxruntime: a decoder with its tokenizer, each layer with its own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packlight.language.ask import DEFAULT_BITS, Ask
from packlight.language.gguf import GgufTarget
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import Compressed, uniform_types
from packlight.llm.compress_alone import Spread
from packlight.llm.compress_forecast import (
    CompressionForecast,
    Pace,
    forecast_work,
    rounded_names,
)
from packlight.llm.costs import Choose
from packlight.llm.onnx.compress import compress_decoder
from packlight.llm.onnx.formats import CANDIDATES, FLOAT, ONNX
from packlight.llm.onnx.support import check_decoder
from packlight.llm.rounding import Settings
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress
from packlight.runtime.onnx_text import MODEL, ONNX_TEXT
from packlight.scratch import Scratch

_PACE = Pace(12e-6, 0.9e-6)


class OnnxTarget(GgufTarget):
    """See `packlight.language.target.LanguageTarget`. Files are made as for llama.cpp."""

    runtime = ONNX_TEXT
    model = MODEL
    formats = ONNX

    def check(self, checkpoint: Checkpoint, ask: Ask) -> None:
        """Raise WrongUsage or UnusableModel for what cannot be a decoder, or pins of no use."""
        check_decoder(checkpoint)
        super().check(checkpoint, ask)

    def forecast(
        self, checkpoint: Checkpoint, ask: Ask, windows: Windows | None
    ) -> tuple[CompressionForecast, tuple[str, ...]]:
        """What a run will take; the size is about what was asked for."""
        weights = sum(info.weights for info in checkpoint.tensors.values())
        size = ask.max_size_bytes or int((ask.bits or DEFAULT_BITS) * weights / 8)
        tokens = 0 if windows is None else int(windows.calibration.size)
        weighed = 0 if ask.types is not None else len(self.candidates(checkpoint, ask))
        names = rounded_names(checkpoint)
        work = forecast_work(checkpoint, names, size, tokens=tokens, weighed=weighed, pace=_PACE)
        if ask.max_drop is None:
            return work, ()
        said = "The size depends on what the text shows: 4.5 bits a weight are assumed."
        return work, (said,)

    def original(self, checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
        """The same decoder with its weights in 32 bits."""
        path = scratch.file("original", MODEL)
        if not path.is_file():
            progress.stage("writing the original for onnxruntime")
            compress_decoder(checkpoint, path, uniform_types(checkpoint, FLOAT, ONNX))
        return path.parent

    def candidates(self, checkpoint: Checkpoint, ask: Ask) -> tuple[str, ...]:
        """The formats that are weighed, fewest bits first."""
        return CANDIDATES

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
        progress: Progress = SILENT,
    ) -> Compressed:
        """The decoder of these formats, in a folder of its own."""
        found = compress_decoder(
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
        return replace(found, path=path.parent)

    def texts(self, ask: Ask) -> Mapping[str, str]:
        """None: what lies beside the graph is in its folder."""
        return {}
