"""Starts a worker without importing the rest of packlight.

Run as a file, with Python's `-I`: `start.py REQUESTS ANSWERS SETTINGS`, where the
first two are descriptors and the third is JSON. The two packages above the worker
are put in place empty, so that their `__init__` (which leads to everything else)
is not run: a worker needs numpy and onnxruntime and starts in a fraction of a second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType


def main(arguments: list[str]) -> None:
    """Serve requests until the parent closes the pipe."""
    room = Path(__file__).resolve().parent
    for name, folder in (("packlight", room.parent), ("packlight.runtime", room)):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    settings = json.loads(arguments[2])
    # After what -I leaves, so that nothing of the user's shadows the standard library.
    sys.path.extend(entry for entry in settings["path"] if entry not in sys.path)
    from packlight.runtime.worker import serve

    serve(
        int(arguments[0]),
        int(arguments[1]),
        memory_bytes=int(settings["memory_bytes"]),
        mapped_bytes=int(settings.get("mapped_bytes", 0)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
