"""A run towards a GGUF file: tensors rounded to its formats, each written once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.calibrate_outputs import PARTS, SlopeStore, round_in_parts
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import (
    RoundedPiece,
    Spread,
    pieces_of,
    round_piece,
    round_spread,
)
from packlight.llm.costs import GGUF
from packlight.llm.formats import FORMATS, decode, quantize_with_info
from packlight.llm.gguf import Writing
from packlight.llm.journal import Journal, Row
from packlight.llm.rounding import Floats, Moments, Settings, round_experts
from packlight.progress import Progress

_EXACT = ("F32", "F16", "BF16")
"""Formats in which nothing is left to make up for."""

SMALL = 1 << 26
"""Weights of a model up to which more effort is spent on each: three beginnings of descent in place
of one (which took the error of 2-bit blocks from 0.525 to 0.496 of llama.cpp's, of 4-bit ones from
0.530 to 0.510, on text held back), and rows that make up for each other in smaller parts."""


@dataclass
class GgufRun:
    """See `packlight.llm.rounding.Rounding`. types: of the tensors that are rounded."""

    checkpoint: Checkpoint
    types: Mapping[str, str]
    writing: Writing
    journal: Journal
    settings: Settings
    progress: Progress
    slopes: SlopeStore
    notes: list[str] = field(default_factory=list)

    def wants(self, name: str) -> bool:
        """Whether a tensor is to be rounded."""
        return name in self.types

    def finished(self, name: str) -> Floats | None:
        """What a tensor's bytes stand for, where an earlier run has finished it."""
        if not self._is_finished(name):
            return None
        shape = self.checkpoint.tensors[name].shape
        return decode(self.types[name], self.writing.read(name)).reshape(shape)

    def keep(self, name: str) -> None:
        """Write a tensor as it is, in 32 bits."""
        if name not in self.writing.finished:
            self.writing.add(name, "F32", self.checkpoint.read(name))

    def round(self, name: str, weight: Floats, moments: Moments | None) -> Floats:
        """Round a tensor, write it, and give what its bytes stand for.

        weight: [out, in], or [experts, out, in] with moments [experts, in, in] or None.
        """
        begun = time.monotonic()
        kind = self.types[name]
        pieces: list[NDArray[np.uint8]] = []

        def encode(_: int, one: Floats, h: Floats | None) -> Floats:
            try:
                pieces.append(self._quantize(name, one, h))
            except ValueError as broken:
                raise UnusableModel(f"{name} cannot be rounded to {kind}: {broken}") from broken
            return decode(kind, pieces[-1])

        near, error, note = round_experts(weight, moments, encode)
        if note:
            self.notes.append(f"{name}: {note} and were rounded without")
        bits, seconds = FORMATS[kind].bits_per_weight, round(time.monotonic() - begun, 3)
        # Before the tensor itself: a tensor without its row would stay without.
        row = Row(name, kind, bits, weight.size, error, moments is not None, seconds, note)
        self.journal.add(row)
        self.writing.add(name, kind, np.concatenate(pieces))
        self.progress.step(f"{name} {kind}")
        return near

    def round_alone(self, spread: Spread) -> None:
        """All tensors without text, pieces of them spread over whoever takes them."""
        pieces = {
            name: pieces_of(self.checkpoint, name, self.types[name], GGUF)
            for name in self.checkpoint.tensors
            if self.wants(name) and not self._is_finished(name)
        }
        round_spread(self, spread, round_piece, pieces, self._write_pieces)

    def _is_finished(self, name: str) -> bool:
        return name in self.writing.finished and name in self.journal.rows

    def _write_pieces(self, name: str, pieces: Iterator[RoundedPiece]) -> None:
        begun = time.monotonic()
        kind, error, power = self.types[name], 0.0, 0.0

        def blocks() -> Iterator[NDArray[np.uint8]]:
            nonlocal error, power
            for piece in pieces:
                error, power = error + piece.error, power + piece.power
                yield piece.data

        self.writing.add(name, kind, blocks())
        # A tensor that is written and has no row yet is rounded again, to the same bytes.
        bits, seconds = FORMATS[kind].bits_per_weight, round(time.monotonic() - begun, 3)
        weights, ratio = self.checkpoint.tensors[name].weights, error / power if power else 0.0
        self.journal.add(Row(name, kind, bits, weights, ratio, False, seconds))

    def _quantize(self, name: str, weight: Floats, moments: Floats | None) -> NDArray[np.uint8]:
        """Bytes of a matrix, its rows making up for each other where gradients are known."""
        kind, damping = self.types[name], self.settings.damping
        make_up = self.settings.rows_make_up and moments is not None
        slopes = self.slopes.read(name) if make_up else None
        small = sum(info.weights for info in self.checkpoint.tensors.values()) <= SMALL
        if slopes is None or kind in _EXACT:
            starts = 3 if small else 1
            return quantize_with_info(kind, weight, moments, damping=damping, starts=starts).data
        return round_in_parts(
            weight,
            slopes,
            lambda rows: quantize_with_info(kind, rows, moments, damping=damping, threads=1).data,
            lambda data: decode(kind, data),
            parts=2 * PARTS if small else PARTS,
        )
