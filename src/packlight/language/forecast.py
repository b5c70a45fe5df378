"""The pre-flight of a language model: memory, time and size, before anything is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from packlight.language.ask import Ask
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import fixed_bytes, rounded_names
from packlight.llm.formats import FORMATS
from packlight.llm.text import Windows

_RUNTIME_BYTES = 400 << 20
"""Python with PyTorch, measured on Linux; without text PyTorch is not loaded."""
_PLAIN_BYTES = 120 << 20
_STATES_BYTES = 2 << 30
"""Hidden states in memory; more of them lie in a file (packlight.llm.compress.Settings)."""

_SECONDS_A_WEIGHT = 9e-7
"""Rounding with second moments, all candidates weighed, on two cores: a Llama of 5.8 million."""
_SECONDS_ALONE = 1.5e-7


@dataclass(frozen=True)
class LanguageForecast:
    """What a run would do. Sizes in bytes; seconds are rough, of a machine with two cores."""

    model: str
    architecture: str
    target: str
    parameters: int
    original_bytes: int
    size_bytes: int
    memory_bytes: int
    seconds: float
    roles: dict[str, int]
    notes: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """For a terminal."""
        roles = ", ".join(f"{count} {role}" for role, count in self.roles.items())
        return (
            f"Model: {self.model}, {self.architecture}, {self.parameters / 1e6:,.1f} million "
            f"weights, {self.original_bytes / 1e6:,.1f} MB",
            f"Tensors: {roles}",
            f"Size to expect: {self.size_bytes / 1e6:,.1f} MB",
            f"Memory needed: about {self.memory_bytes / 1e6:,.0f} MB",
            f"Time needed: about {max(self.seconds / 60, 1):,.0f} min",
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
            "seconds": self.seconds,
            "tensors": dict(self.roles),
            "notes": list(self.notes),
        }


def forecast_language(
    checkpoint: Checkpoint, ask: Ask, windows: Windows | None
) -> LanguageForecast:
    """Predict a run from the checkpoint's header alone: no weight is read."""
    tensors = checkpoint.tensors
    weights = sum(info.weights for info in tensors.values())
    notes = list(checkpoint.notes)
    if ask.types is not None:
        kinds = {**ask.types}
        rounded = sum(
            tensors[name].weights * FORMATS[kinds[name]].bits_per_weight / 8
            for name in rounded_names(checkpoint)
            if name in kinds
        )
        size = int(rounded) + fixed_bytes(checkpoint)
    elif ask.max_size_bytes is not None:
        size = ask.max_size_bytes
    else:
        size = int((ask.bits or 4.5) * weights / 8)
        if ask.max_drop is not None:
            notes.append("The size depends on what the text shows: 4.5 bits a weight are assumed.")
    if windows is None:
        notes.append(
            "No text: tensors would be rounded on their own, and nothing would be measured against "
            "a text of yours. Give one with --data."
        )
        largest = max((info.shape[-1] for info in tensors.values()), default=1)
        memory = _PLAIN_BYTES + 16 * (1 << 24) + 64 * largest
        seconds = weights * _SECONDS_ALONE
    else:
        memory = _RUNTIME_BYTES + _block_memory(checkpoint, windows)
        seconds = weights * _SECONDS_A_WEIGHT
    return LanguageForecast(
        checkpoint.path.name,
        checkpoint.config.architecture,
        ask.target,
        weights,
        checkpoint.size_bytes,
        size,
        memory,
        seconds,
        dict(Counter(info.role for info in tensors.values())),
        tuple(notes),
    )


def _block_memory(checkpoint: Checkpoint, windows: Windows) -> int:
    """The largest block as floats, with gradients; second moments of its widest layer; states."""
    blocks: Counter[int | None] = Counter()
    widest = 0
    for name, info in checkpoint.tensors.items():
        blocks[checkpoint.block_of(name)] += 4 * prod(info.shape)
        if len(info.shape) > 1:
            widest = max(widest, info.shape[-1])
    states = 4 * windows.calibration.size * checkpoint.config.width
    return 3 * max(blocks.values()) + 4 * 8 * widest**2 + min(2 * states, _STATES_BYTES)
