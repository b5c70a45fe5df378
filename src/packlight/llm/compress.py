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
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra, UnusableModel, WrongUsage
from packlight.llm.calibrate_outputs import PARTS, SlopeStore, round_in_parts
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_forecast import other_bytes, rounded_names
from packlight.llm.costs import Choose, TensorCosts
from packlight.llm.formats import FORMATS, decode, fallback, fits, quantize_with_info, row_bytes
from packlight.llm.gguf import GgufFile, Writing, begin_gguf
from packlight.llm.journal import Journal, Row
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress
from packlight.version import __version__

Floats: TypeAlias = NDArray[np.float32]
Moments: TypeAlias = NDArray[np.float64]

_EXACT = ("F32", "F16", "BF16")
"""Formats in which nothing is left to make up for."""

SMALL = 1 << 26
"""Weights of a model up to which more effort is spent on each: three beginnings of descent in place
of one (which took the error of 2-bit blocks from 0.525 to 0.496 of llama.cpp's, of 4-bit ones from
0.530 to 0.510, on text held back), and rows that make up for each other in smaller parts."""

_PIECE = 1 << 21
"""Weights that are rounded at a time without text."""


@dataclass(frozen=True)
class Settings:
    """How tensors are rounded with text.

    aim: what a layer's outputs are fitted to before it is rounded, see
    `packlight.llm.calibrate.Aim`. pull: towards its own weight meanwhile. damping: of second
    moments in rounding.
    rows_make_up: for each other's errors, see `packlight.llm.calibrate_outputs`.
    curvature_tokens: that gradients are taken of. states_bytes: of hidden states in memory; more
    of them lie in a file. seed: of what is drawn.
    """

    aim: Literal["own", "outputs", "stream"] = "own"
    pull: float = 0.01
    damping: float = 0.01
    rows_make_up: bool = True
    curvature_tokens: int = 16384
    states_bytes: int = 2 << 30
    seed: int = 0


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


@dataclass
class Run:
    """What the steps of one run share."""

    checkpoint: Checkpoint
    types: Mapping[str, str]
    writing: Writing
    journal: Journal
    settings: Settings
    progress: Progress
    slopes: SlopeStore
    notes: list[str] = field(default_factory=list)


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
    progress: Progress = SILENT,
) -> Compressed:
    """Write a checkpoint as a GGUF file in which tensors have fewer bits.

    types: of each tensor (`uniform_types`, or any mapping by name), or what chooses them from
    what each of `candidates` is estimated to cost, under the `budget` that a word stands for (a
    killed run is gone on with under the same only). windows: of text; without it tensors are
    rounded on their own, and an architecture need not be known. metadata: replaces the
    checkpoint's own. A run with the same arguments that was killed is gone on with.
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
        slopes = SlopeStore(path.parent, f".{path.name}.slopes-")
        chosen = journal.types
        if chosen is None and not isinstance(types, Mapping):
            costs = _weigh(checkpoint, candidates, windows, settings, path, progress, slopes)
            chosen = dict(types(costs, other_bytes(checkpoint)))
        elif windows is not None and settings.rows_make_up and not _is_done(checkpoint, writing):
            _weigh(checkpoint, (), windows, settings, path, progress, slopes)
        chosen = _fit(checkpoint, chosen if chosen is not None else asked)
        if journal.types is None:
            journal.add_types(chosen)
        run = Run(checkpoint, chosen, writing, journal, settings, progress, slopes)
        if windows is None:
            _round_alone(run)
        else:
            from packlight.llm.compress_blocks import round_blocks

            round_blocks(run, windows, path.parent)
        file = writing.finish()
        journal.remove()
        slopes.clear()
    return _result(run, file)


def check_torch() -> None:
    """Raise MissingExtra where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as missing:
        raise MissingExtra(
            "compressing a language model with a text needs PyTorch, which is not installed: "
            "pip install 'packlight[llm]', or compress without a text"
        ) from missing


def round_tensor(run: Run, name: str, weight: Floats, moments: Moments | None) -> Floats:
    """Round a tensor, write it, and give what its bytes stand for.

    weight: [out, in], or [experts, out, in] with moments [experts, in, in] or None.
    """
    begun = time.monotonic()
    kind = run.types[name]
    original = weight if weight.ndim == 3 else weight[None]
    seen = [None] * len(original) if moments is None else moments.reshape(len(original), -1)
    pieces, near = [], np.empty_like(original)
    error = power = 0.0
    unseen = 0
    for e, (one, flat) in enumerate(zip(original, seen, strict=True)):
        h = None if flat is None else flat.reshape(one.shape[1], -1)
        if h is not None and not h.any():
            h, unseen = None, unseen + 1
        try:
            data = _quantize(run, name, one, h)
        except ValueError as broken:
            raise UnusableModel(f"{name} cannot be rounded to {kind}: {broken}") from broken
        near[e] = decode(kind, data)
        pieces.append(data)
        lost, whole = relative_error(one, near[e], h)
        error, power = error + lost, power + whole
    note = f"{unseen} experts saw no token of the text" if unseen else ""
    if note:
        run.notes.append(f"{name}: {note} and were rounded without")
    weights = int(weight.size)
    row = Row(
        name,
        kind,
        FORMATS[kind].bits_per_weight,
        weights,
        error / power if power else 0.0,
        moments is not None,
        round(time.monotonic() - begun, 3),
        note,
    )
    run.journal.add(row)  # before the tensor itself: a tensor without its row would stay without
    run.writing.add(name, kind, np.concatenate(pieces))
    run.progress.step(f"{name} {kind}")
    return near.reshape(weight.shape)


