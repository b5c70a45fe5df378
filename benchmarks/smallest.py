"""One command for the smallest download: how long its whole search takes, and what it chooses.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/smallest.py [--real ../shared/real] [--models resnet20 ...]

Half of CIFAR-10's test pictures, with their labels, are what a user has: `packlight.compress`
gets them with `preset="smallest"`, a drop and, in the second row, a size to aim at. The other
half is fresh: what was written is run on it by onnxruntime. No peer plans for a packed size.

Columns: budget; the packed file (.plz) in bytes and times smaller than the float32 file; what
packlight says of it; top-1 on fresh pictures before and after; seconds of the whole run, of
which "search" is all between calibration and proof; seconds of processor time, children that
ended included; load of the machine when it began.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from cases import cifar_normalized
from int8 import describe_processor

import packlight
from packlight.transport import pack

HERE = Path(__file__).resolve().parent
NETWORKS = ("resnet20", "resnet32", "resnet44")
FIRST, LAST = "trying whole recipes", "proving on samples held back"
"""The search begins with the one stage and ends where the other begins."""


@dataclass
class Clock:
    """Progress that keeps the time at which each stage began."""

    stages: list[tuple[str, float]] = field(default_factory=list)

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins."""
        self.stages.append((name, time.monotonic()))
        print(f"  {name}", file=sys.stderr, flush=True)

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Steps are not timed."""


def processor_seconds() -> float:
    """Returns user and system time of this process and of children that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def top1(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of right answers of a file, run by onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [
        session.run(None, {name: images[start : start + 250]})[0].argmax(1)
        for start in range(0, len(images), 250)
    ]
    return float((np.concatenate(found) == labels).mean())


def row(name: str, download: str | None, options: argparse.Namespace) -> str:
    """Returns one row: one whole run of packlight."""
    path = options.real / "cifar10" / f"{name}.onnx"
    data = cifar_normalized(options.real, path, options.seed)
    assert data.labels is not None
    order = np.random.default_rng(options.seed).permutation(len(data.labels))
    ours, fresh = np.array_split(order, 2)
    images = data.test["image"]
    load, clock = os.getloadavg()[0], Clock()
    began, used = time.monotonic(), processor_seconds()
    result = packlight.compress(
        path,
        data={"image": images[ours], "labels": data.labels[ours]},
        preset="smallest",
        max_drop=options.max_drop,
        max_download=download,
        seed=options.seed,
        progress=clock,
    )
    assert isinstance(result, packlight.Result)
    seconds, used = time.monotonic() - began, processor_seconds() - used
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        result.save(out)
        size = pack(out, Path(temporary) / "model.plz").packed_bytes
        before, after = (
            top1(file, images[fresh], data.labels[fresh]) for file in (path, out / "model.onnx")
        )
    at = dict(reversed(clock.stages))  # of each stage the first time
    whole = path.stat().st_size
    budget = f"drop {options.max_drop}" + (f", download {download}" if download else "")
    proven = result.evidence.metric is not None and result.evidence.metric.proven
    claim = result.evidence.verdict + (", proven" if proven else "")
    return (
        f"| {name} | {budget} | {size:,} | {whole / size:.1f}x | {claim} | {before:.2%} "
        f"| {after:.2%} | {seconds:.0f} | {at[LAST] - at[FIRST]:.0f} | {used:.0f} | {load:.1f} |"
    )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--real", type=Path, default=HERE.parent.parent / "shared" / "real")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=["resnet20"])
    parser.add_argument("--max-drop", default="0.5%")
    parser.add_argument("--downloads", nargs="+", default=["none", "10%"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{datetime.date.today()}, {describe_processor()}, {os.cpu_count()} cores, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}\n")
    print(
        "| network | budget | packed bytes | smaller | packlight says | fresh top-1 before ", end=""
    )
    print("| after | s | search | processor s | load |")
    print("|---" * 11 + "|", flush=True)
    for name in options.models:
        for download in options.downloads:
            print(row(name, None if download == "none" else download, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
