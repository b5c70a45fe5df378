"""A tensor as a file holds it, and its rows as float32, read piece by piece."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.gguf.types import TYPES

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
}
_CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. dtype: GGUF's name of its type; shape: outermost axis first;
    offset: of its first byte in `file`.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Rows of shape[-1] weights, all leading axes together."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return TYPES[self.dtype].row_bytes(self.shape[-1]) if self.shape else 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


def read_bytes(stored: Stored, begin: int, end: int) -> NDArray[np.uint8]:
    """Read rows begin..end as they are stored: uint8 [end - begin, row_bytes].

    Read, not mapped: a file that is cut short meanwhile gives an error and not a crash, and
    what is read counts once against a limit of memory. Raises UnusableModel.
    """
    content = np.empty((end - begin, stored.row_bytes), np.uint8)
    _read_into(content, stored, begin)
    return content


def _read_into(content: NDArray[np.uint8], stored: Stored, begin: int) -> None:
    got, view = 0, content.reshape(-1).data
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset + begin * stored.row_bytes)
            while got < len(view) and (count := file.readinto(view[got:])):
                got += count
    except OSError as error:
        raise UnusableModel(
            f"{stored.name} cannot be read from {stored.file}: {error.strerror or error}."
        ) from None
    if got < len(view):
        raise UnusableModel(f"{stored.file} became shorter while {stored.name} was read.")


def read_rows(stored: Stored, begin: int, end: int) -> NDArray[np.float32]:
    """Read rows begin..end as float32 [end - begin, in], a bounded piece at a time.

    Raises UnusableModel when a weight is NaN or infinite, or the type cannot be decoded.
    """
    inputs = stored.shape[-1]
    out = np.empty((end - begin, inputs), np.float32)
    step = max(1, _CHUNK_WEIGHTS // inputs)
    for at in range(begin, end, step):
        stop = min(at + step, end)
        piece = out[at - begin : stop - begin]
        if stored.dtype == "F32" and sys.byteorder == "little":
            _read_into(piece.view(np.uint8), stored, at)
        else:
            piece[:] = decode_rows(stored, read_bytes(stored, at, stop))
        finite = np.isfinite(piece)
        if not finite.all():
            bad = int(piece.size - finite.sum())
            raise UnusableModel(
                f"{stored.name} in {stored.file} holds NaN or infinity ({bad} of the weights in "
                f"rows {at} to {stop - 1}): the model is damaged, download or train it again."
            )
    return out


def decode_rows(stored: Stored, raw: NDArray[np.uint8]) -> NDArray[Any]:
    """Turn uint8 [rows, row_bytes] of the tensor's type into numbers [rows, in]."""
    kind = stored.dtype
    if kind == "BF16":
        widened = raw.view("<u2").astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    if kind in _NUMPY:
        return raw.view(_NUMPY[kind])
    if kind == "Q8_0":
        # 32 weights: a float16 scale, then as many int8 codes.
        blocks = raw.reshape(-1, 34)
        scaled = blocks[:, 2:].view(np.int8) * blocks[:, :2].view("<f2").astype(np.float32)
        return scaled.reshape(raw.shape[0], -1)
    return _decode_blocks(stored, raw)


def _decode_blocks(stored: Stored, raw: NDArray[np.uint8]) -> NDArray[Any]:
    from packlight.llm.formats import FORMATS, decode

    if stored.dtype not in FORMATS:
        raise UnusableModel(
            f"{stored.name} in {stored.file} is stored as {stored.dtype}, which cannot be decoded "
            "here: use the model in F16, BF16, F32 or Q8_0."
        )
    return decode(stored.dtype, raw)
