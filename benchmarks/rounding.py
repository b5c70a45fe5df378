"""Compares error-compensated rounding with the plain published loop: time, memory, error.

    pip install -e . torch
    python benchmarks/rounding.py

prints one Markdown table. The layer is W [size, size], float32, with correlated second
moments of more rows than inputs; 4 bits, symmetric, one scale a group of 128 inputs, blocks
of 128, damping 0.01, inputs in the given order.

"published loop" is the algorithm of Frantar et al. 2022 as that paper states it, written
here in PyTorch, float32: the upper Cholesky factor of the damped inverse (cholesky,
cholesky_inverse, cholesky), blocks of 128 columns with a rank-1 update a column, and one
matrix product for the columns after the block. Its scales are given, as ours are.

Columns: median seconds of interleaved runs in one process, all cores; the median ratio of
paired runs, with the least and the greatest; error tr((W - Q) H (W - Q)^T) of the undamped H
in float64, over that of rounding to nearest; the peak of memory. Memory is measured in a
fresh process that does nothing else: the largest resident set (VmHWM) less the resident set
after imports and before W and H were read, so it counts W, H, scales, codes and everything
in between. It is given over the bytes of W in float32.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from int8 import describe_processor
from numpy.typing import NDArray

from packlight.maths.grids import IntegerGrid, dequantize, scale_and_zero_point
from packlight.maths.rounding import output_error, round_to_nearest, round_with_compensation

GRID = IntegerGrid(4, signed=True, symmetric=True)
BLOCK = 128
DAMPING = 0.01
OURS, THEIRS = "packlight", "published loop (PyTorch)"


def make_layer(size: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns W and H of rectified mixtures with falling strength, as activations have them."""
    rng = np.random.default_rng(seed)
    sources = max(size // 8, 1)
    strength = (np.arange(1, sources + 1) ** -0.5).astype(np.float32)
    mix = rng.standard_normal((sources, size), np.float32) * strength[:, None]
    second = np.zeros((size, size), np.float32)
    rows = 0
    while rows < 2 * size:
        x = rng.standard_normal((1024, sources), np.float32) @ mix
        x = np.maximum(x + rng.standard_normal((1024, size), np.float32), 0)
        second += x.T @ x
        rows += len(x)
    return rng.standard_normal((size, size), np.float32), second / np.float32(rows)


def group_scales(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns scale and zero point [out, groups] by minimum and maximum."""
    parts = weight.reshape(len(weight), -1, BLOCK)
    scale, zero = scale_and_zero_point(parts.min(axis=2), parts.max(axis=2), GRID)
    return scale, zero


def round_ours(weight: Any, second: Any, scale: Any, zero: Any) -> NDArray[np.int8]:
    """Returns packlight's codes."""
    codes, _ = round_with_compensation(
        weight, second, scale, zero, GRID, damping=DAMPING, block=BLOCK
    )
    return np.asarray(codes)


def round_published(weight: Any, second: Any, scale: Any, zero: Any) -> NDArray[np.int8]:
    """Returns the codes of the published loop (Frantar et al. 2022, algorithm 1)."""
    import torch  # noqa: TID251

    w = torch.from_numpy(weight).clone()
    h = torch.from_numpy(second).clone()
    scales = torch.from_numpy(scale)
    size = w.shape[1]
    codes = torch.zeros_like(w)
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    steps = torch.arange(size)
    h[steps, steps] += DAMPING * torch.mean(torch.diag(h))
    h = torch.linalg.cholesky(h)
    h = torch.cholesky_inverse(h)
    inverse = torch.linalg.cholesky(h, upper=True)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        w1 = w[:, start:stop].clone()
        errors = torch.zeros_like(w1)
        inverse1 = inverse[start:stop, start:stop]
        for i in range(stop - start):
            column, pivot = w1[:, i], inverse1[i, i]
            s = scales[:, (start + i) // BLOCK]
            code = torch.clamp(torch.round(column / s), GRID.minimum, GRID.maximum)
            codes[:, start + i] = code
            error = (column - code * s) / pivot
            w1[:, i:] -= error.unsqueeze(1).matmul(inverse1[i, i:].unsqueeze(0))
            errors[:, i] = error
        w[:, stop:] -= errors.matmul(inverse[start:stop, stop:])
    return codes.to(torch.int8).numpy()


METHODS = {OURS: round_ours, THEIRS: round_published}


def time_methods(layer: tuple[Any, ...], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Returns seconds [round] of each method; the order rotates."""
    times = {name: np.empty(rounds) for name in METHODS}
    names = list(METHODS)
    warm = tuple(np.ascontiguousarray(part[:256, :256]) for part in layer[:2])
    for method in METHODS.values():
        method(*warm, *group_scales(warm[0]))
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            began = time.perf_counter()
            METHODS[name](*layer)
            times[name][turn] = time.perf_counter() - began
            print(f"  {name}: {times[name][turn]:.2f} s", file=sys.stderr, flush=True)
    return times


def read_memory(field: str) -> int:
    """Returns a figure of this process's memory in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(field + ":"))
    return int(found) * 1024


def tell_peak(name: str, folder: Path) -> None:
    """Prints the peak of memory of one run of a method on the layer in a folder, in bytes."""
    if name == THEIRS:
        import torch  # noqa: F401, TID251
    tiny = np.eye(256, dtype=np.float32)
    METHODS[name](tiny, tiny, *group_scales(tiny))  # libraries take their working memory
    before = read_memory("VmRSS")
    layer = [np.load(folder / f"{part}.npy") for part in ("weight", "second", "scale", "zero")]
    METHODS[name](*layer)
    print(json.dumps(read_memory("VmHWM") - before))


def measure_peak(name: str, layer: tuple[Any, ...]) -> int:
    """Returns the peak of memory of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part, array in zip(("weight", "second", "scale", "zero"), layer, strict=True):
            np.save(Path(folder) / f"{part}.npy", array)
        done = subprocess.run(
            [sys.executable, __file__, "--peak", name, folder],
            capture_output=True,
            text=True,
            check=True,
        )
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def print_environment(options: argparse.Namespace) -> None:
    """Prints where and with what this was measured."""
    packages = ("packlight", "numpy", "scipy", "torch")
    told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print("# Error-compensated rounding of one layer\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {options.seed}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- load average when it began: {os.getloadavg()[0]:.1f}")
    print(f"- Python {platform.python_version()}, {told}")
    print(f"- {options.size} x {options.size}, {GRID.bits} bits, groups and blocks of {BLOCK}")
    print(f"- {options.rounds} interleaved rounds\n")


def main() -> int:
    """Runs the comparison the options ask for."""
    parser = argparse.ArgumentParser(description="Compares ways to round one large layer.")
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of the layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        tell_peak(options.peak[0], Path(options.peak[1]))
        return 0
    if options.size % BLOCK:
        parser.error(f"the size must be a multiple of {BLOCK}, not {options.size}")
    print_environment(options)
    weight, second = make_layer(options.size, options.seed)
    scale, zero = group_scales(weight)
    layer = (weight, second, scale, zero)
    peaks = {name: measure_peak(name, layer) / weight.nbytes for name in METHODS}
    times = time_methods(layer, options.rounds)
    codes = {name: method(*layer) for name, method in METHODS.items()}
    nearest = round_to_nearest(weight, scale, zero, GRID)
    errors = {
        name: output_error(weight, dequantize(found, scale, zero, block_shape=(1, BLOCK)), second)
        for name, found in {"nearest": nearest, **codes}.items()
    }
    print("| | s | ratio (least to greatest) | error over nearest | peak over W's bytes |")
    print("|---|---|---|---|---|")
    for name in METHODS:
        ratio = times[name] / times[THEIRS]
        print(
            f"| {name} | {np.median(times[name]):.2f} | {np.median(ratio):.3f}"
            f" ({ratio.min():.3f} to {ratio.max():.3f})"
            f" | {errors[name] / errors['nearest']:.5f} | {peaks[name]:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
