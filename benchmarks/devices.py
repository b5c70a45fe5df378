"""Prints docs/devices.md's table: what each model becomes in the files of other runtimes.

    python benchmarks/devices.py REAL [--models NAME ...] [--targets NAME ...] [--int8]

REAL: the folder of real models. The layers are chosen once a model, for the first target; the
others get the same choice, so that their files are of one and the same compressed graph.
--int8: nothing is searched for, all layers that can be are int8.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from cases import CASES, Case

import packlight
from packlight.devices.table import FORMATS
from packlight.graph.apply import why_not
from packlight.graph.layers import find_layers
from packlight.measure.evidence import Evidence
from packlight.recipe import Recipe
from packlight.report.units import format_bytes, format_ms, format_number, format_percent

NAMES = ("resnet20", "dscnn_kws", "ad01_autoencoder", "ultraface")
SAMPLES = 2000
"""At most so many are read."""

HEADS = (
    *("Model", "Target", "Layers", "Original", "model.onnx", "File", "Same answers"),
    *("SNR", "Original there", "File there"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("real", type=Path)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--targets", nargs="+", default=[*FORMATS])
    parser.add_argument("--int8", action="store_true")
    asked = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for case in CASES:
        if case.name in asked.models:
            for row in rows_of(case, asked.real, asked.targets, int8=asked.int8):
                print(f"| {' | '.join(row)} |", flush=True)


def rows_of(case: Case, real: Path, targets: list[str], *, int8: bool):
    """One row a target."""
    data = case.read(real, real / case.path, 0)
    samples = {name: array[:SAMPLES] for name, array in data.test.items()}
    if data.labels is not None:
        samples["labels"] = data.labels[:SAMPLES]
    recipe = None
    if int8:
        layers = find_layers(packlight.load(real / case.path).ir)
        able = tuple((one.name, "int8") for one in layers if not why_not(one, "int8"))
        recipe = Recipe(layers=able, pair_limit=False)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "samples.npz"
        np.savez(archive, **samples)
        for target in targets:
            same = None if recipe is None else replace(recipe, target=target)
            found = packlight.compress(real / case.path, data=archive, target=target, recipe=same)
            assert isinstance(found, packlight.Result)
            recipe = found.recipe
            yield row_of(case, target, found.evidence)


def row_of(case: Case, target: str, evidence: Evidence) -> tuple[str, ...]:
    device = evidence.device_file
    assert device is not None
    choices = Counter(layer.choice for layer in evidence.layers)
    metric, latency = device.metric, device.latency_ms
    if metric is None:
        same, noise = device.reason, ""
    else:
        classes = metric.agreement is not None and metric.name != "explained variance"
        value = metric.agreement if classes else metric.compressed
        kind = f"{metric.samples:,} samples" if classes else metric.name
        same = f"{format_percent(value)} ({kind})"
        noise = "" if metric.noise_db is None else f"{format_number(metric.noise_db)} dB"
    return (
        case.name,
        target,
        ", ".join(f"{count} {choice}" for choice, count in choices.most_common()),
        format_bytes(evidence.size_bytes.original),
        format_bytes(evidence.size_bytes.compressed),
        format_bytes(device.size_bytes) if device.files else device.reason,
        same,
        noise,
        "" if latency is None else format_ms(latency.original),
        "" if latency is None else f"{format_ms(latency.compressed)} ({latency.ratio:.2f})",
    )


if __name__ == "__main__":
    main()
