"""How small a download becomes at no loss: real bytes of the packed file.

    pip install -e . torch
    python benchmarks/size.py [--real ../shared/real] [--work .bench/size] [--models lenet-5 ...]

prints one Markdown table. LeNet-300-100 and LeNet-5 are trained by the benchmark (`lenet.py`;
kept in --work), resnet20 is a file. The compression sees images without labels only and trains
nothing: weights are rounded layer after layer so that entropy coding is short, each layer
refitted to what those before it leave.

Bits are shared out by a search on unlabelled images that neither training nor calibration saw:
each layer is compressed alone at a few rates and the squared error at the network's output
measured; errors of layers add up, so at one price of a byte each layer takes its cheapest rate;
and the price is raised until the accuracy that is to be expected falls by more than --expected.
That is told without labels: where the class changes, by how much less likely the network itself
(its softmax) holds the new class than its own.

The folder (model.onnx and recipe.yaml) is packed, unpacked again, and the unpacked model is run by
onnxruntime on all test images; only there labels are read. "smaller" is the float32 ONNX
file over the packed file, both in bytes on disk.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from cases import cifar_normalized
from lenet import TRAINED_ON, read_mnist, train_lenet
from numpy.typing import NDArray

from packlight.graph.apply import apply_recipe
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, load_model
from packlight.graph.observe import Observations, wants_moments
from packlight.graph.rewrite.simplify import simplify
from packlight.graph.save import save_model
from packlight.graph.sequential import Refitted, refit_in_sequence
from packlight.recipe import Recipe, write_recipe
from packlight.runtime import Process
from packlight.samples.arrays import ArraySamples, samples_from_arrays
from packlight.tensors import TensorSpec
from packlight.transport import pack, unpack

Floats = NDArray[np.float32]

RATES = (0.15, 0.3, 0.6, 1.2, 2.4, 4.0)
"""Bits a weight at which each layer is measured alone."""

FINE = tuple(round(0.1 * 2 ** (k / 4), 3) for k in range(23))  # 0.1 to 4.5
"""Bits a weight that the search may take."""

SEARCHED = 9


@dataclass(frozen=True)
class Task:
    """A network and its images: to calibrate and to search with (no labels), to test with.

    smaller, loss: what it is to reach: times smaller, and at most so many points of top-1.
    """

    name: str
    path: Path
    calibration: Floats
    search: Floats
    test: Floats
    labels: NDArray[np.int64]
    smaller: float
    loss: float


@dataclass(frozen=True)
class Bench:
    """A simplified network, and what it is compressed with."""

    graph: Graph
    inputs: tuple[TensorSpec, ...]
    samples: ArraySamples
    process: Process
    work: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]


def main() -> None:
    """Prints the table."""
    options = _options()
    print("| network | float32 bytes | packed bytes | smaller | top-1 | packed top-1 ", end="")
    print("| loss | agreement | asked | bits a weight | seconds |")
    print("|---" * 11 + "|")
    for name in options.models:
        task = _task(name, options)
        begin = time.monotonic()
        row = _measure(task, options)
        print(f"{row} {time.monotonic() - begin:.0f} |", flush=True)


def _options() -> argparse.Namespace:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, default=root.parent / "shared" / "real")
    parser.add_argument("--work", type=Path, default=root / ".bench" / "size")
    parser.add_argument("--models", nargs="+", default=["lenet-300-100", "lenet-5", "resnet20"])
    parser.add_argument("--expected", type=float, help="expected loss in points, half of asked")
    parser.add_argument("--bits", type=float, nargs="+", help="of each layer, or of all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _task(name: str, options: argparse.Namespace) -> Task:
    real = options.real
    if name == "resnet20":
        path = real / "cifar10" / "resnet20.onnx"
        data = cifar_normalized(real, path, 0)
        half = len(data.calibration["image"]) // 2
        first, second = data.calibration["image"][:half], data.calibration["image"][half:]
        assert data.labels is not None
        return Task(name, path, first, second, data.test["image"], data.labels, 10, 0.5)
    mnist = read_mnist(real)
    path = train_lenet(name, real, options.work)
    seen, unseen = mnist["x_train"][:4000], mnist["x_train"][TRAINED_ON:]
    return Task(name, path, seen, unseen, mnist["x_test"], mnist["y_test"], 40, 0.1)


def _measure(task: Task, options: argparse.Namespace) -> str:
    work = options.work / task.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with Process() as process:
        bench = _prepare(task, process, work)
        if options.bits:
            every = len(options.bits) == 1
            bits = tuple(options.bits * len(bench.names) if every else options.bits)
        else:
            limit = task.loss / 200 if options.expected is None else options.expected / 100
            bits = _search(task, bench, limit, options.seed)
        packed = _compress(task, bench, bits, options.seed)
    size = _pack(packed)
    original, got = (_run(path, task.test) for path in (task.path, work / "unpacked/model.onnx"))
    right, still = (float((out.argmax(1) == task.labels).mean()) for out in (original, got))
    agreement = float((original.argmax(1) == got.argmax(1)).mean())
    before = task.path.stat().st_size
    mean = float(np.average(bits, weights=bench.sizes))
    return (
        f"| {task.name} | {before:,} | {size:,} | **{before / size:.1f}x** | {right:.2%} "
        f"| {still:.2%} | {100 * (right - still):+.2f} | {agreement:.2%} | {task.smaller:g}x at "
        f"{task.loss:g} | {mean:.2f}: {' '.join(f'{one:g}' for one in bits)} |"
    )


def _prepare(task: Task, process: Process, work: Path) -> Bench:
    model = load_model(task.path)
    graph, _ = simplify(model.ir, check=None)
    arrays = {model.inputs[0].name: task.calibration}
    samples = samples_from_arrays(arrays, model.inputs, place="calibration images")
    layers = [layer for layer in find_layers(graph) if wants_moments(layer)]
    return Bench(
        graph,
        model.inputs,
        samples,
        process,
        work,
        tuple(layer.name for layer in layers),
        tuple(layer.parameters for layer in layers),
    )


def _search(task: Task, bench: Bench, limit: float, seed: int) -> tuple[float, ...]:
    """Bits of each layer, least in all at an expected loss of at most `limit`."""
    wanted = _run(task.path, task.search)
    path = bench.work / "trial.onnx"
    # log2 of the error at the output, by layer and rate.
    losses = np.zeros((len(bench.names), len(RATES)))
    for number, name in enumerate(bench.names):
        alone = [Recipe(layers=((name, f"weights-coded{rate:g}"),), seed=seed) for rate in RATES]
        fitted = _refit(task, bench, alone[0])  # moments of the original inputs
        for place, recipe in enumerate(alone):
            graph, _ = apply_recipe(fitted.graph, recipe, fitted.observations)
            save_model(graph, path)
            error = np.square(_run(path, task.search) - wanted).mean()
            losses[number, place] = math.log2(max(float(error), 1e-12))
    fine = np.array([np.interp(np.log2(FINE), np.log2(RATES), row) for row in losses])
    costs = np.array(bench.sizes)[:, None] * np.array(FINE)
    low, high = 0.0, 40.0  # log2 of the price of an error in bits
    best = None
    for _ in range(SEARCHED):
        price = (low + high) / 2
        chosen = tuple(FINE[i] for i in (costs + 2.0**price * 2.0**fine).argmin(axis=1))
        folder = _compress(task, bench, chosen, seed)
        found = _run(folder / "model.onnx", task.search)
        expected = _expected_loss(wanted, found)
        print(f"<!-- {task.name}: {chosen}: expected loss {100 * expected:.3f} -->", flush=True)
        if expected <= limit:
            best, high = chosen, price
        else:
            low = price
    return best or tuple(FINE[-1] for _ in bench.names)


def _expected_loss(wanted: Floats, found: Floats) -> float:
    """The share of classes lost, as the network itself weighs its classes."""
    shifted = wanted.astype(np.float64) - wanted.max(axis=1, keepdims=True)
    share = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(wanted))
    return float((share.max(axis=1) - share[rows, found.argmax(axis=1)]).mean())


def _compress(task: Task, bench: Bench, bits: Sequence[float], seed: int) -> Path:
    """Writes model.onnx and recipe.yaml. Returns their folder."""
    pairs = zip(bench.names, bits, strict=True)
    layers = tuple((name, f"weights-coded{rate:g}") for name, rate in pairs)
    recipe = Recipe(layers=layers, sequential=True, seed=seed)
    fitted = _refit(task, bench, recipe)
    graph, notes = apply_recipe(fitted.graph, recipe, fitted.observations, weights=fitted.weights)
    left = [note for note in notes.values() if note.startswith("left")]
    if left:
        raise SystemExit("\n".join(left))
    folder = bench.work / "packed"
    folder.mkdir(exist_ok=True)
    save_model(graph, folder / "model.onnx")
    (folder / "recipe.yaml").write_text(write_recipe(recipe), encoding="utf-8")
    return folder


def _refit(task: Task, bench: Bench, recipe: Recipe) -> Refitted:
    count = len(task.calibration)
    return refit_in_sequence(
        bench.graph,
        recipe,
        Observations(),
        bench.samples,
        range(count),
        bench.inputs,
        process=bench.process,
        samples_each=count,
    )


def _pack(folder: Path) -> int:
    """Packs a folder, unpacks it next to it. Returns the bytes of the packed file."""
    path = folder.with_name("model.plz")
    pack(folder, path, force=True)
    unpack(path, folder.with_name("unpacked"))
    return path.stat().st_size


def _run(path: Path, images: Floats) -> Floats:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: images[start : start + 250]})[0]
        for start in range(0, len(images), 250)
    ]
    return np.concatenate(parts).reshape(len(images), -1)


if __name__ == "__main__":
    main()
