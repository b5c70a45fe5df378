"""Keeps a browser: starts it, and ends all of it when its owner lets go or dies.

Run as a file, with Python's `-I`: `keeper.py PROGRAM [OPTION...]`. Standard input is a pipe
that its owner holds open; a browser is many processes, and none of them may outlive it.
Its profile is a folder of its own, removed afterwards; nothing in the user's home is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


def main(arguments: list[str]) -> int:
    """Run the browser until standard input is closed; answers with its exit status, else 0."""
    _adopt_orphans()
    with tempfile.TemporaryDirectory(
        prefix=f"packlight-browser-{os.getppid()}-", ignore_cleanup_errors=True
    ) as folder:
        environment = {
            key: value for key, value in os.environ.items() if "proxy" not in key.lower()
        }
        environment |= dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), folder)
        command = [arguments[0], f"--user-data-dir={folder}/profile", *arguments[1:]]
        browser = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            process_group=0,
        )
        try:
            return _wait(browser)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            _end_children()


def _wait(browser: subprocess.Popen[bytes]) -> int:
    poller = select.poll()
    poller.register(sys.stdin.fileno(), select.POLLIN)
    while not poller.poll(100):
        status = browser.poll()
        if status is not None:
            return status if status >= 0 else 1
    return 0


def _adopt_orphans() -> None:
    """Processes whose parent dies become this one's children (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_children() -> None:
    """End what is left of the browser; each death may bring its children here."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        children = _children()
        if not children:
            return
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
