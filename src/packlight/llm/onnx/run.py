"""A run towards an ONNX decoder: tensors rounded to its formats, each written once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from packlight.llm.architectures import ROPE
from packlight.llm.calibrate_outputs import PARTS, SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import (
    RoundedPiece,
    Spread,
    pieces_of,
    round_piece,
    round_spread,
)
from packlight.llm.journal import Journal, Row
from packlight.llm.onnx.formats import (
    FLOAT,
    FORMATS,
    ONNX,
    Bytes,
    decode,
    quantize,
)
from packlight.llm.onnx.writing import Writing
from packlight.llm.rounding import Floats, Settings
from packlight.llm.rounding_matrices import Matrix, RoundedMatrix, figures
from packlight.progress import Progress


@dataclass(frozen=True)
class OnnxRows:
    """See `packlight.llm.rounding_matrices.Rows`."""

    kind: str
    damping: float

    def encode(self, weight: Floats, moments: Floats | None, *, part: bool = False) -> Bytes:
        """See `packlight.llm.rounding_matrices.Rows`."""
        return quantize(self.kind, weight, moments, damping=self.damping)

    def decode(self, data: Bytes) -> Floats:
        """See `packlight.llm.rounding_matrices.Rows`."""
        return decode(self.kind, data)


@dataclass
class OnnxRun:
    """See `packlight.llm.rounding.Rounding`. types: of the tensors that are rounded."""

    checkpoint: Checkpoint
    types: Mapping[str, str]
    writing: Writing
    journal: Journal
    settings: Settings
    progress: Progress
    slopes: SlopeStore

    def wants(self, name: str) -> bool:
        """Whether a tensor is to be rounded."""
        return name in self.types

    def finished(self, name: str) -> Floats | None:
        """What a tensor's bytes stand for, where an earlier run has finished it."""
        if not self._is_finished(name):
            return None
        return decode(self.types[name], self.writing.read(name))

    def keep(self, name: str) -> None:
        """Write a tensor as it is, in 32 bits; factors of rotation are in the graph."""
        if self.checkpoint.tensors[name].role != ROPE and name not in self.writing.finished:
            self.writing.add(name, FLOAT, self.checkpoint.read_blocks(name))

    def matrix(self, name: str) -> Matrix:
        """See `packlight.llm.rounding_matrices.Taking`."""
        kind, settings = self.types[name], self.settings
        make_up = settings.rows_make_up and kind != FLOAT
        slopes = self.slopes.path(name) if make_up else None
        return Matrix(name, OnnxRows(kind, settings.damping), slopes, PARTS)

    def take(
        self, name: str, rounded: Sequence[RoundedMatrix], *, compensated: bool, note: str
    ) -> None:
        """See `packlight.llm.rounding_matrices.Taking`."""
        (one,) = rounded
        self._add(name, one.data, *figures(rounded, compensated), note)
        self.progress.step(f"{name} {self.types[name]}")

    def round_alone(self, spread: Spread) -> None:
        """All tensors without text, pieces of them spread over whoever takes them."""
        pieces = {
            name: pieces_of(self.checkpoint, name, self.types[name], ONNX)
            for name in self.checkpoint.tensors
            if self.wants(name) and not self._is_finished(name)
        }
        round_spread(self, spread, round_piece, pieces, self._write_pieces)

    def _is_finished(self, name: str) -> bool:
        return name in self.writing.finished and name in self.journal.rows

    def _write_pieces(self, name: str, pieces: Iterator[RoundedPiece]) -> None:
        begun, rounded = time.monotonic(), [*pieces]
        error, power = (sum(getattr(one, what) for one in rounded) for what in ("error", "power"))
        data = np.concatenate([one.data for one in rounded])
        seconds = round(time.monotonic() - begun, 3)
        self._add(name, data, error / power if power else 0.0, False, seconds)

    def _add(
        self,
        name: str,
        data: Bytes,
        error: float,
        compensated: bool,
        seconds: float,
        note: str = "",
    ) -> None:
        kind, weights = self.types[name], self.checkpoint.tensors[name].weights
        bits = FORMATS[kind].bits_per_weight
        # Before the tensor itself: a tensor without its row would stay without.
        self.journal.add(Row(name, kind, bits, weights, error, compensated, seconds, note))
        self.writing.add(name, kind, data)
