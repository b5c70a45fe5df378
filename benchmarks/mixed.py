"""Bits where they matter: mixed precision against uniform precision at the same average bits.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/mixed.py --real ../shared/real

Weights alone are rounded, with one scale an output channel; activations stay float. The planner
weighs the candidates of each layer by measurements of single layers on 1,024 unlabelled
pictures, solves the knapsack for the average bits of the uniform row, and is measured, as the
uniform rows are, on 10,000 test pictures in onnxruntime.

- "uniform": every layer has the same integers; rounded to nearest, each layer alone, or in
  sequence (each layer refitted to what the rounded ones before it give).
- "mixed integers": 2 to 8 bits, so many on average as the uniform row has.
- "mixed, entropy coded": besides these, uniform grids whose codes take so many bits on average
  once packed; the average is that of the packed codes, scales included. Integers of the uniform
  row are entropy coded as well when they are packed: the last rows have no more bits than those.

"s" is the whole time: calibration, measurements of single layers, rounding of all candidates,
solving, rounding. "loss against" is the share of answers that differ from float32's, mixed over
uniform.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fewbits
import measuring
import numpy as np
from cases import CASES, CIFAR_MEAN, CIFAR_STD, Case, Data

from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.graph.rewrite.simplify import simplify
from packlight.plan.knapsack import Cost, solve_knapsack
from packlight.plan.table import Table, build_table
from packlight.plan.trials import Workbench
from packlight.recipe import Recipe, parse_choice
from packlight.samples import Split, open_samples
from packlight.targets import find_target

HERE = Path(__file__).resolve().parent
SEARCH = 1024
INTEGERS = tuple(f"weights-int{bits}" for bits in range(8, 1, -1))
CODED = tuple(f"weights-coded{bits}" for bits in (2, 2.5, 3, 3.5, 4, 4.5, 5, 6))


def read_training(real: Path, count: int) -> np.ndarray:
    """Returns training pictures as the resnets take them, float32 [count, 3, 32, 32]."""
    with np.load(real / "cifar10" / "cifar10.npz", allow_pickle=False) as archive:
        pictures = archive["x_train"][:count].astype(np.float32).transpose(0, 3, 1, 2)
    return np.ascontiguousarray((pictures / 255 - CIFAR_MEAN) / CIFAR_STD)


def with_nominal_bytes(table: Table, layers: Sequence[Layer]) -> Table:
    """Returns the same table whose bytes are the bits of a choice times the weights."""
    sizes = {layer.name: layer.parameters for layer in layers}
    costs = tuple(
        tuple(
            Cost(cost.loss, parse_choice(word).bits * sizes[name] / 8, 0.0)
            for word, cost in zip(words, row, strict=True)
        )
        for name, words, row in zip(table.names, table.words, table.costs, strict=True)
    )
    return replace(table, costs=costs, borders=())


def compare(case: Case, options: argparse.Namespace) -> Iterator[fewbits.Row]:
    """Yields the rows of one network; the first is float32."""
    source = options.real / case.path
    data = case.read(options.real, source, options.seed)
    data = Data(
        data.calibration,
        {name: array[: options.images] for name, array in data.test.items()},
        None if data.labels is None else data.labels[: options.images],
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "test.npz", **data.test)
        measuring.run_outputs(source, folder / "test.npz", folder / "reference.npz", optimize=True)
        (folder / "float").mkdir()
        original = Path(shutil.copy(source, folder / "float"))
        yield fewbits.measure(
            fewbits.Row("", "float32"), original, folder, data, limit=options.limit
        )
        count = len(next(iter(data.calibration.values())))
        model = load_model(source)
        graph, _ = simplify(model.ir, check=lambda _: True)
        layers = find_layers(graph)
        samples = open_samples(read_training(options.real, count + SEARCH), model.inputs)
        split = Split(tuple(range(count)), tuple(range(count, count + SEARCH)), ())
        with Workbench(model, graph, samples, split, find_target("laptop")) as bench:
            began = time.perf_counter()
            bench.calibrate([layer.name for layer in layers])
            calibrated = time.perf_counter() - began
            for bits in options.bits:
                for label, recipe, spent in plans(bench, layers, bits):
                    for way, settings in WAYS.items():
                        if way == "to nearest" and label != "uniform":
                            continue
                        began = time.perf_counter()
                        tried = bench.make(replace(recipe, **settings), label)
                        whole = calibrated + spent + time.perf_counter() - began
                        row = fewbits.Row(f"{bits} bits", f"{label}, {way}", seconds=whole)
                        yield fewbits.attempt(row, tried.path, folder, data, options)


SAME_SIZE = "mixed, entropy coded, packed size of uniform"
MIXES = {"mixed integers": INTEGERS, "mixed, entropy coded": CODED, SAME_SIZE: CODED}
WAYS = {
    "to nearest": {"rounding": "nearest"},
    "each layer alone": {},
    "in sequence": {"sequential": True},
}


def plans(
    bench: Workbench, layers: Sequence[Layer], bits: int
) -> Iterator[tuple[str, Recipe, float]]:
    """Yields label, recipe and seconds of planning, for so many bits a weight on average."""
    uniform = Recipe(layers=tuple((layer.name, f"weights-int{bits}") for layer in layers))
    yield "uniform", uniform, 0.0
    most = bits * sum(layer.parameters for layer in layers) / 8
    for label, words in MIXES.items():
        began = time.perf_counter()
        base = bench.evaluate(uniform, "uniform")
        table = build_table(bench, base, layers, words, packed=True)
        if words is INTEGERS:
            table = with_nominal_bytes(table, layers)
        if label == SAME_SIZE:
            uniform_words = dict(uniform.layers)
            most = sum(
                costs[words_of.index(uniform_words[name])].bytes
                for name, words_of, costs in zip(table.names, table.words, table.costs, strict=True)
            )
        found = solve_knapsack(table.costs, minimise="loss", max_bytes=most)
        assert found is not None
        for name, words_of, number in zip(table.names, table.words, found.choices, strict=True):
            print(f"  {name}: {words_of[number]}", file=sys.stderr)
        yield label, table.recipe(uniform, found.choices), time.perf_counter() - began


def main() -> int:
    """Runs the comparison the options ask for."""
    parser = argparse.ArgumentParser(description="Mixed against uniform precision on CIFAR-10.")
    networks = fewbits.NETWORKS
    parser.add_argument("--models", nargs="+", choices=networks, default=networks[:1])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--images", type=int, default=10_000, help="test pictures")
    parser.add_argument("--real", type=Path, default=HERE.parent.parent / "shared" / "real")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds a child may take")
    parser.add_argument("--peer-python", default=sys.executable, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.real = options.real.resolve()
    fewbits.print_head(options)
    for case in CASES:
        if case.name not in options.models:
            continue
        print(f"\n### {case.name}\n\n| | | " + " | ".join(fewbits.COLUMNS) + " |")
        print("|---" * (len(fewbits.COLUMNS) + 2) + "|", flush=True)
        lost: dict[str, float] = {}
        for row in compare(case, options):
            fewbits.print_row(row)
            lost[f"{row.width} {row.name}"] = 1 - row.agreement
        print()
        for bits in options.bits:
            for way in ("to nearest", "each layer alone", "in sequence"):
                against = lost[f"{bits} bits uniform, {way}"]
                ratios = (
                    f"{kind}, in sequence {lost[f'{bits} bits {kind}, in sequence'] / against:.2f}"
                    for kind in MIXES
                )
                print(f"- {bits} bits, loss against uniform, {way}: " + "; ".join(ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
