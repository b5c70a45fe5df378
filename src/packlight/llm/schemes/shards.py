"""A folder of safetensors files while it is written: every tensor's place is known beforehand.

So tensors come in any order, and a run that goes on ends with the same bytes. The folder has a
hidden name until it is whole; a journal in it tells what is finished, each tensor with its hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.durable import sync_folder
from packlight.errors import UnusableOutput
from packlight.llm.checkpoint.folder import INDEX, SINGLE
from packlight.llm.gguf.journal import Entry, Journal
from packlight.llm.gguf.writing import told_apart
from packlight.llm.schemes.layouts import ITEM_BYTES

SHARD_BYTES = 4 << 30
_ALIGNMENT = 8
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Slot:
    """The place of a tensor. dtype: as safetensors names it. offset: of its first byte."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardPlan:
    """slots: of every tensor, by name. heads: of every file, its first bytes."""

    slots: Mapping[str, Slot]
    heads: Mapping[str, bytes]

    @property
    def index(self) -> dict[str, Any]:
        """What model.safetensors.index.json holds."""
        return {
            "metadata": {"total_size": sum(slot.size for slot in self.slots.values())},
            "weight_map": {name: slot.file for name, slot in sorted(self.slots.items())},
        }

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(map(len, self.heads.values())) + sum(one.size for one in self.slots.values())


def plan_shards(tensors: Mapping[str, tuple[str, tuple[int, ...]]], most_bytes: int) -> ShardPlan:
    """Give each tensor (type and shape) its place, in files of at most so many bytes if it can be.

    Within a file wide types come first, so that every number lies at a multiple of its size.
    """
    files: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * ITEM_BYTES[dtype]
        if files[-1] and filled + size > most_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    slots: dict[str, Slot] = {}
    heads: dict[str, bytes] = {}
    for number, names in enumerate(files, 1):
        file = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        at, listed = 0, {}
        for name in sorted(names, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name)):
            dtype, shape = tensors[name]
            end = at + prod(shape) * ITEM_BYTES[dtype]
            listed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            slots[name], at = Slot(file, dtype, shape, at), end
        text = json.dumps({"__metadata__": {"format": "pt"}, **listed}, separators=(",", ":"))
        head = text.encode() + b" " * (-len(text.encode()) % _ALIGNMENT)
        heads[file] = struct.pack("<Q", len(head)) + head
    begun = {
        name: Slot(one.file, one.dtype, one.shape, one.offset + len(heads[one.file]))
        for name, one in slots.items()
    }
    return ShardPlan(begun, heads)


class FolderWriting:
    """A folder that is being written, which `begin_folder` gives. path: its name when whole."""

    def __init__(self, path: Path, partial: Path, plan: ShardPlan, key: str) -> None:
        self.path, self.partial, self.plan = path, partial, plan
        self._entries: dict[str, Entry] = {}
        self._journal = Journal(partial / ".journal", key)
        known = self._journal.read()
        if not known:  # what lies there is another run's
            for old in partial.iterdir():
                old.unlink()
        for file, head in plan.heads.items():
            place = partial / file
            with place.open("r+b" if place.exists() else "w+b") as opened:
                opened.write(head)
        for entry in known:
            slot = plan.slots.get(entry.name)
            if slot is None or (slot.offset, slot.size) != (entry.offset, entry.size):
                break
            if self._hash(entry.name) == entry.sha256:
                self._entries[entry.name] = entry
        self._journal.begin(list(self._entries.values()))

    @property
    def finished(self) -> Iterable[str]:
        """Names of the tensors that are written."""
        return self._entries.keys()

    def read(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a finished tensor: uint8 [rows, row_bytes]."""
        slot = self.plan.slots[name]
        pieces = b"".join(self._pieces(slot))
        return np.frombuffer(pieces, np.uint8).reshape(slot.shape[0] if slot.shape else 1, -1)

    def add(self, name: str, pieces: Iterable[NDArray[np.uint8]]) -> None:
        """Write one tensor, some of its bytes at a time. Raises UnusableOutput."""
        if name in self._entries:
            return
        slot, digest, size = self.plan.slots[name], hashlib.sha256(), 0
        with (
            told_apart(self.path),
            (self.partial / slot.file).open("r+b") as file,
        ):
            file.seek(slot.offset)
            for piece in pieces:
                data = np.ascontiguousarray(piece).reshape(-1).data
                file.write(data)
                digest.update(data)
                size += len(data)
            if size != slot.size:
                raise ValueError(f"{name} has {size} bytes of {slot.size}")
            file.flush()
            entry = Entry(name, slot.dtype, slot.offset, size, digest.hexdigest())
            self._journal.add(entry)
        self._entries[name] = entry

    def finish(self, texts: Mapping[str, bytes]) -> Path:
        """Check all tensors, add the other files, have it on the disk, and give it its name."""
        missing = [name for name in self.plan.slots if name not in self._entries]
        if missing:
            raise ValueError(f"{len(missing)} tensors are not written, {missing[0]} first")
        with told_apart(self.path):
            for name, entry in self._entries.items():
                if self._hash(name) != entry.sha256:
                    raise UnusableOutput(f"{self.path} reads back differently: check the disk.")
            files = dict(texts)
            if len(self.plan.heads) > 1:
                files[INDEX] = json.dumps(self.plan.index, indent=2).encode() + b"\n"
            for file, content in files.items():
                (self.partial / file).write_bytes(content)
            self._journal.remove()
            for place in self.partial.iterdir():
                with place.open("rb") as opened:
                    os.fsync(opened.fileno())
            sync_folder(self.partial)
            self.partial.rename(self.path)
            sync_folder(self.path.parent)
        return self.path

    def _hash(self, name: str) -> str:
        digest = hashlib.sha256()
        for piece in self._pieces(self.plan.slots[name]):
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self, slot: Slot) -> Iterator[bytes]:
        left = slot.size
        with (self.partial / slot.file).open("rb") as file:
            file.seek(slot.offset)
            while left and (piece := file.read(min(_CHUNK, left))):
                left -= len(piece)
                yield piece


@contextlib.contextmanager
def begin_folder(path: Path, plan: ShardPlan, key: str) -> Iterator[FolderWriting]:
    """Begin a folder, or go on with it where `key` is the same; until it is whole it is hidden.

    Raises UnusableOutput when it exists, cannot be written, or another run writes it.
    """
    if path.exists():
        raise UnusableOutput(f"{path} exists: choose another name for the output.")
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.ExitStack() as cleanup:
        with told_apart(path):
            partial.mkdir(exist_ok=True)
            folder = os.open(partial, os.O_RDONLY)
            cleanup.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnusableOutput(
                    f"{path} is being written by another run: wait for it, or choose another name."
                ) from None
            writing = FolderWriting(path, partial, plan, key)
        yield writing
