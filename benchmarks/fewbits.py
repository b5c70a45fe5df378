"""Compares ways to few bits: same networks, same samples without labels, same runtime, one run.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/fewbits.py --real ../shared/real

prints one Markdown table a network. 512 training pictures calibrate, 10,000 test pictures
measure the files as they would be shipped, in onnxruntime.

Widths: W4A8, W3A8 and W2A8 give every layer weights of 4, 3 or 2 bits (one scale an output
channel) and activations of 8. W4A4 rounds what convolutions read to 4 bits as well, in front of
them; residual sums stay wider. Its first and last layer have 8 bits, as is usual in papers.

Methods:
- "to nearest": scales of least squared error, weighted by the mean square of each input;
- "GPTQ": the same scales, then algorithm 1 of Frantar et al. 2022 in the given order of the
  inputs, damping 0.01; "min-max scales": with the scales that the paper's code takes;
- "packlight, each layer alone": inputs of large second moment first, scales fitted once more
  to the codes, biases that keep the mean of the output;
- "packlight, in sequence": every layer is fitted to what the rounded layers before it give,
  then rounded so; "+ descent": and then code by code until none is better.
- "tuned": what "packlight, in sequence" made, trained towards float32 for so many minutes with
  its rounding in the loop, on 10,000 training pictures without labels (`--tune MINUTES`);
- onnxruntime: `quantize_static` with 4-bit weights.

Columns: top-1; its drop against float32 in points, with the 95 % interval of the paired
difference; agreement with float32; SNR = 10 log10(sum y^2 / sum (y - y')^2); bits of a weight on
average, and how many layers read activations of how many bits, both read off the file; bytes of
the file, and of `packlight pack` of it; seconds of compression, calibration included.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from bits import Bits, read_bits
from cases import CASES, CIFAR_MEAN, CIFAR_STD, Case, Data
from int8 import ChildFailed, describe_processor, quantize_all, run_child, versions
from numpy.typing import NDArray
from peers.table import FEW_BITS

from packlight.graph.apply import Weights, apply_recipe
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.model import Model, load_model, save_model
from packlight.graph.observe import Observations, observe
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.packing import Packed
from packlight.graph.rewrite.quantize import tensors_to_observe
from packlight.graph.rewrite.simplify import simplify
from packlight.graph.rewrite.weights import Rounded, weight_grid
from packlight.graph.sequential import refit_in_sequence
from packlight.maths.formats import quantize_to_format
from packlight.maths.grids import scale_and_zero_point
from packlight.maths.intervals import paired_difference_interval
from packlight.maths.moments import Moments
from packlight.maths.rounding import round_with_compensation
from packlight.recipe import Recipe, parse_choice
from packlight.runtime import Process
from packlight.samples import Samples, open_samples
from packlight.transport import pack

HERE = Path(__file__).resolve().parent
NETWORKS = ("resnet20", "resnet32", "resnet44")
DAMPING = 0.01
TUNED_FROM = "packlight, in sequence"
TRAINING = 10_000
"""Pictures without labels that `--tune` trains with."""


@dataclass(frozen=True)
class Method:
    """How weights are rounded. scales: "searched" or "min-max" where it is GPTQ, else ""."""

    name: str
    rounding: str = "compensated"
    sequential: bool = False
    bias_correction: bool = True
    scales: str = ""


METHODS = (
    Method("to nearest", rounding="nearest", bias_correction=False),
    Method("GPTQ, min-max scales", bias_correction=False, scales="min-max"),
    Method("GPTQ", bias_correction=False, scales="searched"),
    Method("packlight, each layer alone"),
    Method("packlight, in sequence", sequential=True),
    Method("packlight, in sequence + descent", rounding="descent", sequential=True),
)
WIDTHS = {"W4A8": "int4", "W3A8": "int3", "W2A8": "int2", "W4A4": "int4-a4"}
ENDS = {"W4A4": "int8"}  # what the first and the last layer have instead


@dataclass(frozen=True)
class Row:
    """What one file is worth; `failed` says why there are no figures."""

    width: str
    name: str
    failed: str = ""
    top1: float = 0.0
    drop: tuple[float, float, float] = (0.0, 0.0, 0.0)
    agreement: float = 1.0
    noise_db: float = float("inf")
    bits: Bits | None = None
    size_bytes: int = 0
    packed_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Observed:
    """A network ready to be compressed. seconds: of simplifying and calibrating."""

    model: Model
    graph: object
    layers: list[Layer]
    samples: Samples
    count: int
    observations: Observations
    seconds: float


def observe_network(path: Path, data: Data, process: Process) -> Observed:
    """Simplifies and calibrates once for all rows; each row counts the seconds as its own."""
    began = time.perf_counter()
    model = load_model(path)
    graph, _ = simplify(model.ir, check=lambda _: True)
    layers = find_layers(graph)
    samples = open_samples(dict(data.calibration), model.inputs)
    observations = observe(
        graph,
        samples,
        range(len(samples)),
        model.inputs,
        tensors=tensors_to_observe(graph, layers),
        layers=layers,
        process=process,
    )
    seconds = time.perf_counter() - began
    return Observed(model, graph, layers, samples, len(samples), observations, seconds)


def make_recipe(layers: list[Layer], width: str, method: Method) -> Recipe:
    """Returns the recipe of a row."""
    words = {layer.name: WIDTHS[width] for layer in layers}
    for end in (layers[0], layers[-1]):
        words[end.name] = ENDS.get(width, WIDTHS[width])
    return Recipe(
        layers=tuple(words.items()),
        rounding=method.rounding,
        sequential=method.sequential,
        bias_correction=method.bias_correction,
    )


def compress(seen: Observed, recipe: Recipe, method: Method, out: Path, process: Process) -> float:
    """Writes a file and returns the seconds that it took, calibration included."""
    began = time.perf_counter()
    graph, observations, weights = seen.graph, seen.observations, Weights()
    if method.sequential:
        fitted = refit_in_sequence(
            graph,
            recipe,
            observations,
            seen.samples,
            range(seen.count),
            seen.model.inputs,
            process=process,
        )
        graph, observations, weights = fitted.graph, fitted.observations, fitted.weights
    if method.scales:
        weights = round_by_gptq(seen, recipe, method.scales)
    compressed, notes = apply_recipe(graph, recipe, observations, weights=weights)
    left = [note for note in notes.values() if "left as it is" in note]
    if left:
        raise ChildFailed(left[0])
    save_model(compressed, out, durable=False)
    return seen.seconds + time.perf_counter() - began


def tune_file(
    seen: Observed, recipe: Recipe, made: Path, out: Path, process: Process, options: Any
) -> float:
    """Trains a quantized file with its rounding in the loop; returns the seconds that it took."""
    from packlight.graph.torch.distill import Lessons
    from packlight.graph.torch.tune import tune

    with np.load(options.real / "cifar10" / "cifar10.npz", allow_pickle=False) as archive:
        train = archive["x_train"][:TRAINING].transpose(0, 3, 1, 2).astype(np.float32)
    (name,) = (spec.name for spec in seen.model.inputs)
    samples = open_samples({name: (train / 255 - CIFAR_MEAN) / CIFAR_STD}, seen.model.inputs)
    began = time.perf_counter()
    lessons = Lessons(
        samples,
        range(len(samples)),
        seen.model.inputs,
        process,
        minutes=options.tune,
        seed=options.seed,
    )
    found = tune(seen.graph, load_model(made).ir, recipe, seen.layers, lessons)
    went = found.training
    if went is None:
        raise ChildFailed("; ".join(found.notes))
    said = f"{went.steps} of {went.planned} steps, loss {went.before:.4f} to {went.after:.4f}"
    print("; ".join([f"  tuned: {said}", *went.notes, *found.notes]), file=sys.stderr, flush=True)
    save_model(found.model, out, durable=False)
    return time.perf_counter() - began


def round_by_gptq(seen: Observed, recipe: Recipe, scales: str) -> Weights:
    """Returns all weights of few bits, rounded as the paper does; 8 bits are left to others."""
    weights = Weights()
    for layer in seen.layers:
        choice = parse_choice(recipe.choice(layer.name))
        bits = int(choice.bits)
        if bits == 8:
            continue
        codes, scale = round_layer(layer, seen.observations.moments[layer.name], bits, scales)
        if choice.activation_bits == 4:
            packed = weights.packed_for(recipe, f"weights-{choice.weights}")
            packed[layer.name, 0] = Packed(codes, bits, scale=scale[:, None])
        else:
            rounded = weights.rounded_for(recipe, bits)
            rounded[layer.name] = Rounded(codes, scale, np.zeros(len(scale)))
    return weights


def round_layer(
    layer: Layer, moments: Moments, bits: int, scales: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns codes [out, in] and scales [out] by GPTQ, inputs in the weight's own order."""
    grid = weight_grid(bits)
    matrix = weight_matrix(layer).astype(np.float64)
    place = np.argsort(kernel_order(layer))
    second = moments.second[np.ix_(place, place)]
    if scales == "min-max":
        found, _ = scale_and_zero_point(matrix.min(axis=1), matrix.max(axis=1), grid)
    else:
        found = quantize_to_format(matrix, f"int{bits}", second_moments=np.diag(second)).scale
    scale = np.asarray(found, np.float32).reshape(-1)
    zero = np.zeros(len(scale), np.int32)
    codes, _ = round_with_compensation(
        matrix, second, scale, zero, grid, damping=DAMPING, order="given"
    )
    return np.asarray(codes, np.int8), scale