def _quantize(run: Run, name: str, weight: Floats, moments: Moments | None) -> NDArray[np.uint8]:
    """Bytes of a matrix, its rows making up for each other where gradients are known."""
    kind, damping = run.types[name], run.settings.damping
    slopes = run.slopes.read(name) if run.settings.rows_make_up and moments is not None else None
    # Symmetric and in float32, the solver uses it as it is.
    h = None if moments is None else moments.astype(np.float32)
    small = sum(info.weights for info in run.checkpoint.tensors.values()) <= SMALL
    if slopes is None or kind in _EXACT:
        starts = 3 if small else 1
        return quantize_with_info(kind, weight, h, damping=damping, starts=starts).data
    return round_in_parts(
        weight,
        slopes,
        lambda rows: quantize_with_info(kind, rows, h, damping=damping, threads=1).data,
        lambda data: decode(kind, data),
        parts=2 * PARTS if small else PARTS,
    )


def is_finished(run: Run, name: str) -> bool:
    """Whether an earlier run finished a tensor."""
    return name in run.writing.finished and name in run.journal.rows


def finished_tensor(run: Run, name: str) -> Floats | None:
    """What a tensor's bytes stand for, where an earlier run has finished it."""
    if not is_finished(run, name):
        return None
    shape = run.checkpoint.tensors[name].shape
    return decode(run.types[name], run.writing.read(name)).reshape(shape)


def keep_tensor(run: Run, name: str) -> None:
    """Write a tensor as it is, in 32 bits."""
    if name not in run.writing.finished:
        run.writing.add(name, "F32", run.checkpoint.read(name))


def relative_error(
    weight: Floats, near: Floats, moments: Moments | Floats | None
) -> tuple[float, float]:
    """Give tr(D H D^T) and tr(W H W^T), D the difference; H = I where there are no moments."""
    gap = weight - near
    if moments is None:
        return float(np.vdot(gap, gap)), float(np.vdot(weight, weight))
    h = moments.astype(np.float32, copy=False)
    return float(np.vdot(gap @ h, gap)), float(np.vdot(weight @ h, weight))


def _round_alone(run: Run) -> None:
    """Tensor by tensor, some rows at a time."""
    run.progress.stage("rounding", len(run.checkpoint.tensors))
    for name, info in run.checkpoint.tensors.items():
        if name not in run.types:
            keep_tensor(run, name)
            run.progress.step(name)
        elif is_finished(run, name):
            run.progress.step(name)
        else:
            _round_rows(run, name, info.shape)


def _round_rows(run: Run, name: str, shape: tuple[int, ...]) -> None:
    begun = time.monotonic()
    kind, inputs, rows = run.types[name], shape[-1], prod(shape[:-1])
    data = np.empty((rows, row_bytes(kind, inputs)), np.uint8)
    step = max(_PIECE // inputs, 1)
    error = power = 0.0
    for at in range(0, rows, step):
        weight = run.checkpoint.read_rows(name, at, min(at + step, rows))
        data[at : at + step] = _quantize(run, name, weight, None)
        lost, whole = relative_error(weight, decode(kind, data[at : at + step]), None)
        error, power = error + lost, power + whole
    bits, seconds = FORMATS[kind].bits_per_weight, round(time.monotonic() - begun, 3)
    ratio = error / power if power else 0.0
    run.journal.add(Row(name, kind, bits, rows * inputs, ratio, False, seconds))
    run.writing.add(name, kind, data)
    run.progress.step(f"{name} {kind}")


def _weigh(
    checkpoint: Checkpoint,
    candidates: Sequence[str],
    windows: Windows | None,
    settings: Settings,
    path: Path,
    progress: Progress,
    slopes: SlopeStore,
) -> tuple[TensorCosts, ...]:
    """What each candidate costs each tensor; with text, gradients at the layers' outputs too."""
    if windows is None:
        return _costs_alone(checkpoint, candidates, progress)
    from packlight.llm.compress_blocks import estimate_costs

    kept = slopes if settings.rows_make_up else None
    return estimate_costs(checkpoint, windows, candidates, settings, path.parent, progress, kept)


def _is_done(checkpoint: Checkpoint, writing: Writing) -> bool:
    return len(writing.finished) == len(checkpoint.tensors)


def _costs_alone(
    checkpoint: Checkpoint, candidates: Sequence[str], progress: Progress
) -> tuple[TensorCosts, ...]:
    from packlight.llm.costs import costs_without_text

    names = rounded_names(checkpoint)
    progress.stage("weighing types", len(names))
    found = []
    for name in names:
        rows = checkpoint.read_rows(name, 0, min(prod(checkpoint.tensors[name].shape[:-1]), 512))
        found.append(costs_without_text(name, checkpoint.tensors[name].shape, rows, candidates))
        progress.step(name)
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


def _result(run: Run, file: GgufFile) -> Compressed:
    rows = run.journal.rows
    tensors = run.checkpoint.tensors
    return Compressed(
        path=file.path,
        size_bytes=file.path.stat().st_size,
        rows=tuple(rows[name] for name in file.tensors if name in rows),
        kept=tuple(name for name in tensors if name not in rows),
        notes=(*run.checkpoint.notes, *run.notes),
    )
