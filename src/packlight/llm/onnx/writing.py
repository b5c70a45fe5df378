"""The weights of an ONNX decoder while they are written: tensor after tensor into one file.

They lie beside the graph as external data, so that a model may be larger than memory and than
protobuf's 2 GiB. A killed run goes on: tensors that are whole are taken over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from packlight.durable import sync_folder
from packlight.errors import UnusableModel, UnusableOutput
from packlight.llm.gguf.journal import Entry, Journal, hash_entry
from packlight.llm.gguf.writing import told_apart
from packlight.llm.onnx.formats import FORMATS, Bytes, pieces_of, row_bytes

ALIGNMENT = 64
"""Bytes of which tensors begin at a multiple."""


@dataclass(frozen=True)
class Stored:
    """A tensor in the file. offset: of its first byte; its pieces follow each other there."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int


class Writing:
    """The file of weights that becomes `path`; use it in a `with` statement.

    shapes: of every tensor, [.., in]. key: stands for all that the tensors' bytes depend on. What
    an earlier run with the same key finished is taken over.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], key: str) -> None:
        self.path = path
        self._shapes = shapes
        self._partial = path.with_name(f".{path.name}.partial")
        self._journal = Journal(path.with_name(f".{path.name}.journal"), key)
        self._entries: dict[str, Entry] = {}
        self._end = 0
        with told_apart(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._partial, flags, 0o666), "r+b")
            self._go_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def finished(self) -> Mapping[str, str]:
        """The format of each tensor that is written."""
        return MappingProxyType({name: one.type for name, one in self._entries.items()})

    @property
    def is_complete(self) -> bool:
        """Whether every tensor is written."""
        return len(self._entries) == len(self._shapes)

    @property
    def stored(self) -> dict[str, Stored]:
        """Where each written tensor lies."""
        return {
            name: Stored(name, one.type, self._shapes[name], one.offset)
            for name, one in self._entries.items()
        }

    def read(self, name: str) -> Bytes:
        """Read back a finished tensor: uint8 [rows, row_bytes]."""
        entry, shape = self._entries[name], self._shapes[name]
        found = []
        for piece in pieces_of(entry.type, shape):
            self._file.seek(entry.offset + piece.offset)
            data = self._file.read(prod(shape[:-1]) * piece.width)
            found.append(np.frombuffer(data, np.uint8).reshape(-1, piece.width))
        return np.concatenate(found, axis=1)

    def add(self, name: str, kind: str, content: Bytes | Iterable[NDArray[np.float32]]) -> None:
        """Write one tensor behind those already there.

        content: uint8 [rows, row_bytes] of a format, or for float32 blocks of its rows, one at a
        time. Raises UnusableOutput where the disk is full.
        """
        digest, size, shape = hashlib.sha256(), 0, self._shapes[name]
        with told_apart(self.path):
            self._file.seek(self._end)
        for part in _in_pieces(kind, content, shape):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
            digest.update(data)
            size += len(data)
            with told_apart(self.path):
                self._file.write(data)
        if size != _size_of(kind, shape):
            raise UnusableModel(f"{name} has {size} bytes in {kind}, not {_size_of(kind, shape)}.")
        entry = Entry(name, kind, self._end, size, digest.hexdigest())
        with told_apart(self.path):
            self._file.write(b"\0" * (-size % ALIGNMENT))
            self._file.flush()
            self._journal.add(entry)
        self._take(entry)

    def finish(self) -> None:
        """Have it all on the disk, check it, and give the file its name."""
        missing = [name for name in self._shapes if name not in self._entries]
        if missing:
            raise UnusableModel(
                f"{self.path} would lack {len(missing)} of {len(self._shapes)} tensors, "
                f"{missing[0]} first: every tensor of the checkpoint must be written."
            )
        with told_apart(self.path):
            self._file.truncate(self._end)
            self._file.flush()
            os.fsync(self._file.fileno())
            if any(
                hash_entry(self._file, entry) != entry.sha256 for entry in self._entries.values()
            ):
                raise UnusableOutput(f"{self.path} reads back differently: check the disk.")
            self._partial.replace(self.path)
            sync_folder(self.path.parent)
            self._journal.remove()

    def _go_on(self) -> None:
        """Take over what an earlier run finished, as far as it still is what it was."""
        for entry in self._journal.read():
            shape = self._shapes.get(entry.name)
            if shape is None or entry.name in self._entries or entry.type not in FORMATS:
                break
            if entry.offset != self._end or entry.size != _size_of(entry.type, shape):
                break
            if hash_entry(self._file, entry) != entry.sha256:
                break
            self._take(entry)
        self._journal.begin(list(self._entries.values()))
        self._file.truncate(self._end)

    def _take(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        self._end = entry.offset + entry.size + -entry.size % ALIGNMENT


def _size_of(kind: str, shape: tuple[int, ...]) -> int:
    return prod(shape[:-1]) * row_bytes(kind, shape[-1])


def _in_pieces(
    kind: str, content: Bytes | Iterable[NDArray[Any]], shape: tuple[int, ...]
) -> Iterator[NDArray[Any]]:
    """The bytes in the order of the file: all codes, all scales, all zero points."""
    if not isinstance(content, np.ndarray):
        yield from content
        return
    begin = 0
    for piece in pieces_of(kind, shape):
        yield content[:, begin : begin + piece.width]
        begin += piece.width
