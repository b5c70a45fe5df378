"""Which channels go by the usual scores, to compare with packlight's own layer problem.

Each score sees the same graph, the same pictures without labels, and as many channels a group:
only the choice differs, and the repair that follows is the same.

- magnitude: the L2 norm of what makes a channel (Li et al. 2016);
- activation: |w| sqrt(E x^2) over what reads it, summed (after Wanda, Sun et al. 2023);
- gradient: (sum of w dL/dw)^2 of what makes it (Molchanov et al. 2019), L the cross-entropy to the
  network's own answers, since there are no labels;
- removal: what the layers that read it lose, nothing fitted again: tr(W_c H W_c^T);
- layer problem: what they lose once they are fitted again, one channel after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

import packlight
from packlight.graph.coupling.groups import CoupledGroup
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.model import Graph
from packlight.graph.patches import in_plain_order
from packlight.graph.repair import repair
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of, rows_left
from packlight.maths.importance import (
    score_by_activation,
    score_by_gradient,
    score_channels,
    score_rows,
)
from packlight.maths.readers import ChannelReader
from packlight.plan.ground import Ground, prepare_ground
from packlight.progress import SILENT
from packlight.runtime import Process
from packlight.samples import Samples, Split
from packlight.tensors import TensorSpec

BATCHES = 32
PICTURES = 32

Score = Callable[[Ground, CoupledGroup], NDArray[np.float64]]


SCORES = ("magnitude", "activation", "gradient", "removal", "layer problem")


def thin_by_scores(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: tuple[TensorSpec, ...],
    keep: Mapping[str, int],
    *,
    seed: int,
) -> Iterator[tuple[str, Graph, float]]:
    """By each score the graph in which each group keeps so many channels, fitted; and seconds."""
    with Process() as process:
        ground = prepare_ground(graph, samples, split, inputs, process, seed, SILENT)
        for score in SCORES:
            began = time.perf_counter()
            gone = gone_by(score, ground, keep)
            fitted, _ = repair(
                graph,
                remove_channels(graph, gone),
                samples,
                split.calibration,
                inputs,
                process=process,
                rows=rows_left(graph, ground.groups, gone),
                seed=seed,
            )
            yield score, fitted, time.perf_counter() - began


def gone_by(score: str, ground: Ground, keep: Mapping[str, int]) -> dict[str, list[int]]:
    """The channels that go, by group, so that each keeps so many: those of the least score."""
    if score == "layer problem":
        return gone_of(ground.orders, keep)
    groups = {group.name: group for group in ground.groups}
    rate: Score
    if score == "gradient":
        gradients = _gradients(ground)

        def rate(ground: Ground, group: CoupledGroup) -> NDArray[np.float64]:
            name = _maker(ground.graph, group).weight.name
            values, slopes = gradients[str(name)]
            return np.asarray(score_by_gradient(values, slopes))
    else:
        rate = {"magnitude": _magnitude, "activation": _activation, "removal": _removal}[score]
    gone = {}
    for name, count in keep.items():
        scores = rate(ground, groups[name])
        gone[name] = sorted(
            int(c) for c in np.argsort(scores, kind="stable")[: len(scores) - count]
        )
    return gone


def _maker(graph: Graph, group: CoupledGroup) -> Layer:
    (layer,) = (one for one in find_layers(graph) if one.name == group.makers[0].node)
    return layer


def _readers(ground: Ground, group: CoupledGroup) -> list[ChannelReader]:
    layers = {layer.name: layer for layer in find_layers(ground.graph)}
    found = []
    for member in group.readers:
        layer = layers[member.node]
        plain = in_plain_order(layer, ground.moments[layer.name])
        assert member.lines is not None
        columns = [tuple(int(line) for line in lines) for lines in member.lines]
        found.append(ChannelReader(weight_matrix(layer), plain.second, columns))
    return found


def _magnitude(ground: Ground, group: CoupledGroup) -> NDArray[np.float64]:
    return np.asarray(score_rows(weight_matrix(_maker(ground.graph, group)), norm=2))


def _activation(ground: Ground, group: CoupledGroup) -> NDArray[np.float64]:
    total = np.zeros(group.size)
    for reader in _readers(ground, group):
        each = score_by_activation(reader.weight, reader.second_moments).sum(axis=0)
        total += [each[list(columns)].sum() for columns in reader.columns]
    return total


def _removal(ground: Ground, group: CoupledGroup) -> NDArray[np.float64]:
    return np.asarray(score_channels(_readers(ground, group)))


def _gradients(ground: Ground) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Of each weight of the graph, by its ONNX name, the values and the slopes [batches, ...]."""
    import torch  # noqa: TID251

    module = packlight.to_torch(ground.graph)
    weights = module.parameters_by_name
    slopes: dict[str, list[NDArray[np.float32]]] = {name: [] for name in weights}
    shown = ground.split.calibration[: BATCHES * PICTURES]
    for start in range(0, len(shown), PICTURES):
        rows = shown[start : start + PICTURES]
        (pictures,) = ground.samples.read(rows).values()
        module.zero_grad()
        scores = module(torch.from_numpy(np.ascontiguousarray(pictures)))
        torch.nn.functional.cross_entropy(scores, scores.detach().argmax(1)).backward()
        for name, parameter in weights.items():
            if parameter.grad is not None:
                slopes[name].append(parameter.grad.numpy().copy())
    return {
        name: (weights[name].detach().numpy(), np.stack(found))
        for name, found in slopes.items()
        if found
    }
