"""What is finished of a file that is being written, so that a killed run goes on from there.

One JSON object a line: first what the file is made of, then each finished tensor. The last line
may be cut short by a kill; tensors are believed by their hash alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from packlight.durable import current_umask

MOST_BYTES = 1 << 28
_CHUNK = 1 << 22
_FIELDS = {"name": str, "type": str, "offset": int, "size": int, "sha256": str}


@dataclass(frozen=True)
class Entry:
    """A finished tensor. offset: of its first byte in the file; size: in bytes, not padded."""

    name: str
    type: str
    offset: int
    size: int
    sha256: str


def hash_entry(file: IO[bytes], entry: Entry) -> str:
    """The hash of a tensor as it lies in the file; empty when the file ends before it."""
    digest, left = hashlib.sha256(), entry.size
    file.seek(entry.offset)
    while left and (piece := file.read(min(_CHUNK, left))):
        digest.update(piece)
        left -= len(piece)
    return "" if left else digest.hexdigest()


class Journal:
    """The journal at `path` of a file made of what `key` stands for."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def read(self) -> list[Entry]:
        """Give what is said to be finished; nothing if it is about another file."""
        try:
            if self._path.stat().st_size > MOST_BYTES:
                return []
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        rows = [_parse(line) for line in lines]
        if not rows or rows[0] != {"key": self._key}:
            return []
        found = []
        for row in rows[1:]:
            if row is None or {name: type(value) for name, value in row.items()} != _FIELDS:
                break
            found.append(Entry(**row))
        return found

    def begin(self, entries: list[Entry]) -> None:
        """Write it anew with what is finished."""
        lines = [json.dumps({"key": self._key}), *(json.dumps(asdict(one)) for one in entries)]
        self._write("".join(line + "\n" for line in lines), os.O_TRUNC)

    def add(self, entry: Entry) -> None:
        """Note that one more is finished."""
        self._write(json.dumps(asdict(entry)) + "\n", os.O_APPEND)

    def remove(self) -> None:
        """The file is whole: nothing is to be remembered."""
        self._path.unlink(missing_ok=True)

    def _write(self, text: str, how: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | how
        with os.fdopen(os.open(self._path, flags, 0o666 & ~current_umask()), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))


def _parse(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return None
