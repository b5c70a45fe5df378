"""A GGUF file while it is written: room for its head, then tensor after tensor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from packlight.durable import sync_folder
from packlight.errors import UnusableModel, UnusableOutput
from packlight.llm.gguf.encode import encode_blocks
from packlight.llm.gguf.journal import Entry, Journal, hash_entry
from packlight.llm.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, GgufFile, read_gguf
from packlight.llm.gguf.values import LENGTH, Value, value_of
from packlight.llm.storage import PLAIN, TYPES

VERSION = 3
QUANTIZATION_VERSION = 2
"""llama.cpp's number for the present layout of its blocks."""


@contextlib.contextmanager
def told_apart(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file being written, and only that, into UnusableOutput."""
    try:
        yield
    except OSError as error:
        raise UnusableOutput(
            f"{path} cannot be written ({error.strerror or error}): check that the folder exists, "
            "may be written to and has space left, and start again; what is finished is kept."
        ) from error


class Writing:
    """A file that is being written, which `packlight.llm.gguf.begin_gguf` gives.

    path: its name when it is whole. partial: where it is until then, opened as `file`.
    pairs: its metadata. shapes: of every tensor, [.., out, in]. key: stands for all that the
    tensors' bytes depend on. What an earlier run with the same key finished is taken over.
    """

    def __init__(
        self,
        path: Path,
        partial: Path,
        file: IO[bytes],
        pairs: Mapping[str, Value],
        shapes: Mapping[str, tuple[int, ...]],
        key: str,
    ) -> None:
        self._path, self._partial, self._file = path, partial, file
        self._shapes = shapes
        self._guessed = "general.file_type" not in pairs
        self._pairs = _complete(pairs)
        self._alignment = alignment_of(pairs)
        self._begin = head_bytes(pairs, shapes)
        self._end = self._begin
        self._entries: dict[str, Entry] = {}
        self._journal = Journal(partial.with_name(partial.name + ".journal"), key)
        self._go_on()

    @property
    def finished(self) -> Mapping[str, str]:
        """The type of each tensor that is written."""
        return MappingProxyType({name: one.type for name, one in self._entries.items()})

    def read(self, name: str) -> NDArray[np.uint8]:
        """Read back the bytes of a finished tensor: uint8 [rows, row_bytes]."""
        entry = self._entries[name]
        self._file.seek(entry.offset)
        flat = np.frombuffer(self._file.read(entry.size), np.uint8)
        return flat.reshape(-1, TYPES[entry.type].row_bytes(self._shapes[name][-1]))

    def add(self, name: str, kind: str, content: NDArray[Any] | Iterable[NDArray[Any]]) -> None:
        """Write one tensor behind those already there; one that is there must be the same.

        content: uint8 [.., row_bytes] in the layout of the type `kind`, or floats in the
        tensor's shape for F32, F16 and BF16; or blocks of its rows, [n, row_bytes] or [n, in],
        one at a time. Raises UnusableModel, UnusableOutput.
        """
        if name not in self._shapes:
            raise UnusableModel(f"{name} is to be written, which the checkpoint does not have.")
        known, digest, size = self._entries.get(name), hashlib.sha256(), 0
        if known is None:
            with told_apart(self._path):
                self._file.seek(self._end)
        for rows in encode_blocks(name, kind, content, self._shapes[name]):
            data = rows.reshape(-1).data
            digest.update(data)
            size += len(data)
            if known is None:
                with told_apart(self._path):
                    self._file.write(data)
        entry = Entry(name, kind, self._end, size, digest.hexdigest())
        if known is None:
            with told_apart(self._path):
                self._file.write(b"\0" * (-size % self._alignment))
                self._file.flush()
                self._journal.add(entry)
            self._take(entry)
        elif (known.type, known.sha256) != (entry.type, entry.sha256):
            raise UnusableOutput(
                f"{self._path} was half written with other contents of {name}: delete "
                f"{self._partial} and start again."
            )

    def finish(self) -> GgufFile:
        """Fill in the head, have it all on the disk, check it, and give the file its name."""
        missing = [name for name in self._shapes if name not in self._entries]
        if missing:
            raise UnusableModel(
                f"{self._path} would lack {len(missing)} of {len(self._shapes)} tensors, "
                f"{missing[0]} first: every tensor of the checkpoint must be written."
            )
        with told_apart(self._path):
            return self._finish(list(self._entries.values()))

    def _finish(self, entries: list[Entry]) -> GgufFile:
        if self._guessed:
            self._pairs["general.file_type"] = value_of(_file_type(entries, self._shapes))
        self._file.truncate(self._end)  # a tensor that broke off may have reached further
        head = _head(self._pairs, self._shapes, entries, self._begin)
        self._file.seek(0)
        self._file.write(head + b"\0" * (self._begin - len(head)))
        self._file.flush()
        os.fsync(self._file.fileno())
        written = read_gguf(self._partial)
        found = {name: one.shape for name, one in written.tensors.items()}
        if found != dict(self._shapes) or written.size_bytes != self._end:
            raise UnusableOutput(f"{self._path} reads back differently: check the disk.")
        if any(hash_entry(self._file, entry) != entry.sha256 for entry in entries):
            raise UnusableOutput(f"{self._path} reads back differently: check the disk.")
        self._partial.replace(self._path)
        sync_folder(self._path.parent)
        self._journal.remove()
        return read_gguf(self._path)

    def _go_on(self) -> None:
        """Take over what an earlier run finished, as far as it still is what it was."""
        for entry in self._journal.read():
            if entry.name not in self._shapes or entry.name in self._entries:
                break
            if entry.type not in TYPES or entry.offset != self._end:
                break
            if entry.size != self._size_of(entry) or hash_entry(self._file, entry) != entry.sha256:
                break
            self._take(entry)
        self._journal.begin(list(self._entries.values()))
        self._file.truncate(self._end if self._entries else 0)

    def _size_of(self, entry: Entry) -> int:
        shape = self._shapes[entry.name]
        return prod(shape[:-1]) * TYPES[entry.type].row_bytes(shape[-1])

    def _take(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        self._end = entry.offset + pad(entry.size, self._alignment)


def head_bytes(pairs: Mapping[str, Value], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of a file with this metadata and these tensors before the tensors' data begin.

    It does not depend on what types the tensors turn out to have.
    """
    empty = [Entry(name, "F32", 0, 0, "") for name in shapes]
    return pad(len(_head(_complete(pairs), shapes, empty, 0)), alignment_of(pairs))


def alignment_of(pairs: Mapping[str, Value]) -> int:
    """Tensors begin at multiples of so many bytes."""
    alignment = pairs.get("general.alignment")
    return _number(alignment.content) if alignment else DEFAULT_ALIGNMENT


def pad(size: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return size + -size % alignment


def _complete(pairs: Mapping[str, Value]) -> dict[str, Value]:
    """Metadata with what is only known at the end, so that the head keeps its size."""
    unknown = {"general.file_type": 0, "general.quantization_version": QUANTIZATION_VERSION}
    return {**pairs, **{n: value_of(c) for n, c in unknown.items() if n not in pairs}}


def _head(
    pairs: Mapping[str, Value],
    shapes: Mapping[str, tuple[int, ...]],
    entries: list[Entry],
    begin: int,
) -> bytes:
    """Everything before the tensor data, which begin there; of one size whatever entries say."""
    parts = [struct.pack("<4sIQQ", MAGIC, VERSION, len(entries), len(pairs))]
    for key, value in pairs.items():
        parts += [_string(key), struct.pack("<I", value.kind), value.raw]
    for entry in entries:
        shape = shapes[entry.name]
        parts += [_string(entry.name), struct.pack("<I", len(shape))]
        parts += [struct.pack(f"<{len(shape)}Q", *shape[::-1])]
        offset = max(0, entry.offset - begin) if entry.offset else 0
        parts += [struct.pack("<IQ", TYPES[entry.type].gguf_type, offset)]
    return b"".join(parts)


def _string(text: str) -> bytes:
    coded = text.encode("utf-8", "surrogateescape")
    return LENGTH.pack(len(coded)) + coded


def _number(content: Any) -> int:
    return int(content)


def _file_type(entries: list[Entry], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What most weights are, vectors aside: llama.cpp shows it as the file's type."""
    weights: Counter[str] = Counter()
    for entry in entries:
        weights[entry.type] += prod(shapes[entry.name]) if len(shapes[entry.name]) > 1 else 0
    coded = [name for name, count in weights.most_common() if count and name not in PLAIN]
    name = coded[0] if coded else weights.most_common(1)[0][0] if weights else "F32"
    return TYPES[name].file_type
