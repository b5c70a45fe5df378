"""Where files are made until they are handed over."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from pathlib import Path


class Scratch:
    """A folder for unfinished files.

    At a path of its own it stays, so that a killed run is gone on with; without one it goes away
    with the last that holds this, or when Python ends.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._own = path is None
        self.path = Path(tempfile.mkdtemp(prefix="packlight-")) if path is None else path
        if self._own:
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def file(self, label: str, name: str) -> Path:
        """The place of a file of one attempt."""
        folder = self.path / label
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def tidy(self) -> None:
        """Remove folders in which nothing lies that a next run could use."""
        if self._own or not self.path.is_dir():
            return
        for folder in (*self.path.iterdir(), self.path):
            with contextlib.suppress(OSError):  # it holds something, or is a file
                folder.rmdir()

    def clear(self) -> None:
        """Remove all of it: what was made is where the user wanted it."""
        if not self._own:
            shutil.rmtree(self.path, ignore_errors=True)
