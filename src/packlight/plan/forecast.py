"""The pre-flight: what would happen, before anything does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from packlight.graph.layers import find_layers, find_unquantizable
from packlight.graph.model import Model
from packlight.graph.sizes import stored_bytes
from packlight.measure.evidence import Skipped
from packlight.plan.candidates import reason_kept, whole_recipes
from packlight.plan.goal import BALANCED, Goal
from packlight.plan.guess import guess_size
from packlight.targets import Target

# Megabytes that a child with the runtime needs by itself, measured on Linux.
_RUNTIME_MB = 90


@dataclass(frozen=True)
class Forecast:
    """What a run would do. size_bytes: predicted, by candidate; skipped: left alone, and why.

    max_drop: the loss of quality that is allowed; guessed_bytes: what that may come to, of the
    packed file where `packed`, guessed from the weights (see `plan.guess`); None without one.
    """

    model: str
    target: str
    original_bytes: int
    size_bytes: dict[str, int]
    memory_bytes: int
    layers: dict[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    max_drop: float | None = None
    guessed_bytes: int | None = None
    packed: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """For a terminal."""
        layers = ", ".join(f"{count} {op}" for op, count in self.layers.items()) or "none"
        text = [
            f"Model: {self.model}, {self.original_bytes / 1e3:,.0f} KB",
            f"Layers that can be compressed: {layers}",
            "Would be tried, with the size to expect:",
            *(f"  {label}: {size / 1e3:,.0f} KB" for label, size in self.size_bytes.items()),
            *self._guess,
            f"Memory needed: about {self.memory_bytes / 1e6:,.0f} MB",
            *self.notes,
        ]
        if self.skipped:
            text.append("Left alone:")
            text += [f"  {one.name}: {one.reason}" for one in self.skipped]
        return (*text, "Nothing was run, and nothing written (--dry-run).")

    @property
    def _guess(self) -> tuple[str, ...]:
        if self.guessed_bytes is None or self.max_drop is None:
            return ()
        return (
            f"With a loss of at most {100 * self.max_drop:.3g} %: about "
            f"{self.guessed_bytes / 1e3:,.0f} KB{' packed' * self.packed}, guessed from how much "
            "rounding would change the weights; only a run measures",
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "schema": 1,
            "model": self.model,
            "target": self.target,
            "original_bytes": self.original_bytes,
            "size_bytes": dict(self.size_bytes),
            "max_drop": self.max_drop,
            "guessed_bytes": self.guessed_bytes,
            "packed": self.packed,
            "memory_bytes": self.memory_bytes,
            "layers": dict(self.layers),
            "skipped": [{"name": one.name, "reason": one.reason} for one in self.skipped],
            "notes": list(self.notes),
        }


def forecast(
    model: Model,
    target: Target,
    goal: Goal = BALANCED,
    *,
    has_data: bool,
    max_drop: float | None = None,
    max_size: int | None = None,
) -> Forecast:
    """Predict a run from the file alone: nothing is run, nothing is simplified."""
    layers = find_layers(model.ir)
    held = sum(layer.bytes for layer in layers)
    rest = max(model.size_bytes - held, 0)
    sizes = {
        label: rest + sum(stored_bytes(layer, recipe.choice(layer.name)) for layer in layers)
        for label, recipe in whole_recipes(layers, target, generated=not has_data)
    }
    guessed = None
    if max_drop is not None:
        guessed = guess_size(layers, target, goal, max_drop, rest=rest, has_data=has_data)
    skipped = [Skipped(one.name, one.reason) for one in find_unquantizable(model.ir)]
    skipped += [
        Skipped(layer.name, reason) for layer in layers if (reason := reason_kept(layer, target))
    ]
    notes = []
    if not has_data:
        notes.append(
            "No samples: accuracy could not be measured, and only choices that need no activation "
            "ranges would be tried. Give some with --data."
        )
    if max_size is not None and min(sizes.values()) > max_size:
        notes.append(
            f"The size budget of {max_size} bytes is below every prediction: expect best-effort."
        )
    if not target.measured_here:
        notes.append(f"{target.title}: {target.note}")
    return Forecast(
        model=str(model.source),
        target=target.name,
        original_bytes=model.size_bytes,
        size_bytes=sizes,
        memory_bytes=(_RUNTIME_MB << 20) + 6 * model.size_bytes + (256 << 20),
        layers=dict(Counter(layer.op for layer in layers)),
        skipped=tuple(skipped),
        notes=tuple(notes),
        max_drop=max_drop,
        guessed_bytes=guessed,
        packed=goal.wish == "download",
    )
