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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packlight.errors import WrongUsage
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import Spread, Trial, spread_over_threads, weigh_alone
from packlight.llm.compress_forecast import other_bytes, rounded_names
from packlight.llm.compress_gguf import GgufRun
from packlight.llm.costs import GGUF, Choose, FormatTable, TensorCosts
from packlight.llm.gguf import GgufFile, begin_gguf
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


def uniform_types(checkpoint: Checkpoint, kind: str, formats: FormatTable = GGUF) -> dict[str, str]:
    """Give every tensor that is rounded the same type, or the next that fits its width."""
    if kind not in formats.blocks:
        raise WrongUsage(f"there is no type {kind!r}: use one of {', '.join(formats.blocks)}")
    tensors, names = checkpoint.tensors, rounded_names(checkpoint)
    return {name: formats.fallback(kind, tensors[name].shape[-1]) for name in names}


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
    checkpoint's own. spread: over whom windows or, without text, pieces of tensors are spread,
    which changes no byte. slopes: of whoever makes several files with the same windows and
    settings, for which gradients are then measured once. A run with the same arguments that was
    killed is gone on with. Raises UnusableModel, UnusableOutput, MissingExtra (PyTorch, for
    windows), WrongUsage.
    """
    settings = settings or Settings()
    if windows is not None:
        check_torch()
    asked = what_is_asked(types, candidates, budget)
    key = compression_key(checkpoint, asked, windows, settings)
    with begin_gguf(path, checkpoint, metadata=metadata, settings=key) as writing:
        journal = Journal(path.with_name(f".{path.name}.rows"), key)
        own = slopes or SlopeStore(path.parent, f".{path.name}.slopes-")
        weighing = Weighing(
            checkpoint, candidates, windows, settings, path.parent, progress, own, spread
        )
        done = len(writing.finished) == len(checkpoint.tensors)
        chosen = settle_types(weighing, types, journal, lambda: other_bytes(checkpoint), done)
        chosen = fit_types(checkpoint, chosen)
        if journal.types is None:
            journal.add_types(chosen)
        run = GgufRun(checkpoint, chosen, writing, journal, settings, progress, own)
        if windows is None:
            run.round_alone(spread)
        else:
            from packlight.llm.compress_blocks import round_blocks

            round_blocks(run, windows, path.parent, spread)
        file = writing.finish()
        journal.remove()
        if slopes is None:
            own.clear()
    return _result(run, file)


@dataclass(frozen=True)
class Weighing:
    """What types are weighed with. scratch: a folder for what is too large for memory."""

    checkpoint: Checkpoint
    candidates: Sequence[str]
    windows: Windows | None
    settings: Settings
    scratch: Path
    progress: Progress
    slopes: SlopeStore
    spread: Spread = spread_over_threads
    formats: FormatTable = GGUF

    def costs(self, candidates: Sequence[str]) -> tuple[TensorCosts, ...]:
        """What each type costs each tensor; with text, gradients at layers' outputs are kept."""
        if self.windows is None:
            return self._costs_alone(candidates)
        from packlight.llm.compress_blocks import estimate_costs

        found = estimate_costs(
            self.checkpoint,
            self.windows,
            candidates,
            self.settings,
            self.scratch,
            self.progress,
            self.slopes if self.settings.rows_make_up else None,
            self.formats,
            self.spread,
        )
        self.slopes.complete = self.settings.rows_make_up
        return found

    def _costs_alone(self, candidates: Sequence[str]) -> tuple[TensorCosts, ...]:
        names, parts = rounded_names(self.checkpoint), self.checkpoint.parts
        self.progress.stage("weighing types", len(names))
        tasks = [Trial(name, parts[name], tuple(candidates), self.formats) for name in names]
        found = []
        for costs in self.spread(weigh_alone, tasks):
            found.append(costs)
            self.progress.step(costs.name)
        return tuple(found)


def settle_types(
    weighing: Weighing,
    types: Mapping[str, str] | Choose,
    journal: Journal,
    other: Callable[[], int],
    done: bool,
) -> Mapping[str, str]:
    """The type of each tensor: as given, as an earlier run chose, or as is chosen from costs now.

    other: bytes of the file that are no choice. done: whether nothing is left to be rounded.
    """
    chosen: Mapping[str, str] | None = journal.types
    if chosen is None and not isinstance(types, Mapping):
        return dict(types(weighing.costs(weighing.candidates), other()))
    wanted = weighing.windows is not None and weighing.settings.rows_make_up
    if wanted and not done and not weighing.slopes.complete:
        weighing.costs(())
    if chosen is not None:
        return chosen
    assert isinstance(types, Mapping)
    return types


def what_is_asked(
    types: Mapping[str, str] | Choose, candidates: Sequence[str], budget: str
) -> dict[str, Any]:
    """Which types, or among which they are chosen: what an unfinished file is known by."""
    if isinstance(types, Mapping):
        return dict(types)
    return {"candidates": [*candidates], "budget": budget}


def fit_types(
    checkpoint: Checkpoint, types: Mapping[str, str], formats: FormatTable = GGUF
) -> dict[str, str]:
    """Types of tensors that are rounded, each held to the width of its rows."""
    names = rounded_names(checkpoint)
    for name, kind in types.items():
        if name not in names:
            raise WrongUsage(f"{name} is no tensor of this model that a type can be given to")
        width = checkpoint.tensors[name].shape[-1]
        known = kind in formats.blocks
        if not known or not formats.fits(kind, width):
            raise WrongUsage(
                f"{name} has rows of {width} weights, which {kind} does not hold: use "
                f"{formats.fallback(kind, width) if known else ', '.join(formats.blocks)}"
            )
    return {name: types[name] for name in names if name in types}


def compression_key(
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
