"""One quantizer on one model, in a process of its own.

    python -m peers NAME MODEL CALIBRATION.npz OUT

prints one line of JSON: {"seconds": ...} (the quantizer alone, without imports of this
harness), or {"error": "first line of what it raised"}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from peers.table import FEW_BITS, PEERS


def main(name: str, model: str, calibration: str, out: str) -> None:
    """Runs the peer; what it prints itself goes to stderr, so that the last line is ours."""
    known = (*PEERS, *(peer for peers in FEW_BITS.values() for peer in peers))
    (peer,) = (peer for peer in known if peer.name == name)
    with np.load(calibration, allow_pickle=False) as archive:
        samples = {key: archive[key] for key in archive.files}
    answer: dict[str, object] = {}
    stdout, sys.stdout = sys.stdout, sys.stderr
    began = time.perf_counter()
    try:
        peer.quantize(Path(model), samples, Path(out))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer["error"] = f"{type(error).__name__}: {lines[0]}"
    answer["seconds"] = time.perf_counter() - began
    stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
