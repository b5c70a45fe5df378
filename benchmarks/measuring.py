"""Runs model files in onnxruntime, in a process of its own, and turns outputs into figures.

    python measuring.py outputs MODEL SAMPLES.npz OUT.npz optimized|plain
    python measuring.py latency SAMPLES.npz OUT.npz ROUNDS MODEL...

`plain` switches graph optimizations off: quantize and dequantize are then computed in
float one after another, so that no integer kernel can saturate.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from feeding import feeds, read_ranks
from numpy.typing import NDArray


def open_session(
    model: Path, *, threads: int, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Opens a file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def load(path: Path) -> dict[str, NDArray]:
    """Reads an npz file."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def run_outputs(model: Path, samples: Path, out: Path, *, optimize: bool) -> None:
    """Writes every output of all samples, stacked along axis 0."""
    session = open_session(model, threads=os.cpu_count() or 1, optimize=optimize)
    names = [value.name for value in session.get_outputs()]
    collected: dict[str, list[NDArray]] = {name: [] for name in names}
    for chosen in feeds(read_ranks(model), load(samples), batch=100):
        for name, value in zip(names, session.run(names, chosen), strict=True):
            collected[name].append(np.asarray(value))
    np.savez(out, **{name: np.concatenate(values) for name, values in collected.items()})


def time_interleaved(samples: Path, out: Path, rounds: int, models: list[Path]) -> None:
    """Writes milliseconds [model, round] of one sample on one thread; the order rotates."""
    sessions = [open_session(model, threads=1) for model in models]
    chosen = next(feeds(read_ranks(models[0]), load(samples), batch=1))
    for session in sessions:
        for _ in range(20):
            session.run(None, chosen)
    times = np.empty((len(sessions), rounds))
    for turn in range(rounds):
        for place in range(len(sessions)):
            which = (place + turn) % len(sessions)
            began = time.perf_counter()
            sessions[which].run(None, chosen)
            times[which, turn] = (time.perf_counter() - began) * 1e3
    np.savez(out, times=times)


def signal_to_noise_db(reference: dict[str, NDArray], other: dict[str, NDArray]) -> float:
    """Returns 10 log10(sum y^2 / sum (y - y')^2) of the worst output."""
    worst = np.inf
    for name, expected in reference.items():
        y, changed = expected.astype(np.float64), other[name].astype(np.float64)
        noise = ((y - changed) ** 2).sum()
        with np.errstate(divide="ignore"):
            worst = min(worst, float(10 * np.log10((y**2).sum() / noise)))
    return worst


def explained_variance(reference: dict[str, NDArray], other: dict[str, NDArray]) -> float:
    """Returns 1 - |y - y'|^2 / |y - mean(y)|^2 of the worst output."""
    worst = 1.0
    for name, expected in reference.items():
        y, changed = expected.astype(np.float64), other[name].astype(np.float64)
        worst = min(worst, 1 - ((y - changed) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return float(worst)


def ratio_interval(
    times: NDArray, reference: NDArray, *, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the median ratio of paired rounds and its 95 % interval by bootstrap."""
    ratios = times / reference
    generator = np.random.default_rng(seed)
    drawn = np.median(generator.choice(ratios, size=(1000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


if __name__ == "__main__":
    if sys.argv[1] == "outputs":
        _, _, model, samples, out, how = sys.argv
        run_outputs(Path(model), Path(samples), Path(out), optimize=how == "optimized")
    else:
        _, _, samples, out, rounds, *models = sys.argv
        time_interleaved(Path(samples), Path(out), int(rounds), [Path(each) for each in models])
