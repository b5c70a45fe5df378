"""Reads GGUF files of which nothing is believed before it is checked."""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO

from packlight.errors import UnusableModel
from packlight.llm.gguf.values import ARRAY_HEAD, DTYPES, LENGTH, Kind, Value
from packlight.llm.storage import BY_NUMBER, Stored

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

MOST_PAIRS = 1 << 16
MOST_TENSORS = 1 << 20
MOST_ITEMS = 1 << 24
"""Items of one array; the largest vocabularies have under 2^19 tokens and merges."""
MOST_HEAD_BYTES = 1 << 29
"""Of everything before the tensor data; 10 to 30 MB for the largest vocabularies."""
MOST_KEY_BYTES = 65535
MOST_NAME_BYTES = 63  # llama.cpp's GGML_MAX_NAME holds a closing zero too
MOST_AXES = 4
MOST_ALIGNMENT = 1 << 20

_HEAD = struct.Struct("<4sIQQ")  # magic, version, tensors, pairs
_TYPE_AND_OFFSET = struct.Struct("<IQ")


@dataclass(frozen=True)
class GgufFile:
    """A checked GGUF file, weights not read. head_bytes: where the tensor data begins."""

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Stored]
    head_bytes: int
    size_bytes: int


def read_gguf(path: Path | str) -> GgufFile:
    """Read everything of the GGUF file at `path` but the weights, and check it.

    Counts, lengths and offsets must fit into the file, keys and names be there once, types be
    known, arrays hold no arrays, tensors lie aligned and apart. Raises UnusableModel.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusableModel(f"{path} is not an ordinary file: name a .gguf file.")
        with path.open("rb") as file:
            return _read(path, Bytes(file, path, status.st_size))
    except FileNotFoundError:
        raise UnusableModel(f"There is no file {path}: check the name of the model.") from None
    except OSError as error:
        raise UnusableModel(f"{path} cannot be read: {error.strerror or error}.") from None


class Bytes:
    """The file from its beginning, every read checked against what is left of it."""

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0

    def take(self, count: int, what: str) -> bytes:
        """Read `count` bytes of `what`."""
        left = min(self.size, MOST_HEAD_BYTES) - self.at
        if count > left:
            raise UnusableModel(
                f"{self.path} is cut short or damaged: {what} is said to take {count} bytes, and "
                f"{left} are left. Download or convert it again."
            )
        content = self.file.read(count)
        if len(content) != count:
            raise UnusableModel(f"{self.path} became shorter while it was read.")
        self.at += count
        return content

    def number(self, layout: struct.Struct, what: str) -> int:
        """Read one number."""
        return int(layout.unpack(self.take(layout.size, what))[0])

    def string(self, what: str, most: int = MOST_HEAD_BYTES) -> bytes:
        """Read a length and as many bytes; both together are `what` the message names."""
        length = self.number(LENGTH, what)
        if length > most:
            raise UnusableModel(
                f"{self.path} is damaged: {what} is said to have {length} bytes, at most {most} "
                "are allowed."
            )
        return self.take(length, what)


_U32 = struct.Struct("<I")


def _read(path: Path, data: Bytes) -> GgufFile:
    head = data.file.read(_HEAD.size)
    if head[:4] != MAGIC:
        raise UnusableModel(f"{path} is not a GGUF file: name a .gguf file or a checkpoint folder.")
    if len(head) < _HEAD.size:
        raise UnusableModel(f"{path} is cut short: download or convert it again.")
    data.at = _HEAD.size
    _, version, tensors, pairs = _HEAD.unpack(head)
    if version not in (2, 3):
        big = version and version & 0xFFFF == 0
        what = "a big-endian GGUF file" if big else f"a GGUF file of version {version}"
        raise UnusableModel(
            f"{path} is {what}; little-endian files of versions 2 and 3 can be read: "
            "convert it again with a current llama.cpp."
        )
    for count, most, what in ((pairs, MOST_PAIRS, "pairs"), (tensors, MOST_TENSORS, "tensors")):
        if count > most:
            raise UnusableModel(
                f"{path} says that it holds {count} {what}; at most {most} are allowed: "
                "it is damaged, or made to do harm."
            )
    metadata: dict[str, Value] = {}
    for _ in range(pairs):
        key = data.string("a key", MOST_KEY_BYTES).decode("utf-8", "surrogateescape")
        if key in metadata:
            raise UnusableModel(f"{path} holds the key {key!r} twice: convert it again.")
        metadata[key] = _read_value(data, key)
    alignment = _alignment_of(path, metadata)
    infos = [_read_info(data) for _ in range(tensors)]
    begin = data.at + -data.at % alignment
    return GgufFile(
        path=path,
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=_place(path, infos, begin, alignment, data.size),
        head_bytes=begin,
        size_bytes=data.size,
    )


def _read_value(data: Bytes, key: str) -> Value:
    kind = _kind_of(data, data.number(_U32, f"the kind of {key!r}"), key)
    if kind is Kind.STRING:
        text = data.string(f"the text of {key!r}")
        return Value(kind, LENGTH.pack(len(text)) + text)
    if kind is not Kind.ARRAY:
        raw = data.take(int(DTYPES[kind][2]), repr(key))
        return Value(kind, raw)
    head = data.take(ARRAY_HEAD.size, repr(key))
    number, count = ARRAY_HEAD.unpack(head)
    item = _kind_of(data, number, key)
    if item is Kind.ARRAY:
        raise UnusableModel(
            f"{data.path} holds arrays within an array under {key!r}, which no language model "
            "needs: convert it again."
        )
    if count > MOST_ITEMS:
        raise UnusableModel(
            f"{data.path} is damaged: {key!r} is said to be an array of {count} items, at most "
            f"{MOST_ITEMS} are allowed."
        )
    if item is not Kind.STRING:
        return Value(kind, head + data.take(count * int(DTYPES[item][2]), repr(key)))
    parts = [head]
    for _ in range(count):
        text = data.string(f"a text of {key!r}")
        parts += [LENGTH.pack(len(text)), text]
    return Value(kind, b"".join(parts))


def _kind_of(data: Bytes, number: int, key: str) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise UnusableModel(
            f"{data.path} is damaged: the value of {key!r} is of the unknown kind {number}."
        ) from None


def _alignment_of(path: Path, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    alignment = value.content if value.kind is Kind.U32 else 0
    assert isinstance(alignment, int)
    if not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise UnusableModel(
            f"{path} is damaged: its general.alignment is {value.content}, and must be a power "
            f"of two up to {MOST_ALIGNMENT}, as an unsigned 32-bit number."
        )
    return alignment


def _read_info(data: Bytes) -> Stored:
    """Read name, shape, type and offset; the offset counts from the tensor data as yet."""
    name = data.string("the name of a tensor", MOST_NAME_BYTES).decode("utf-8", "surrogateescape")
    axes = data.number(_U32, f"the number of axes of {name}")
    if not 1 <= axes <= MOST_AXES:
        raise UnusableModel(
            f"{data.path} is damaged: {name} is said to have {axes} axes, 1 to {MOST_AXES} are "
            "allowed."
        )
    inner_first = struct.unpack(f"<{axes}Q", data.take(8 * axes, f"the shape of {name}"))
    number, offset = _TYPE_AND_OFFSET.unpack(
        data.take(_TYPE_AND_OFFSET.size, f"the type of {name}")
    )
    if number not in BY_NUMBER:
        raise UnusableModel(
            f"{data.path} holds {name} in the unknown type {number}: it is damaged, or was made "
            "by a newer llama.cpp."
        )
    kind = BY_NUMBER[number]
    if not all(inner_first) or prod(inner_first) >= 1 << 62:
        raise UnusableModel(f"{data.path} is damaged: {name} has the shape {inner_first}.")
    if inner_first[0] % kind.block:
        raise UnusableModel(
            f"{data.path} is damaged: {name} has rows of {inner_first[0]} weights, and "
            f"{kind.name} stores blocks of {kind.block}."
        )
    return Stored(name, data.path, kind.name, inner_first[::-1], offset)


def _place(
    path: Path, infos: list[Stored], begin: int, alignment: int, size: int
) -> dict[str, Stored]:
    """Check where tensors lie, and give them with offsets from the beginning of the file."""
    placed: dict[str, Stored] = {}
    for info in infos:
        if info.name in placed:
            raise UnusableModel(f"{path} holds the tensor {info.name} twice: convert it again.")
        if info.offset % alignment:
            raise UnusableModel(
                f"{path} is damaged: {info.name} begins at {info.offset}, which is not a multiple "
                f"of the alignment {alignment}."
            )
        if begin + info.offset + info.size_bytes > size:
            raise UnusableModel(
                f"{path} is cut short or damaged: {info.name} ends at byte "
                f"{begin + info.offset + info.size_bytes} of {size}. Download or convert it again."
            )
        placed[info.name] = replace(info, offset=begin + info.offset)
    by_offset = sorted(placed.values(), key=lambda one: one.offset)
    for before, after in pairwise(by_offset):
        if before.offset + before.size_bytes > after.offset:
            raise UnusableModel(
                f"{path} is damaged: the tensors {before.name} and {after.name} overlap."
            )
    return placed
