"""What a run has found out so far, one JSON object a line: a run that was killed goes on from it.

The tensors' bytes lie in the unfinished model file; here is what else a run must know: the types
it chose, and of each finished tensor what the report says of it. A line that was cut short by a
kill, and all after it, counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packlight.durable import write_whole
from packlight.errors import UnusableOutput

_SCHEMA = 1
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Row:
    """A finished tensor, as the report has it.

    type: of GGUF. bits: a weight, scales included. error: tr((W - V) H (W - V)^T) / tr(W H W^T)
    under the second moments H of what reached it, or with H = I where there were none.
    compensated: whether there were. seconds: that it took. note: why it has not the type that
    was planned, where it has not.
    """

    name: str
    type: str
    bits: float
    weights: int
    error: float
    compensated: bool
    seconds: float
    note: str = ""


class Journal:
    """The journal at `path` of the run that `key` stands for; empty if it is another run's."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self.rows: dict[str, Row] = {}
        self.types: dict[str, str] | None = None
        kept = self._read(key)
        try:
            write_whole(path, "".join(f"{json.dumps(one)}\n" for one in kept).encode())
        except OSError as broken:
            raise self._trouble(broken) from broken

    def add_types(self, types: Mapping[str, str]) -> None:
        """Keep the types that were chosen."""
        self.types = dict(types)
        self._append({"types": self.types})

    def add(self, row: Row) -> None:
        """Keep what is to be said of a finished tensor."""
        self.rows[row.name] = row
        self._append({"row": asdict(row)})

    def remove(self) -> None:
        """The run is at its end."""
        self._path.unlink(missing_ok=True)

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as broken:
            raise self._trouble(broken) from broken

    def _trouble(self, broken: OSError) -> UnusableOutput:
        return UnusableOutput(
            f"{self._path} cannot be written ({broken.strerror}): check that the folder may be "
            "written to and has space left, and start again; what is finished is kept"
        )

    def _read(self, key: str) -> list[dict[str, Any]]:
        """The records of this run, put into `rows` and `types`; the head alone where none."""
        head: dict[str, Any] = {"schema": _SCHEMA, "key": key}
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                return [head]
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return [head]
        if _parse(lines[0]) != head:
            return [head]
        kept = [head]
        for line in lines[1:]:
            record = _parse(line)
            if not isinstance(record, dict) or not self._take(record):
                break
            kept.append(record)
        return kept

    def _take(self, record: dict[str, Any]) -> bool:
        types, row = record.get("types"), record.get("row")
        if isinstance(types, dict) and all(isinstance(one, str) for one in types.values()):
            self.types = types
            return True
        try:
            found = Row(**row) if isinstance(row, dict) else None
        except TypeError:
            return False
        if found is None:
            return False
        self.rows[found.name] = found
        return True


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
