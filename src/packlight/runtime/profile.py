"""What a file costs in the runtime: time by operator, peak memory, and what becomes of it."""

from __future__ import annotations

import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from packlight.errors import RuntimeCrashed, RuntimeRefused, UnusableOutput, WrongUsage
from packlight.runtime.channel import Channel
from packlight.runtime.limits import Limits
from packlight.runtime.process import Engine, Feeds, Process, check_engine, package_of

# What the runtime does to a graph before it runs it: "basic" folds and removes; "extended"
# also fuses, integer operators included; "all" also changes the layout for this machine.
Level = Literal["basic", "extended", "all"]

_WARMUP_RUNS = 3
_DEFAULT = Limits()


@dataclass(frozen=True)
class OperatorTime:
    """Time of one node of the optimized graph.

    name: the node's name (fused nodes have the runtime's own). op: its operator.
    ms: mean milliseconds of a run, without the nodes inside it.
    """

    name: str
    op: str
    ms: float


def profile_operators(
    path: Path,
    feeds: Feeds,
    *,
    runs: int = 20,
    threads: int = 1,
    level: Level = "all",
    limits: Limits = _DEFAULT,
) -> tuple[OperatorTime, ...]:
    """Time of every node that runs, in the order of execution, in a child of its own.

    feeds: arrays that fit the model's inputs. runs: how many are averaged; three more warm up.
    level: "all" is what really runs, but names float convolutions after their output
    (`OUTPUT_nchwc`) and merges in what follows them; at "extended" nodes keep the file's names.
    """
    if runs < 1:
        raise WrongUsage(f"A profile needs at least one run, not {runs}.")
    with (
        tempfile.TemporaryDirectory(prefix="packlight-") as folder,
        Process(limits=limits) as process,
    ):
        with_checks = process.load(path, threads=threads)
        arrays = with_checks._checked(feeds)
        with_checks.close()
        header = {
            "path": str(path.absolute()),
            "folder": folder,
            "threads": threads,
            "level": level,
            "runs": runs,
            "warmup": _WARMUP_RUNS,
        }
        answer, results = process._channel.request(
            "profile", header, arrays, doing=f"profiling {path.name}"
        )
    operators = answer.get("operators")
    times = results.get("milliseconds")
    if (
        not isinstance(operators, list)
        or times is None
        or times.dtype != np.float64
        or times.shape != (len(operators),)
        or not np.isfinite(times).all()
        or not all(
            isinstance(entry, list) and len(entry) == 2 and all(isinstance(v, str) for v in entry)
            for entry in operators
        )
    ):
        raise RuntimeCrashed(
            f"The runtime's process sent a profile of {path.name} that makes no sense; do not "
            "trust this file."
        )
    return tuple(
        OperatorTime(name, op, float(ms)) for (name, op), ms in zip(operators, times, strict=True)
    )


def measure_peak_memory(
    path: Path,
    feeds: Feeds,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
    engine: Engine = "onnxruntime",
) -> int:
    """Peak resident set in bytes of a fresh process that loads the file and runs it twice.

    The interpreter and the runtime's own libraries are part of it, as they are for a user.
    """
    with Process(limits=limits) as process:
        session = process.load(path, threads=threads, engine=engine)
        for _ in range(2):
            session.run(feeds)
        return process.peak_memory_bytes()


def optimized_graph(
    path: Path,
    out_path: Path,
    *,
    level: Level = "extended",
    limits: Limits = _DEFAULT,
) -> None:
    """Write what the runtime makes of a file at `level`, to see which operators really run."""
    if not path.is_file():
        raise RuntimeRefused(f"There is no file {path} to optimize.")
    if not out_path.parent.is_dir():
        raise UnusableOutput(f"There is no folder {out_path.parent} to write {out_path.name} into.")
    with (
        tempfile.TemporaryDirectory(prefix=".packlight-", dir=out_path.parent) as folder,
        Process(limits=limits) as process,
    ):
        written = Path(folder) / "optimized.onnx"
        header = {"path": str(path.absolute()), "out": str(written.absolute()), "level": level}
        process._channel.request("optimize", header, doing=f"optimizing {path.name}")
        if not written.is_file():
            raise RuntimeRefused(f"The runtime wrote no optimized graph of {path.name}.")
        written.replace(out_path)


def runtime_name(engine: Engine = "onnxruntime") -> str:
    """The runtime, its version and its device: "onnxruntime 1.32.0 CPU".

    Raises MissingExtra if it is not installed.
    """
    check_engine(engine)
    try:
        version = importlib.metadata.version(package_of(engine))
    except importlib.metadata.PackageNotFoundError:
        # They come under other names too (onnxruntime-gpu, ...): ask the one that is imported.
        channel = Channel(_DEFAULT)
        try:
            answer, _ = channel.request("hello", {"engine": engine}, doing="asking for its version")
        finally:
            channel.close()
        version = str(answer.get("version"))
    return f"{engine} {version} CPU"
