"""The command line: `packlight compress`, `inspect`, `pack` and others. No logic lives here."""

from __future__ import annotations

import signal
import sys
from typing import TextIO

# Importing these adds their commands to the app.
from packlight.cli import choices as _choices
from packlight.cli import serve as _serve
from packlight.cli import transport as _transport
from packlight.cli import verify as _verify
from packlight.cli.commands import app
from packlight.cli.outcomes import INTERRUPTED, TERMINATED, say_interrupted

__all__ = ["app", "main"]

_COMMANDS = (
    _choices.choices,
    _serve.serve,
    _transport.pack,
    _transport.unpack,
    _verify.verify,
)


def main() -> None:
    """The entry point of the `packlight` command; ends the process with its exit status."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_print(stream)
    # A polite end (docker stop, a job's time limit) closes child processes and temporary
    # folders on its way out, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app(prog_name="packlight")
    except KeyboardInterrupt:
        say_interrupted()
        sys.exit(INTERRUPTED)


def _never_fail_to_print(stream: TextIO) -> None:
    """A terminal that cannot show a character gets its number, not a crash."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
