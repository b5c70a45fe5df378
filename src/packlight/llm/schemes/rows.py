"""The rows of a layer under a scheme, one after another: each as bytes that stand for themselves.

Rows can then be put in another order, and rounded in parts that make up for each other
(`packlight.llm.calibrate_outputs`), before they become the tensors of a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.stored import read_rows
from packlight.llm.compress_alone import RoundedPiece, cut_rows
from packlight.llm.rounding import relative_error
from packlight.llm.schemes.layouts import (
    Bytes,
    Coded,
    Floats,
    encode_parts,
    from_half,
    to_half,
    values_of,
)
from packlight.llm.schemes.solve import solve_codes, sparsify
from packlight.llm.schemes.table import Scheme
from packlight.llm.storage import Stored


@dataclass(frozen=True)
class RowFormat:
    """Rows of `inputs` weights under a scheme: their scales in 32 bits, then a byte a code.

    Without a grid the weights themselves in `half`, F16 or BF16. damping: of second moments.
    """

    scheme: Scheme
    inputs: int
    half: str
    global_scale: float = 1.0
    damping: float = 0.01

    @property
    def kind(self) -> str:
        """See `packlight.llm.rounding_matrices.Rows`."""
        return self.scheme.name

    def encode(self, weight: Floats, moments: Floats | None, *, part: bool = False) -> Bytes:
        """See `packlight.llm.rounding_matrices.Rows`."""
        if not np.isfinite(weight).all():
            raise ValueError("it holds NaN or infinity")
        if self.scheme.grid is None:
            zeros = sparsify(self.scheme, weight, moments, damping=self.damping)
            return to_half(zeros, self.half)
        found = solve_codes(
            self.scheme,
            weight,
            moments,
            half=self.half,
            global_scale=self.global_scale,
            damping=self.damping,
        )
        scales = np.ascontiguousarray(found.scale, "<f4").view(np.uint8)
        return np.concatenate([scales, found.codes.astype(np.int8).view(np.uint8)], axis=1)

    def decode(self, data: Bytes) -> Floats:
        """See `packlight.llm.rounding_matrices.Rows`."""
        if self.scheme.grid is None:
            return from_half(np.ascontiguousarray(data), self.half)
        return values_of(self.scheme, self._coded(data))

    def parts(self, data: Bytes) -> dict[str, Bytes]:
        """The bytes of the file's tensors, by the end of their names. data: of all rows."""
        if self.scheme.grid is None:
            return {"weight": data}
        return encode_parts(self.scheme, self._coded(data), self.half)

    def _coded(self, data: Bytes) -> Coded:
        ends = data.shape[1] - self.inputs
        scale = np.ascontiguousarray(data[:, :ends]).view("<f4")
        codes = data[:, ends:]
        if self.scheme.grid is not None and self.scheme.grid.minimum < 0:
            codes = codes.view(np.int8)
        return Coded(codes, scale, self.global_scale)


@dataclass(frozen=True)
class RowsPiece:
    """Rows begin..end of a tensor of a folder, for the tensor of the model with this name."""

    name: str
    rows: RowFormat
    stored: Stored
    begin: int
    end: int


def cut_stored(name: str, rows: RowFormat, stored: Stored) -> list[RowsPiece]:
    """A tensor of a folder in pieces, from its first rows to its last."""
    return [RowsPiece(name, rows, stored, *some) for some in cut_rows(stored.rows, rows.inputs)]


def round_rows(piece: RowsPiece) -> RoundedPiece:
    """Round rows without knowing what reaches them. Raises UnusableModel."""
    weight = read_rows(piece.stored, piece.begin, piece.end)
    try:
        data = piece.rows.encode(weight, None)
    except ValueError as broken:
        message = f"{piece.name} cannot be rounded to {piece.rows.kind}: {broken}"
        raise UnusableModel(message) from broken
    return RoundedPiece(data, *relative_error(weight, piece.rows.decode(data), None))
