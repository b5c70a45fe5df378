"""A run towards a folder for vLLM: which tensors it will hold, each written once and for all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from packlight.llm.calibrate_outputs import PARTS, SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import RoundedPiece, Spread, round_spread
from packlight.llm.journal import Journal, Row
from packlight.llm.rounding import Floats, Settings
from packlight.llm.rounding_matrices import Matrix, RoundedMatrix, figures
from packlight.llm.schemes.layouts import (
    Bytes,
    decode_parts,
    list_parts,
    to_half,
)
from packlight.llm.schemes.rows import RowFormat, cut_stored, round_rows
from packlight.llm.schemes.shards import SHARD_BYTES, FolderWriting, ShardPlan, plan_shards
from packlight.llm.schemes.solve import global_scale_of
from packlight.llm.schemes.sources import (
    is_linear,
    other_tensors,
    outputs_of,
    read_pieces,
    to_folder_rows,
    to_model_rows,
)
from packlight.llm.schemes.table import Scheme
from packlight.llm.storage import Stored
from packlight.progress import Progress

_FLOATS = {"F32": "<f4", "F64": "<f8"}
"""Those that are stored in 16 bits."""

_MOST, _LEAST = 32768.0, 2.0**-7
"""Largest weights of a tensor for which it and its scales, a 127th of them, fit in F16."""

_FUSED = (("attn_q.", "attn_k.", "attn_v."), ("ffn_gate.", "ffn_up."))
"""Layers that vLLM computes as one: in nvfp4 they share the number of their tensors."""


@dataclass(frozen=True)
class FolderPlan:
    """What a folder will hold.

    half: F16 or BF16, in which wide tensors are stored. rounded: the tensors of the model that
    the scheme is for. kept: why others are not, by name. others: tensors of no part of the model.
    """

    scheme: Scheme
    half: str
    rounded: tuple[str, ...]
    kept: Mapping[str, str]
    others: tuple[Stored, ...]
    shards: ShardPlan


def plan_folder(checkpoint: Checkpoint, scheme: Scheme, half: str = "") -> FolderPlan:
    """Plan a folder from the checkpoint's heads alone. half: as `find_half` says, or a guess."""
    common = _common_type(checkpoint)
    half = half or ("BF16" if common == "BF16" else "F16")
    rounded, kept = [], {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, info in checkpoint.tensors.items():
        reason = _why_kept(checkpoint, scheme, name)
        if reason:
            kept[name] = reason
        else:
            rounded.append(name)
        for output, one in zip(
            outputs_of(checkpoint, name), checkpoint.parts[name].sources, strict=True
        ):
            if reason:
                tensors[output] = (_kept_type(one, common, half), one.shape)
                continue
            shape = (info.shape[-2], info.shape[-1])
            for ending, part in list_parts(scheme, shape, half).items():
                tensors[f"{output.removesuffix('.weight')}.{ending}"] = part
    others = other_tensors(checkpoint)
    tensors |= {one.name: (_kept_type(one, common, half), one.shape) for one in others}
    return FolderPlan(scheme, half, tuple(rounded), kept, others, plan_shards(tensors, SHARD_BYTES))


def find_half(checkpoint: Checkpoint) -> str:
    """The 16-bit floats that a checkpoint is stored in: its own, and of 32 bits F16.

    In F16, in which vLLM computes with such checkpoints, three more bits of every number are kept
    than in BF16 (whose rounding of norms alone cost a Llama of 5.8 million weights 0.04 % of its
    perplexity). All weights must fit, and scales of rounded ones stay normal numbers; else BF16.
    """
    common = _common_type(checkpoint)
    if common in ("F16", "BF16"):
        return common
    for name in checkpoint.tensors:
        largest = max(float(np.abs(piece).max()) for piece in checkpoint.read_blocks(name))
        if largest > _MOST or (is_linear(checkpoint, name) and 0 < largest < _LEAST):
            return "BF16"
    for one in other_tensors(checkpoint):
        if one.dtype in _FLOATS:
            pieces = (piece.view(_FLOATS[one.dtype]) for piece in read_pieces(one))
            if any(np.abs(piece).max() > _MOST for piece in pieces):
                return "BF16"
    return "F16"


def _common_type(checkpoint: Checkpoint) -> str:
    wide = Counter[str]()
    for info in checkpoint.tensors.values():
        wide[info.dtype] += info.weights
    return wide.most_common(1)[0][0]


def _why_kept(checkpoint: Checkpoint, scheme: Scheme, name: str) -> str:
    """Why a tensor stays in 16 bits, or ''."""
    if not is_linear(checkpoint, name):
        return "no linear layer of a block: vLLM's recipes keep it in 16 bits"
    inputs = checkpoint.tensors[name].shape[-1]
    if scheme.group_of(inputs) is None:
        sizes = " or ".join(map(str, scheme.groups))
        return f"its rows of {inputs} weights do not divide into groups of {sizes}"
    if scheme.pattern is not None and scheme.pattern.of and inputs % scheme.pattern.of:
        return f"its rows of {inputs} weights do not divide by {scheme.pattern.of}"
    return ""


def _kept_type(stored: Stored, common: str, half: str) -> str:
    """A 16-bit checkpoint may hold a few tensors in 32 bits, and means it."""
    return half if stored.dtype in _FLOATS and common in _FLOATS else stored.dtype


@dataclass
class FolderRun:
    """See `packlight.llm.rounding.Rounding`."""

    checkpoint: Checkpoint
    plan: FolderPlan
    writing: FolderWriting
    journal: Journal
    settings: Settings
    progress: Progress
    slopes: SlopeStore
    notes: list[str] = field(default_factory=list)

    def wants(self, name: str) -> bool:
        """Whether a tensor is to be rounded."""
        return name in self.plan.rounded

    def finished(self, name: str) -> Floats | None:
        """What a tensor's bytes stand for, where an earlier run has finished it."""
        if not self._is_finished(name):
            return None
        shape, part = self.checkpoint.tensors[name].shape, self.checkpoint.parts[name]
        found = []
        for base in self._bases(name):
            parts = {end: self.writing.read(f"{base}.{end}") for end in self._endings(name)}
            rows = decode_parts(self.plan.scheme, parts, self.plan.half)
            found.append(to_model_rows(part, rows))
        return np.concatenate(found).reshape(shape)

    def keep(self, name: str) -> None:
        """Write a tensor without rounding it."""
        outputs, part = outputs_of(self.checkpoint, name), self.checkpoint.parts[name]
        if part.scales is not None:
            whole = self.checkpoint.read(name).reshape(len(outputs), -1, part.shape[-1])
            for output, one in zip(outputs, whole, strict=True):
                self._add(output, to_folder_rows(part, one))
            return
        for output, stored in zip(outputs, part.sources, strict=True):
            self._copy(output, stored)

    def keep_others(self) -> None:
        """Write the tensors that belong to no part of the model."""
        for stored in self.plan.others:
            self._copy(stored.name, stored)

    def matrix(self, name: str) -> Matrix:
        """See `packlight.llm.rounding_matrices.Taking`.

        In schemes that do as others have published no rows make up for each other.
        """
        make_up = self.settings.rows_make_up and self.plan.scheme.solver == "refit"
        slopes = self.slopes.path(name) if make_up else None
        return Matrix(name, self._rows(name), slopes, PARTS)

    def take(
        self, name: str, rounded: Sequence[RoundedMatrix], *, compensated: bool, note: str
    ) -> None:
        """See `packlight.llm.rounding_matrices.Taking`."""
        part, rows = self.checkpoint.parts[name], self._rows(name)
        if note:
            self.notes.append(f"{name}: {note} and were rounded without")
        for base, one in zip(self._bases(name), rounded, strict=True):
            self._write(base, rows.parts(to_folder_rows(part, one.data)))
        self._tell(name, *figures(rounded, compensated), note)
        self.progress.step(f"{name} {self.plan.scheme.name}")

    def round_alone(self, spread: Spread) -> None:
        """All tensors without text, pieces of them spread over whoever takes them.

        Rows as the folder has them: they do not know each other.
        """
        pieces = {
            name: [
                piece
                for stored in self.checkpoint.parts[name].sources
                for piece in cut_stored(name, self._rows(name), stored)
            ]
            for name in self.checkpoint.tensors
            if self.wants(name) and not self._is_finished(name)
        }
        round_spread(self, spread, round_rows, pieces, self._write_pieces)

    def _write_pieces(self, name: str, pieces: Iterator[RoundedPiece]) -> None:
        begun, rows = time.monotonic(), self._rows(name)
        error = power = 0.0
        for base, stored in zip(
            self._bases(name), self.checkpoint.parts[name].sources, strict=True
        ):
            count = len(cut_stored(name, rows, stored))
            some = [*islice(pieces, count)]
            error += sum(one.error for one in some)
            power += sum(one.power for one in some)
            self._write(base, rows.parts(np.concatenate([one.data for one in some])))
        seconds = round(time.monotonic() - begun, 3)
        self._tell(name, error / power if power else 0.0, False, seconds, "")

    def _rows(self, name: str) -> RowFormat:
        inputs = self.checkpoint.tensors[name].shape[-1]
        whole = 1.0
        if self.plan.scheme.format == "nvfp4-pack-quantized":
            whole = global_scale_of(self._peak(name))
        return RowFormat(self.plan.scheme, inputs, self.plan.half, whole, self.settings.damping)

    def _peak(self, name: str) -> float:
        """The largest weight of a layer and of those that vLLM computes together with it."""
        names = [name]
        for kinds in _FUSED:
            for kind in kinds:
                if kind in name:
                    names += [name.replace(kind, other) for other in kinds if other != kind]
        return max(
            float(np.abs(piece).max())
            for one in names
            if one in self.plan.rounded
            for piece in self.checkpoint.read_blocks(one)
        )

    def _is_finished(self, name: str) -> bool:
        written = self.writing.finished
        return name in self.journal.rows and all(
            f"{base}.{end}" in written for base in self._bases(name) for end in self._endings(name)
        )

    def _bases(self, name: str) -> list[str]:
        return [one.removesuffix(".weight") for one in outputs_of(self.checkpoint, name)]

    def _endings(self, name: str) -> list[str]:
        shape = self.checkpoint.tensors[name].shape
        return list(list_parts(self.plan.scheme, (shape[-2], shape[-1]), self.plan.half))

    def _write(self, base: str, parts: Mapping[str, Bytes]) -> None:
        for ending, data in parts.items():
            self.writing.add(f"{base}.{ending}", [data])

    def _tell(self, name: str, error: float, seen: bool, seconds: float, note: str) -> None:
        """Note what is to be said of a tensor; only then it counts as finished."""
        slots = self.writing.plan.slots
        held = sum(
            slots[f"{base}.{end}"].size for base in self._bases(name) for end in self._endings(name)
        )
        weights, kind = self.checkpoint.tensors[name].weights, self.plan.scheme.name
        self.journal.add(Row(name, kind, 8 * held / weights, weights, error, seen, seconds, note))

    def _add(self, output: str, rows: Floats) -> None:
        """Write rows that are not what is stored. Of the sources' types floats alone come here."""
        dtype = self.writing.plan.slots[output].dtype
        if dtype in _FLOATS:
            self.writing.add(output, [np.ascontiguousarray(rows, _FLOATS[dtype]).view(np.uint8)])
        else:
            self.writing.add(output, [to_half(rows, dtype)])

    def _copy(self, output: str, stored: Stored) -> None:
        dtype = self.writing.plan.slots[output].dtype
        pieces: Iterator[Bytes] = read_pieces(stored)
        if dtype != stored.dtype:
            pieces = (
                to_half(piece.view(_FLOATS[stored.dtype]).astype(np.float32)[None], dtype)
                for piece in pieces
            )
        self.writing.add(output, pieces)
