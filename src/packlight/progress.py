"""How long work tells whoever waits what it is doing.

The rooms below call these methods; the command line draws a bar from them,
a pipe gets plain lines, a library user gets silence unless they pass their own.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what long work is doing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps (None: not known)."""
        ...

    def step(self, detail: str = "", advance: int = 1) -> None:
        """`advance` steps of the stage are done; `detail` says what is being tried."""
        ...

    def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
        """A whole candidate was measured on the search samples; nothing is chosen yet.

        quality: the metric of its file; None on made-up samples. kept: it loses no more than is
        allowed, as far as that is known.
        """
        ...


class Silent:
    """Progress that tells nobody."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignored."""

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Ignored."""

    def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
        """Ignored."""


SILENT: Progress = Silent()
