"""What of a compression is finished, on disk: a run that was killed goes on from there.

A folder with one line a finished tensor in `journal.jsonl` and its bytes in a file beside it. A
line is written after its file is on the disk, so that a file without a line counts for nothing,
and a last line that was cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.durable import sync_folder, write_whole
from packlight.errors import UnusableOutput

_SCHEMA = 1
_MOST_LINES = 1_000_000


@dataclass(frozen=True)
class Entry:
    """A finished tensor. shape: of its bytes, [rows, row_bytes], or with experts in front.

    error: |W - V|^2 / |W|^2 as the layer's outputs see it where second moments were there, else
    of the weights. seconds: that it took. note: why it has not the type that was asked for.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    error: float
    seconds: float
    sha256: str
    note: str = ""


class Journal:
    """The finished tensors of one run, told apart from other runs by a key.

    Opening it with the same key as before finds what was finished; with another key it is empty,
    and what lay there is removed.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._log = folder / "journal.jsonl"
        self._entries: dict[str, Entry] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._read(key):
                self._begin(key)
        except OSError as broken:
            raise UnusableOutput(
                f"{folder} cannot be written ({broken.strerror}): give another folder"
            ) from broken

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The finished tensors by name, in the order in which they were finished."""
        return self._entries

    def add(self, entry: Entry, data: NDArray[np.uint8]) -> Entry:
        """Keep a finished tensor; gives its entry with the digest of its bytes.

        Raises UnusableOutput where the disk is full: what was finished before stays.
        """
        content = np.ascontiguousarray(data).tobytes()
        entry = Entry(**{**asdict(entry), "sha256": hashlib.sha256(content).hexdigest()})
        try:
            write_whole(self._place(len(self._entries)), content)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(entry)) + "\n")
                log.flush()
                os.fsync(log.fileno())
        except OSError as full:
            raise UnusableOutput(
                f"{self.folder}: {entry.name} could not be kept ({full.strerror}): make room and "
                "run the same command again, it goes on where it was"
            ) from full
        self._entries[entry.name] = entry
        return entry

    def read(self, name: str) -> NDArray[np.uint8]:
        """Give the bytes of a finished tensor. Raises UnusableOutput where they were changed."""
        entry = self._entries[name]
        number = list(self._entries).index(name)
        try:
            content = self._place(number).read_bytes()
        except OSError as broken:
            raise UnusableOutput(
                f"{self.folder}: the bytes of {name} are gone ({broken.strerror}): remove the "
                "folder and run again"
            ) from broken
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise UnusableOutput(
                f"{self.folder}: the bytes of {name} are not those that were written: remove the "
                "folder and run again"
            )
        return np.frombuffer(content, np.uint8).reshape(entry.shape)

    def remove(self) -> None:
        """Remove what this journal wrote, and the folder where nothing else is in it."""
        for path in self._own_files():
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, number: int) -> Path:
        return self.folder / f"tensor-{number:06}.bin"

    def _own_files(self) -> list[Path]:
        found = [self._log, *self.folder.glob("tensor-*.bin"), *self.folder.glob("states-*.tmp")]
        return found + list(self.folder.glob(".tensor-*.tmp"))

    def _begin(self, key: str) -> None:
        for path in self._own_files():
            path.unlink(missing_ok=True)
        head = json.dumps({"schema": _SCHEMA, "key": key}) + "\n"
        write_whole(self._log, head.encode())
        sync_folder(self.folder)

    def _read(self, key: str) -> bool:
        """Whether this run was begun before; finds its entries and drops what was cut short."""
        for path in (*self.folder.glob("states-*.tmp"), *self.folder.glob(".tensor-*.tmp")):
            path.unlink(missing_ok=True)
        if not self._log.is_file():
            return False
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        if len(lines) > _MOST_LINES or _parse(lines[0]) != {"schema": _SCHEMA, "key": key}:
            return False
        whole = [lines[0]]
        for line in lines[1:]:
            entry = _entry(_parse(line))
            place = self._place(len(self._entries))
            if entry is None or not place.is_file() or _digest(place) != entry.sha256:
                break
            self._entries[entry.name] = entry
            whole.append(line)
        write_whole(self._log, ("\n".join(whole) + "\n").encode())
        return True


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _entry(record: Any) -> Entry | None:
    try:
        return Entry(**{**record, "shape": tuple(int(size) for size in record["shape"])})
    except (TypeError, KeyError, ValueError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
