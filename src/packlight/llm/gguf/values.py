"""Values of GGUF metadata, kept as the bytes that stand in the file: what is carried over
from one file to another stays the same to the last bit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np

Scalar: TypeAlias = int | float | bool | str
Content: TypeAlias = Scalar | list[int] | list[float] | list[bool] | list[str]


class Kind(IntEnum):
    """What a value is; the number stands in the file."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


DTYPES = {
    Kind.U8: "<u1",
    Kind.I8: "<i1",
    Kind.U16: "<u2",
    Kind.I16: "<i2",
    Kind.U32: "<u4",
    Kind.I32: "<i4",
    Kind.F32: "<f4",
    Kind.BOOL: "|b1",
    Kind.U64: "<u8",
    Kind.I64: "<i8",
    Kind.F64: "<f8",
}
"""NumPy's name of each kind that has a fixed size."""

ARRAY_HEAD = struct.Struct("<IQ")  # the kind of the items, their number
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Value:
    """One value of metadata. raw: its bytes after the kind, as in the file."""

    kind: Kind
    raw: bytes

    @property
    def content(self) -> Content:
        """The value as Python has it; text that is not UTF-8 keeps its bytes as escapes."""
        if self.kind is Kind.STRING:
            return _text(self.raw[LENGTH.size :])
        if self.kind is not Kind.ARRAY:
            return _plain(np.frombuffer(self.raw, DTYPES[self.kind])[0].item())
        kind, count = ARRAY_HEAD.unpack_from(self.raw)
        if kind != Kind.STRING:
            array = np.frombuffer(self.raw, DTYPES[Kind(kind)], count, ARRAY_HEAD.size)
            items: list[Any] = array.tolist()
            return items
        return [_text(one) for one in split_strings(self.raw, ARRAY_HEAD.size, count)]

    @property
    def items(self) -> int:
        """How many items an array has; 1 for anything else."""
        return int(ARRAY_HEAD.unpack_from(self.raw)[1]) if self.kind is Kind.ARRAY else 1


def value_of(content: Any, kind: Kind | None = None) -> Value:
    """Make a value of a number, truth value, text or a sequence of one of these.

    kind: of the value, or of the items of a sequence; None: bool, STRING, U32 for integers
    (I32 if one is negative), F32.
    """
    if isinstance(content, str | bytes):
        return Value(Kind.STRING, _string(content))
    if isinstance(content, Sequence | np.ndarray):
        return _array_of(content, kind)
    kind = _kind_of(content) if kind is None else kind
    return Value(kind, np.array(content).astype(DTYPES[kind]).tobytes())


def split_strings(raw: bytes, at: int, count: int) -> list[bytes]:
    """Cut `count` strings out of checked bytes, beginning at `at`."""
    found = []
    for _ in range(count):
        (length,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        found.append(raw[at : at + length])
        at += length
    return found


def _array_of(content: Sequence[Any] | np.ndarray, kind: Kind | None) -> Value:
    if kind is Kind.STRING or (len(content) and isinstance(content[0], str | bytes)):
        head = ARRAY_HEAD.pack(Kind.STRING, len(content))
        return Value(Kind.ARRAY, head + b"".join(map(_string, content)))
    if kind is None:
        kind = max((_kind_of(item) for item in content), default=Kind.I32)
    head = ARRAY_HEAD.pack(kind, len(content))
    return Value(Kind.ARRAY, head + np.asarray(content).astype(DTYPES[kind]).tobytes())


def _kind_of(content: Any) -> Kind:
    if isinstance(content, bool | np.bool_):
        return Kind.BOOL
    if isinstance(content, float | np.floating):
        return Kind.F32
    return Kind.U32 if content >= 0 else Kind.I32


def _string(text: str | bytes) -> bytes:
    coded = text if isinstance(text, bytes) else _bytes(text)
    return LENGTH.pack(len(coded)) + coded


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair of surrogates, as JSON can write it
        return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _plain(item: Any) -> Scalar:
    scalar: Scalar = item
    return scalar
