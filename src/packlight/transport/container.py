"""The transport file: what stands where in its bytes. docs/format.md has it on one screen."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from packlight.errors import UnusablePack
from packlight.transport.codes import Layout
from packlight.transport.plan import FORMS, Piece, form_of
from packlight.transport.segments import (
    METHOD_NAMES,
    MOST_SEGMENT_BYTES,
    Form,
    decode_plain,
    decode_segment,
    encode_plain,
    encode_segment,
)
from packlight.transport.varints import Numbers, write_number
from packlight.transport.wire import Buffer

MAGIC = b"PLZ"
VERSION = 1
HASH_BYTES = 32

MOST_FILES = 1000
MOST_NAME_BYTES = 255
MOST_PIECES = 1 << 20
MOST_HEAD_BYTES = MOST_SEGMENT_BYTES
MOST_RATIO = 1 << 15
FREE_BYTES = 1 << 26
"""A pack may unpack to FREE_BYTES and MOST_RATIO times its own size, no more."""

_KNOWN_BYTES = 1 << 16
_KNOWN = 64


@dataclass(frozen=True)
class Packed:
    """One file of a pack. size_bytes: unpacked. packed_bytes: of its tensors; what else it
    holds is coded together with that of the other files. methods: how its tensors are coded.
    """

    name: str
    size_bytes: int
    packed_bytes: int
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file as the head lists it. coded: bytes of each piece in the pack."""

    name: str
    size: int
    pieces: tuple[Piece, ...]
    coded: tuple[int, ...]
    sha256: bytes = b""


def encode_file(content: Buffer, pieces: tuple[Piece, ...]) -> Iterator[bytes]:
    """Yield the coded bytes of each piece."""
    known: deque[bytes] = deque(maxlen=_KNOWN)
    for piece in pieces:
        own = bytes(content[piece.offset : piece.offset + piece.form.length])
        yield encode_segment(own, piece.form, tuple(known))
        _remember(known, own, piece.form)


def plain_of(content: Buffer, pieces: tuple[Piece, ...]) -> bytes:
    """Give what of a file is in no piece, joined."""
    return b"".join(bytes(content[start:stop]) for start, stop in _gaps(pieces, len(content)))


def write_head(entries: list[Entry], plain: bytes) -> bytes:
    """Give the head: what the files are and how they are cut, and all their plain bytes."""
    listed = write_number(len(entries))
    for entry in entries:
        name = entry.name.encode("utf-8")
        listed += write_number(len(name)) + name + write_number(entry.size)
        listed += write_number(len(entry.pieces))
        at = 0
        for piece, size in zip(entry.pieces, entry.coded, strict=True):
            layout = piece.form.layout
            shape = (piece.data_type, layout.rows, layout.columns, layout.kernel, size)
            listed += b"".join(write_number(n) for n in (piece.offset - at, *shape))
            at = piece.offset + piece.form.length
    content = listed + plain
    if len(content) > MOST_HEAD_BYTES:
        raise UnusablePack("The files hold too much besides their tensors to be packed together.")
    coded = encode_plain(content)
    hashes = b"".join(entry.sha256 for entry in entries)
    return write_number(len(content)) + write_number(len(coded)) + coded + hashes