def measure(row: Row, model: Path, folder: Path, data: Data, limit: float) -> Row:
    """Runs a file on the test pictures in a process of its own and compares with float32."""
    out, packed = folder / "outputs.npz", folder / "model.plz"
    arguments = ["measuring.py", "outputs", str(model), str(folder / "test.npz"), str(out)]
    run_child([*arguments, "optimized"], python=sys.executable, limit=limit)
    reference, measured = measuring.load(folder / "reference.npz"), measuring.load(out)
    (name,) = reference
    before, after = (each[name].argmax(1) for each in (reference, measured))
    right, still = before == data.labels, after == data.labels
    lost, won = int((right & ~still).sum()), int((still & ~right).sum())
    low, high = paired_difference_interval(lost, won, len(right))
    return Row(
        row.width,
        row.name,
        top1=float(still.mean()),
        drop=((lost - won) / len(right), low, high),
        agreement=float((before == after).mean()),
        noise_db=measuring.signal_to_noise_db(reference, measured),
        bits=read_bits(model),
        size_bytes=sum(file.stat().st_size for file in model.parent.iterdir()),
        packed_bytes=pack(model.parent, packed, force=True).packed_bytes,
        seconds=row.seconds,
    )


def compare(case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """Yields the rows of one network; the first is float32."""
    model = options.real / case.path
    data = case.read(options.real, model, options.seed)
    data = Data(
        data.calibration,
        {name: array[: options.images] for name, array in data.test.items()},
        None if data.labels is None else data.labels[: options.images],
    )
    with tempfile.TemporaryDirectory(dir=options.work) as temporary, Process() as process:
        folder = Path(temporary)
        np.savez(folder / "test.npz", **data.test)
        measuring.run_outputs(model, folder / "test.npz", folder / "reference.npz", optimize=True)
        (folder / "float").mkdir()
        original = Path(shutil.copy(model, folder / "float"))
        yield measure(Row("", "float32"), original, folder, data, options.limit)
        seen = observe_network(model, data, process)
        for width in options.widths:
            names = [peer.name for peer in FEW_BITS.get(width, ())] if options.peers else []
            theirs = folder / width
            theirs.mkdir()
            np.savez(theirs / "calibration.npz", **data.calibration)
            quantized = quantize_all(model, theirs, names, options)
            for number, name in enumerate(names):
                row = Row(width, name, quantized[name].crashed)
                if not row.failed:
                    row = Row(width, name, seconds=quantized[name].seconds or 0.0)
                    row = attempt(row, theirs / str(number) / "model.onnx", folder, data, options)
                yield row
            for number, method in enumerate(METHODS, start=len(names)):
                if not any(re.search(part, method.name) for part in options.methods):
                    continue
                print(f"  {width} {method.name} ...", file=sys.stderr, flush=True)
                out = theirs / str(number) / "model.onnx"
                out.parent.mkdir()
                recipe = make_recipe(seen.layers, width, method)
                try:
                    seconds = compress(seen, recipe, method, out, process)
                except ChildFailed as failure:
                    yield Row(width, method.name, str(failure))
                else:
                    row = Row(width, method.name, seconds=seconds)
                    yield attempt(row, out, folder, data, options)
                    if options.tune and method.name == TUNED_FROM:
                        tuned = theirs / "tuned" / "model.onnx"
                        tuned.parent.mkdir()
                        seconds += tune_file(seen, recipe, out, tuned, process, options)
                        name = f"{method.name}, tuned {options.tune:g} minutes"
                        row = Row(width, name, seconds=seconds)
                        yield attempt(row, tuned, folder, data, options)


def attempt(row: Row, model: Path, folder: Path, data: Data, options: argparse.Namespace) -> Row:
    """Measures a file; one that does not run is a row that says so."""
    try:
        return measure(row, model, folder, data, options.limit)
    except ChildFailed as failure:
        said = f"its file does not run: {failure}".replace(str(folder), "")
        return Row(row.width, row.name, said)


COLUMNS = (
    *("top-1", "drop in points (95 %)", "agreement", "SNR dB", "bits a weight"),
    *("activations", "bytes", "packed bytes", "s"),
)


def print_row(row: Row) -> None:
    """Prints a row as Markdown."""
    start = f"| {row.width} | {row.name} | "
    if row.failed:
        said = f"failed: {row.failed.replace('|', '/')[:240]}"
        print(start + said + " |" * len(COLUMNS), flush=True)
        return
    assert row.bits is not None
    drop, low, high = (100 * value for value in row.drop)
    reads = ", ".join(f"{count} x {bits}" for bits, count in row.bits.activations.items())
    cells = [f"{row.top1:.2%}", f"{drop:.2f} ({low:.2f} to {high:.2f})", f"{row.agreement:.2%}"]
    cells += [f"{row.noise_db:.2f}", f"{row.bits.weights:.2f}", reads]
    cells += [f"{row.size_bytes:,}", f"{row.packed_bytes:,}", f"{row.seconds:.1f}"]
    print(start + " | ".join(cells) + " |", flush=True)


def print_head(options: argparse.Namespace) -> None:
    """Prints where and with what this was measured."""
    print("# Few bits compared\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {options.seed}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- load average when it began: {os.getloadavg()[0]:.1f}")
    print(f"- Python {platform.python_version()}, " + ", ".join(versions(options)))
    print(f"- 512 training pictures without labels, {options.images:,} test pictures")
    print(
        "- Not here: NNCF (its 4-bit weights are for MatMul and Gemm, and it writes only 8-bit "
        "codes for convolutions) and onnxruntime's `MatMulNBits` quantizer (MatMul only). "
        "onnxruntime's 4-bit `quantize_static` keeps the ends' weights in float at W4A4, as it has "
        "one width for all layers; the other rows give them 8 bits."
    )


def main() -> int:
    """Runs the comparison the options ask for."""
    parser = argparse.ArgumentParser(description="Compares ways to few bits on CIFAR-10.")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="MODEL")
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--methods", nargs="+", default=[""], help="rows whose name matches")
    parser.add_argument("--images", type=int, default=10_000, help="test pictures")
    parser.add_argument(
        "--tune", type=float, default=0.0, metavar="MINUTES", help="rows with trained codes, too"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parent.parent / "shared" / "real",
        help="the folder of real models and data",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds a child may take")
    parser.add_argument("--work", type=Path, default=None, help="where temporary files go")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has the rivals"
    )
    options = parser.parse_args()
    options.real = options.real.resolve()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    print_head(options)
    for case in CASES:
        if case.name in options.models:
            print(f"\n### {case.name}\n\n| | | " + " | ".join(COLUMNS) + " |")
            print("|---" * (len(COLUMNS) + 2) + "|", flush=True)
            print(case.name, file=sys.stderr, flush=True)
            for row in compare(case, options):
                print_row(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
