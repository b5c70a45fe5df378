"""Starts what a server leaves to a child process.

Run as a file, with Python's `-I`: `child.py PATHS`, where PATHS is a JSON list of folders in
which packages are found. One line of JSON on standard input is the request; lines of JSON on
standard output are what is told meanwhile, the last one the answer. Standard input stays open for
as long as the server lives: once it closes, this process ends itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_PATIENCE_SECONDS = 10.0


def main(paths: str) -> None:
    """Do what is asked for on standard input."""
    # After what -I leaves, so that nothing of the user's shadows the standard library.
    sys.path.extend(entry for entry in json.loads(paths) if entry not in sys.path)
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)
    # Ends with everything that it started: runtimes are closed, temporary folders removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_server, daemon=True).start()
    _import_own_package()
    from packlight.serve.work import work

    def tell(message: dict[str, object]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")

    tell(work(request, tell))


def _import_own_package() -> None:
    """Take packlight from where this file lies, and not from wherever else it is installed."""
    folder = Path(__file__).resolve().parents[1]
    spec = spec_from_file_location(
        "packlight", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["packlight"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


def _end_with_server() -> None:
    # The buffered reader's lock, held here, would be missed when the interpreter ends.
    while os.read(0, 1 << 12):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