def read_head(file: IO[bytes], packed_size: int) -> tuple[list[Entry], bytes, int]:
    """Give entries, all plain bytes, and where the coded pieces begin.

    Everything is checked against the size of the pack before anything is made of it.
    Raises UnusablePack.
    """
    begin = len(MAGIC) + 1 + HASH_BYTES
    file.seek(begin)
    numbers = Numbers(file.read(20))
    length = numbers.read(most=min(MOST_HEAD_BYTES, most_unpacked(packed_size)))
    coded = numbers.read(most=packed_size)
    begin += len(write_number(length)) + len(write_number(coded))
    file.seek(begin)
    content = decode_plain(file.read(coded), length)
    head = Numbers(content)
    entries = [_read_entry(head) for _ in range(head.read(most=MOST_FILES))]
    plain = head.rest()
    entries = [
        Entry(one.name, one.size, one.pieces, one.coded, file.read(HASH_BYTES)) for one in entries
    ]
    begin += coded + HASH_BYTES * len(entries)
    gaps = sum(stop - start for one in entries for start, stop in _gaps(one.pieces, one.size))
    if gaps != len(plain) or begin + sum(sum(one.coded) for one in entries) != packed_size:
        raise UnusablePack("The file is damaged: its parts do not add up to its size.")
    if sum(one.size for one in entries) > most_unpacked(packed_size):
        raise UnusablePack(
            f"The file of {packed_size} bytes says that it unpacks to more than "
            f"{most_unpacked(packed_size)}: this is refused."
        )
    return entries, plain, begin


def decode_file(file: IO[bytes], entry: Entry, plain: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file in order; `file` stands at its first coded piece.

    plain: its plain runs. Raises UnusablePack.
    """
    known: deque[bytes] = deque(maxlen=_KNOWN)
    for piece, coded in zip(entry.pieces, entry.coded, strict=True):
        yield next(plain)
        own = decode_segment(file.read(coded), piece.form, tuple(known))
        _remember(known, own, piece.form)
        yield own
    yield next(plain)


def split_plain(plain: bytes, entry: Entry, at: int) -> tuple[list[bytes], int]:
    """Give the plain runs of one file, beginning at `at`, and where those of the next begin."""
    runs = []
    for start, stop in _gaps(entry.pieces, entry.size):
        runs.append(plain[at : at + stop - start])
        at += stop - start
    return runs, at


def most_unpacked(packed_size: int) -> int:
    """Give the largest size that a pack of so many bytes may unpack to."""
    return FREE_BYTES + MOST_RATIO * packed_size


def hash_rest(file: IO[bytes]) -> bytes:
    """Give the SHA-256 of all that follows in `file`."""
    hashed = hashlib.sha256()
    while part := file.read(1 << 20):
        hashed.update(part)
    return hashed.digest()


def method_of(coded: bytes) -> str:
    """Give the name of the way in which a segment is coded."""
    return METHOD_NAMES[coded[0]]


def _remember(known: deque[bytes], own: bytes, form: Form) -> None:
    if form.kind == "f" and form.bits == 32 and len(own) <= _KNOWN_BYTES:
        known.append(own)


def _gaps(pieces: tuple[Piece, ...], size: int) -> Iterator[tuple[int, int]]:
    """Yield the plain runs: before each piece, and after the last."""
    at = 0
    for piece in pieces:
        yield at, piece.offset
        at = piece.offset + piece.form.length
    yield at, size


def _read_entry(head: Numbers) -> Entry:
    name = head.take(head.read(most=MOST_NAME_BYTES))
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise UnusablePack(f"The file is damaged: {name!r} is no name of a file.") from None
    size = head.read(most=1 << 50)
    pieces, coded = [], []
    at = 0
    for _ in range(head.read(most=MOST_PIECES)):
        offset = at + head.read(most=size)
        data_type = head.read(most=max(FORMS))
        rows, columns = (head.read(most=MOST_SEGMENT_BYTES) for _ in range(2))
        kernel = head.read(most=MOST_SEGMENT_BYTES)
        if data_type not in FORMS or not rows or not 1 <= kernel <= columns:
            raise UnusablePack(f"The file is damaged: a tensor of {text!r} has no possible shape.")
        form = form_of(data_type, Layout(rows, columns, kernel))
        at = offset + form.length
        if form.length > MOST_SEGMENT_BYTES or at > size:
            raise UnusablePack(f"The file is damaged: a tensor of {text!r} lies outside of it.")
        pieces.append(Piece(offset, data_type, form))
        coded.append(head.read(most=1 << 40))
    return Entry(text, size, tuple(pieces), tuple(coded))
