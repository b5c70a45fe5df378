"""Channels removed from a CIFAR-10 network without any data: merged, or ordered on made-up samples.

    python benchmarks/datafree.py --real ../shared/real

prints a Markdown table: what is left of the accuracy on all 10,000 test pictures when so many
channels of every residual block's inner layer are gone. "cut": the channels that packlight takes
out, nothing fitted. "folded": similar channels merged by their weights alone, what reads them
added up (`maths/folding.py`). "fitted": closed-form repair on made-up samples (noise with the
spectrum of photographs).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from cases import CIFAR_MEAN, CIFAR_STD
from measuring import open_session

from packlight.graph.coupling.groups import CoupledGroup
from packlight.graph.edit import store_array
from packlight.graph.layers import find_layers, matrix_to_weight, weight_matrix
from packlight.graph.model import Graph, Model, copy_model, load_model, save_model
from packlight.graph.repair import repair
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.rewrite.simplify import simplify
from packlight.graph.thin import gone_of, rows_left
from packlight.graph.walk import constant_of
from packlight.maths.folding import cluster_channels, fold_columns, fold_rows
from packlight.plan.ground import Ground, prepare_ground
from packlight.progress import SILENT
from packlight.runtime import Process
from packlight.samples import Split
from packlight.samples.generate import generate_samples

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--samples", nargs="+", type=int, default=(16, 256), help="made up")
    parser.add_argument("--real", type=Path, default=HERE.parent.parent / "shared" / "real")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".bench" / "datafree")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with np.load(options.real / "cifar10" / "cifar10.npz", allow_pickle=False) as archive:
        test, labels = archive["x_test"], archive["y_test"].reshape(-1)
    test = (test.transpose(0, 3, 1, 2).astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    model = load_model(options.real / "cifar10" / f"{options.model}.onnx")
    print("| made-up samples | channels | right |\n|---|---|---|", flush=True)
    for count in options.samples:
        for label, graph in _ways(model, options.share, count):
            path = options.work / "way.onnx"
            save_model(graph, path, durable=False)
            session = open_session(path, threads=2)
            name = session.get_inputs()[0].name
            parts = np.split(test.astype(np.float32), 40)
            scores = np.concatenate([session.run(None, {name: part})[0] for part in parts])
            print(f"| {count} | {label} | {(scores.argmax(1) == labels).mean():.2%} |", flush=True)
    return 0


def _ways(model: Model, share: float, count: int) -> Iterator[tuple[str, Graph]]:
    graph, _ = simplify(model.ir, check=None)
    samples = generate_samples(model.inputs, count=count)
    split = Split(tuple(range(count)), tuple(range(count)), ())
    with Process() as process:
        ground = prepare_ground(graph, samples, split, model.inputs, process, 0, SILENT)
        keep = {
            group.name: group.size - round(share * group.size)
            for group in ground.groups
            if not group.pinned and len(group.makers) == len(group.readers) == 1
        }
        gone = gone_of(ground.orders, keep)
        cut = remove_channels(graph, gone)
        yield "cut", cut
        yield "cut, fitted", _fitted(ground, cut, gone)
        for centre in ("mean", "medoid"):
            folded, merged = _fold(ground, keep, centre)  # type: ignore[arg-type]
            yield f"folded ({centre})", folded
        yield "folded (medoid), fitted", _fitted(ground, folded, merged)


def _fitted(ground: Ground, thinned: Graph, gone: Mapping[str, list[int]]) -> Graph:
    rows = rows_left(ground.graph, ground.groups, gone)
    fitted, _ = repair(
        ground.graph,
        thinned,
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        process=ground.process,
        rows=rows,
    )
    return fitted


def _fold(
    ground: Ground, keep: Mapping[str, int], centre: Literal["mean", "medoid"]
) -> tuple[Graph, dict[str, list[int]]]:
    """The graph with similar channels merged, and which of them are gone."""
    work = copy_model(ground.graph)
    groups: dict[str, CoupledGroup] = {group.name: group for group in ground.groups}
    layers = {layer.name: layer for layer in find_layers(work)}
    gone = {}
    for name, count in keep.items():
        (maker,), (reader,) = groups[name].makers, groups[name].readers
        first, second = layers[maker.node], layers[reader.node]
        bias = constant_of(first.bias)
        assert bias is not None and first.bias is not None and reader.lines is not None
        rows = np.concatenate([weight_matrix(first), bias.numpy().reshape(-1, 1)], axis=1)
        folding = cluster_channels([rows], count)
        merged = fold_rows(rows, folding, centre=centre).astype(np.float32)
        store_array(first.weight, matrix_to_weight(first, merged[:, :-1]))
        store_array(first.bias, merged[:, -1])
        columns = [tuple(int(line) for line in lines) for lines in reader.lines]
        added = fold_columns(weight_matrix(second), columns, folding).astype(np.float32)
        store_array(second.weight, matrix_to_weight(second, added))
        gone[name] = sorted(set(range(groups[name].size)) - set(folding.kept))
    return remove_channels(work, gone), gone


if __name__ == "__main__":
    sys.exit(main())
