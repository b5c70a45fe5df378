"""A checkpoint becomes a GGUF file: the story of the language-model wing.

    checkpoint (+ text) -> types per tensor -> block by block: observe, round, replace -> file

With text every layer is rounded under the second moments of what reaches it once all before it
are compressed; without, tensor by tensor on its own. A killed run goes on: finished tensors are
read back from the unfinished file, the hidden states are computed again, and the bytes come out
the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packlight.errors import WrongUsage
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import Spread, Weighing, spread_over_threads, weigh_alone
from packlight.llm.compress_forecast import other_bytes, rounded_names
from packlight.llm.compress_gguf import GgufRun
from packlight.llm.costs import Choose, TensorCosts
from packlight.llm.formats import FORMATS, fallback, fits
from packlight.llm.gguf import GgufFile, Writing, begin_gguf
from packlight.llm.journal import Journal, Row
from packlight.llm.rounding import Settings, check_torch
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress
from packlight.version import __version__


@dataclass(frozen=True)
class Compressed:
    """A finished compression. rows: of every tensor that was rounded, in the file's order."""

    path: Path
    size_bytes: int
    rows: tuple[Row, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def types(self) -> dict[str, str]:
        """The type of each rounded tensor."""
        return {row.name: row.type for row in self.rows}

    @property
    def bits_per_weight(self) -> float:
        """Average bits of the rounded weights, scales included."""
        weights = sum(row.weights for row in self.rows)
        return sum(row.bits * row.weights for row in self.rows) / max(weights, 1)


def uniform_types(checkpoint: Checkpoint, kind: str) -> dict[str, str]:
    """Give every tensor that is rounded the same type, or the next that fits its width."""
    if kind not in FORMATS:
        raise WrongUsage(f"there is no type {kind!r}: use one of {', '.join(FORMATS)}")
    tensors = checkpoint.tensors
    return {name: fallback(kind, tensors[name].shape[-1]) for name in rounded_names(checkpoint)}


def compress_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    types: Mapping[str, str] | Choose,
    *,
    windows: Windows | None = None,
    candidates: Sequence[str] = (),
    budget: str = "",
    settings: Settings | None = None,
    metadata: Mapping[str, Any] | None = None,
    spread: Spread = spread_over_threads,
    slopes: SlopeStore | None = None,
    progress: Progress = SILENT,
) -> Compressed:
    """Write a checkpoint as a GGUF file in which tensors have fewer bits.

    types: of each tensor (`uniform_types`, or any mapping by name), or what chooses them from
    what each of `candidates` is estimated to cost, under the `budget` that a word stands for (a
    killed run is gone on with under the same only). windows: of text; without it tensors are
    rounded on their own, and an architecture need not be known. metadata: replaces the
    checkpoint's own. spread: over whom pieces of tensors are spread without text, which changes no
    byte. slopes: of whoever makes several files with the same windows and settings, for which
    gradients are then measured once. A run with the same arguments that was killed is gone on with.
    Raises UnusableModel, UnusableOutput, MissingExtra (PyTorch, for windows), WrongUsage.
    """
    settings = settings or Settings()
    if windows is not None:
        check_torch()
    asked: dict[str, Any] = (
        dict(types)
        if isinstance(types, Mapping)
        else {"candidates": [*candidates], "budget": budget}
    )
    key = _key(checkpoint, asked, windows, settings)
    with begin_gguf(path, checkpoint, metadata=metadata, settings=key) as writing:
        journal = Journal(path.with_name(f".{path.name}.rows"), key)
        own = slopes or SlopeStore(path.parent, f".{path.name}.slopes-")
        chosen = journal.types
        if chosen is None and not isinstance(types, Mapping):
            if windows is None:
                costs = _costs_alone(checkpoint, candidates, spread, progress)
            else:
                costs = _weigh(checkpoint, candidates, windows, settings, path, progress, own)
            chosen = dict(types(costs, other_bytes(checkpoint)))
        elif windows is not None and _lacks_slopes(checkpoint, writing, settings, own):
            _weigh(checkpoint, (), windows, settings, path, progress, own)
        chosen = _fit(checkpoint, chosen if chosen is not None else asked)
        if journal.types is None:
            journal.add_types(chosen)
        run = GgufRun(checkpoint, chosen, writing, journal, settings, progress, own)
        if windows is None:
            run.round_alone(spread)
        else:
            from packlight.llm.compress_blocks import round_blocks

            round_blocks(run, windows, path.parent)
        file = writing.finish()
        journal.remove()
        if slopes is None:
            own.clear()
    return _result(run, file)


def _weigh(
    checkpoint: Checkpoint,
    candidates: Sequence[str],
    windows: Windows,
    settings: Settings,
    path: Path,
    progress: Progress,
    slopes: SlopeStore,
) -> tuple[TensorCosts, ...]:
    """What each candidate costs each tensor, and gradients at the layers' outputs."""
    from packlight.llm.compress_blocks import estimate_costs

    kept = slopes if settings.rows_make_up else None
    found = estimate_costs(checkpoint, windows, candidates, settings, path.parent, progress, kept)
    slopes.complete = settings.rows_make_up
    return found


def _lacks_slopes(
    checkpoint: Checkpoint, writing: Writing, settings: Settings, slopes: SlopeStore
) -> bool:
    done = len(writing.finished) == len(checkpoint.tensors)
    return settings.rows_make_up and not slopes.complete and not done


def _costs_alone(
    checkpoint: Checkpoint, candidates: Sequence[str], spread: Spread, progress: Progress
) -> tuple[TensorCosts, ...]:
    """What each candidate costs each tensor, as far as its own weights tell."""
    names = rounded_names(checkpoint)
    progress.stage("weighing types", len(names))
    tasks = [Weighing(name, checkpoint.parts[name], tuple(candidates)) for name in names]
    found = []
    for costs in spread(weigh_alone, tasks):
        found.append(costs)
        progress.step(costs.name)
    return tuple(found)


def _fit(checkpoint: Checkpoint, types: Mapping[str, str]) -> dict[str, str]:
    """Types of tensors that are rounded, each held to the width of its rows."""
    names = rounded_names(checkpoint)
    for name, kind in types.items():
        if name not in names:
            raise WrongUsage(f"{name} is no tensor of this model that a type can be given to")
        width = checkpoint.tensors[name].shape[-1]
        if kind not in FORMATS or not fits(kind, width):
            raise WrongUsage(
                f"{name} has rows of {width} weights, which {kind} does not hold: use "
                f"{fallback(kind, width) if kind in FORMATS else ', '.join(FORMATS)}"
            )
    return {name: types[name] for name in names if name in types}


def _key(
    checkpoint: Checkpoint, asked: Mapping[str, Any], windows: Windows | None, settings: Settings
) -> str:
    """What the bytes depend on, besides the metadata, which the file's own journal knows."""
    said = {
        "packlight": __version__,
        "checkpoint": checkpoint.fingerprint,
        "types": asked,
        "text": None if windows is None else windows.fingerprint,
        "settings": {k: v for k, v in asdict(settings).items() if k != "states_bytes"},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _result(run: GgufRun, file: GgufFile) -> Compressed:
    rows = run.journal.rows
    tensors = run.checkpoint.tensors
    return Compressed(
        path=file.path,
        size_bytes=file.path.stat().st_size,
        rows=tuple(rows[name] for name in file.tensors if name in rows),
        kept=tuple(name for name in tensors if name not in rows),
        notes=(*run.checkpoint.notes, *run.notes),
    )
