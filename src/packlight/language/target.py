"""What the story of a language model asks of the runtime that it is meant for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from packlight.language.ask import Ask
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import Spread, spread_over_threads
from packlight.llm.compress_forecast import CompressionForecast
from packlight.llm.journal import Row
from packlight.llm.text import Windows
from packlight.plan.workers import run_in_turn
from packlight.progress import Progress
from packlight.runtime.text import TextRuntime
from packlight.scratch import Scratch


@dataclass(frozen=True)
class Made:
    """A model that was made.

    path: of its file or folder. size_bytes: of that file, or of the weights in the folder.
    bits_per_weight: of all tensors, scales included. rows: of every tensor that was rounded.
    kept: why others were not, by name. lost: share of most probable tokens that changed on the
    text for choosing, with the mean KL divergence there; None where that was not measured.
    """

    label: str
    path: Path
    size_bytes: int
    bits_per_weight: float
    rows: tuple[Row, ...]
    kept: Mapping[str, str]
    notes: tuple[str, ...]
    lost: float | None = None
    mean_kl: float | None = None

    @property
    def types(self) -> dict[str, str]:
        """The type of each rounded tensor."""
        return {row.name: row.type for row in self.rows}


class LanguageTarget(Protocol):
    """A runtime that language models are made for, by its name on the command line."""

    @property
    def runtime(self) -> TextRuntime:
        """What the figures are read in."""

    @property
    def untimed(self) -> str:
        """Why speed and memory say nothing in that runtime; empty where they do."""

    @property
    def default_note(self) -> str:
        """What was asked for where the user named nothing."""

    def check(self, checkpoint: Checkpoint, ask: Ask) -> None:
        """Raise WrongUsage for what cannot be made of a checkpoint."""

    def forecast(
        self, checkpoint: Checkpoint, ask: Ask, windows: Windows | None
    ) -> tuple[CompressionForecast, tuple[str, ...]]:
        """What a run will take, and what else there is to say."""

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
        """Make the model; several where a quality is asked for, each nearer to it.

        original: what the checkpoint is held to; it may have more blocks. workers: processes, or
        a Ray cluster, that take windows of the text or, without one, tensors.
        """

    def original(self, checkpoint: Checkpoint, scratch: Scratch, progress: Progress) -> Path:
        """The original as the runtime reads it."""

    def texts(self, ask: Ask) -> Mapping[str, str]:
        """Other files of the output folder, by name."""


def spread_over(workers: int | str) -> Spread:
    """Over whom windows, or without a text tensors, are spread: this process's threads for 1."""
    return spread_over_threads if workers == 1 else partial(run_in_turn, workers=workers)
