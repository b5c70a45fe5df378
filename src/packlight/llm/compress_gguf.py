"""A run towards a GGUF file: tensors rounded to its formats, each written once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from packlight.llm.calibrate_outputs import PARTS, SlopeStore
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
from packlight.llm.rounding import Floats, Settings
from packlight.llm.rounding_matrices import Bytes, Matrix, RoundedMatrix, figures
from packlight.progress import Progress

_EXACT = ("F32", "F16", "BF16")
"""Formats in which nothing is left to make up for."""

SMALL = 1 << 26
"""Weights of a model up to which more effort is spent on each: three beginnings of descent in place
of one (which took the error of 2-bit blocks from 0.525 to 0.496 of llama.cpp's, of 4-bit ones from
0.530 to 0.510, on text held back), and rows that make up for each other in smaller parts."""


@dataclass(frozen=True)
class GgufRows:
    """See `packlight.llm.rounding_matrices.Rows`. starts: of descent, for rows without parts."""

    kind: str
    damping: float
    starts: int

    def encode(self, weight: Floats, moments: Floats | None, *, part: bool = False) -> Bytes:
        """See `packlight.llm.rounding_matrices.Rows`."""
        starts, threads = (1, 1) if part else (self.starts, None)
        return quantize_with_info(
            self.kind, weight, moments, damping=self.damping, starts=starts, threads=threads
        ).data

    def decode(self, data: Bytes) -> Floats:
        """See `packlight.llm.rounding_matrices.Rows`."""
        return decode(self.kind, data)


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

    def matrix(self, name: str) -> Matrix:
        """See `packlight.llm.rounding_matrices.Taking`."""
        kind, settings = self.types[name], self.settings
        small = sum(info.weights for info in self.checkpoint.tensors.values()) <= SMALL
        make_up = settings.rows_make_up and kind not in _EXACT
        slopes = self.slopes.path(name) if make_up else None
        rows = GgufRows(kind, settings.damping, 3 if small else 1)
        return Matrix(name, rows, slopes, 2 * PARTS if small else PARTS)

    def take(
        self, name: str, rounded: Sequence[RoundedMatrix], *, compensated: bool, note: str
    ) -> None:
        """See `packlight.llm.rounding_matrices.Taking`."""
        kind, weights = self.types[name], self.checkpoint.tensors[name].weights
        if note:
            self.notes.append(f"{name}: {note} and were rounded without")
        # Before the tensor itself: a tensor without its row would stay without.
        bits = FORMATS[kind].bits_per_weight
        self.journal.add(Row(name, kind, bits, weights, *figures(rounded, compensated), note))
        self.writing.add(name, kind, np.concatenate([one.data for one in rounded]))
        self.progress.step(f"{name} {kind}")

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
