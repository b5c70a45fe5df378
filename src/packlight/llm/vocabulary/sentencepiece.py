"""Reads a SentencePiece tokenizer.model: a protobuf message, of which few fields matter.

The message is ModelProto of github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from packlight.errors import UnusableModel

MOST_PIECES = 1 << 21
UNIGRAM, BPE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieces:
    """A vocabulary. types: NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6,
    the numbers that GGUF has too. model_type: UNIGRAM or BPE. charsmap: the compiled rules of
    normalization.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    model_type: int
    unknown: int
    bos: int
    eos: int
    pad: int
    add_space_prefix: bool
    remove_extra_spaces: bool
    charsmap: bytes


def parse_sentencepiece(content: bytes, where: str) -> SentencePieces:
    """Parse a tokenizer.model; `where` is what messages call it. Raises UnusableModel."""
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(content):
            if field == 1 and isinstance(value, bytes):
                inner = dict(_fields(value))
                pieces.append(_as_bytes(inner.get(1, b"")))
                scores.append(_as_float(inner.get(2, b"\0\0\0\0")))
                types.append(_as_int(inner.get(3, 1)))
            elif field == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif field == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
            if len(pieces) > MOST_PIECES:
                raise ValueError("too many tokens")
        if not pieces or not all(1 <= kind <= 6 for kind in types):
            raise ValueError("no tokens")
        return SentencePieces(
            pieces=tuple(pieces),
            scores=tuple(scores),
            types=tuple(types),
            model_type=_as_int(trainer.get(3, UNIGRAM)),
            unknown=_as_int(trainer.get(40, 0)),
            bos=_as_int(trainer.get(41, 1)),
            eos=_as_int(trainer.get(42, 2)),
            pad=_as_int(trainer.get(43, -1)),
            add_space_prefix=bool(_as_int(normalizer.get(3, 1))),
            remove_extra_spaces=bool(_as_int(normalizer.get(4, 1))),
            charsmap=_as_bytes(normalizer.get(2, b"")),
        )
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise UnusableModel(
            f"{where} is not a SentencePiece model ({error}): download the model again."
        ) from None


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field: varints as integers, anything else as bytes."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(content, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is damaged")
        if length > len(content) - at:
            raise ValueError("it is cut short")
        yield tag >> 3, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("it is damaged")


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise TypeError("a field is no number")
    # int32 fields are written as 64-bit two's complement.
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a field is no text")
    return value


def _as_float(value: int | bytes) -> float:
    return float(struct.unpack("<f", _as_bytes(value))[0])
