"""The rows of a tensor in a file, as float32, read piece by piece."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.formats import FORMATS, decode
from packlight.llm.storage import Stored

_WIDE = {"F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"}
_CHUNK_WEIGHTS = 1 << 21


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
    if stored.dtype in _WIDE:
        return raw.view(_WIDE[stored.dtype])
    if stored.dtype not in FORMATS:
        raise UnusableModel(
            f"{stored.name} in {stored.file} is stored as {stored.dtype}, which cannot be decoded "
            "here: use the model in F16, BF16, F32 or Q8_0."
        )
    return decode(stored.dtype, raw)
