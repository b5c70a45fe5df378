"""A run towards an ONNX decoder: tensors rounded to its formats, each written once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from packlight.errors import UnusableModel
from packlight.llm.architectures import ROPE
from packlight.llm.calibrate_outputs import PARTS, SlopeStore, round_in_parts
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
from packlight.llm.rounding import Floats, Moments, Settings, relative_error
from packlight.progress import Progress


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

    def round(self, name: str, weight: Floats, moments: Moments | None) -> Floats:
        """Round a tensor [out, in], write it, and give what its bytes stand for."""
        begun = time.monotonic()
        data = self._quantize(name, weight, moments)
        near = decode(self.types[name], data)
        lost, power = relative_error(weight, near, moments)
        self._add(name, data, lost / power if power else 0.0, moments is not None, begun)
        self.progress.step(f"{name} {self.types[name]}")
        return near

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
        self._add(name, data, error / power if power else 0.0, False, begun)

    def _add(self, name: str, data: Bytes, error: float, compensated: bool, begun: float) -> None:
        kind, weights = self.types[name], self.checkpoint.tensors[name].weights
        bits, seconds = FORMATS[kind].bits_per_weight, round(time.monotonic() - begun, 3)
        # Before the tensor itself: a tensor without its row would stay without.
        self.journal.add(Row(name, kind, bits, weights, error, compensated, seconds))
        self.writing.add(name, kind, data)

    def _quantize(self, name: str, weight: Floats, moments: Moments | None) -> Bytes:
        """Bytes of a matrix, its rows making up for each other where gradients are known."""
        kind, damping = self.types[name], self.settings.damping
        make_up = self.settings.rows_make_up and moments is not None and kind != FLOAT
        slopes = self.slopes.read(name) if make_up else None
        try:
            if slopes is None:
                return quantize(kind, weight, moments, damping=damping)
            return round_in_parts(
                weight,
                slopes,
                lambda rows: quantize(kind, rows, moments, damping=damping),
                lambda data: decode(kind, data),
                parts=PARTS,
            )
        except ValueError as broken:
            raise UnusableModel(f"{name} cannot be rounded to {kind}: {broken}") from broken
