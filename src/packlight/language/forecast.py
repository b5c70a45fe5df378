"""The pre-flight of a language model: memory, time and size, before anything is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from packlight.language.ask import Ask
from packlight.language.target import LanguageTarget
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_forecast import forecast_workers
from packlight.llm.text import Windows


@dataclass(frozen=True)
class LanguageForecast:
    """What a run would do. Sizes in bytes; seconds are rough, of a machine with two cores.

    scratch_bytes: on the disk meanwhile, beside the file. tensors: how many of each role.
    """

    model: str
    architecture: str
    target: str
    parameters: int
    original_bytes: int
    size_bytes: int
    memory_bytes: int
    scratch_bytes: int
    seconds: float
    tensors: dict[str, int]
    notes: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """For a terminal."""
        roles = ", ".join(f"{count} {role}" for role, count in self.tensors.items())
        disk = self.scratch_bytes + self.size_bytes
        minutes = self.seconds / 60
        return (
            f"Model: {self.model}, {self.architecture}, {self.parameters / 1e6:,.1f} million "
            f"weights, {self.original_bytes / 1e6:,.1f} MB",
            f"Tensors: {roles}",
            f"Size to expect: {self.size_bytes / 1e6:,.1f} MB",
            f"Memory needed: about {self.memory_bytes / 1e6:,.0f} MB",
            f"Disk needed: about {disk / 1e6:,.0f} MB",
            f"Time needed: about {minutes:,.0f} min" if minutes > 1 else "Time needed: a minute",
            *self.notes,
            "Nothing was run, and nothing written (--dry-run).",
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "schema": 1,
            "kind": "language-model",
            "model": self.model,
            "architecture": self.architecture,
            "target": self.target,
            "parameters": self.parameters,
            "original_bytes": self.original_bytes,
            "size_bytes": self.size_bytes,
            "memory_bytes": self.memory_bytes,
            "scratch_bytes": self.scratch_bytes,
            "seconds": self.seconds,
            "tensors": dict(self.tensors),
            "notes": list(self.notes),
        }


def forecast_language(
    target: LanguageTarget,
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    workers: int | str = 1,
) -> LanguageForecast:
    """Predict a run from the checkpoint's header alone: no weight is read."""
    found, said = target.forecast(checkpoint, ask, windows)
    notes = [*checkpoint.notes, *said]
    memory, scratch = found.memory_bytes, found.scratch_bytes
    if workers != 1:
        tokens = 0 if windows is None else int(windows.calibration.size)
        each = forecast_workers(checkpoint, tokens=tokens)
        own = f"{each.memory_bytes / 1e6:,.0f} MB of memory"
        own += f" and {each.scratch_bytes / 1e6:,.0f} MB of disk" if windows is not None else ""
        scratch += each.shared_bytes
        if isinstance(workers, int):
            memory += workers * each.memory_bytes
            scratch += workers * each.scratch_bytes
            notes.append(f"Each of the {workers} workers takes about {own} of that.")
        else:
            notes.append(f"Each process on the cluster takes about {own} besides.")
        notes.append("The time is that of one process.")
    if windows is None:
        notes.append(
            "No text: tensors would be rounded on their own, and nothing would be measured against "
            "a text of yours. Give one with --data."
        )
    return LanguageForecast(
        checkpoint.path.name,
        checkpoint.config.architecture,
        ask.target,
        sum(info.weights for info in checkpoint.tensors.values()),
        checkpoint.size_bytes,
        found.size_bytes,
        memory,
        scratch,
        found.seconds,
        dict(Counter(info.role for info in checkpoint.tensors.values())),
        tuple(notes),
    )
