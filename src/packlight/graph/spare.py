"""Finds what layers carry for nothing: outputs that are dead or doubled, directions hardly used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.walk import constant_of
from packlight.maths.spare import effective_rank, rows_alike, rows_of_nothing

RedundancyKind = Literal[
    "duplicate tensors",
    "constant tensor",
    "dead nodes",
    "unused inputs",
    "unused initializers",
    "foldable BatchNorm",
    "float64 weights",
    "training leftovers",
    "dead channels",
    "near-duplicate channels",
    "low effective rank",
    "already quantized",
    "custom operators",
]

LEAST_OUTPUTS = 8
"""Layers with fewer outputs, or inputs, say nothing about rank."""

MOST_OUTPUTS = 2048
"""Singular values of larger matrices take too long for a look."""

LOW_RANK = 0.5
"""Below this share of what it could be, an effective rank is worth a line."""


@dataclass(frozen=True)
class Redundancy:
    """Something that looks superfluous, or worth knowing before compressing.

    names: tensors, nodes or inputs concerned. detail: one sentence. bytes: what leaving it
    out would save (0: nothing, or not known).
    """

    kind: RedundancyKind
    names: tuple[str, ...]
    detail: str
    bytes: int = 0


def find_spare(model: ir.Model) -> tuple[Redundancy, ...]:
    """Dead and doubled outputs of layers, and layers of low effective rank, by kind."""
    dead, double, low = [], [], []
    for layer in find_layers(model):
        if layer.kind not in ("Conv", "Gemm", "MatMul"):
            continue
        matrix = weight_matrix(layer)
        outputs, inputs = matrix.shape
        each = layer.bytes // max(outputs, 1)
        if not LEAST_OUTPUTS <= outputs <= MOST_OUTPUTS or layer.shared:
            continue
        gone = rows_of_nothing(matrix)
        if gone:
            text = f"{len(gone)} of {outputs} outputs have weights of 0 only."
            dead.append(Redundancy("dead channels", (layer.name,), text, each * len(gone)))
        if layer.groups == 1:
            twins = rows_alike(_with_bias(layer, matrix))
            if twins:
                text = (
                    f"{len(twins)} of {outputs} outputs are others times a factor, or nearly so "
                    "(cosine above 0.99)."
                )
                double.append(
                    Redundancy("near-duplicate channels", (layer.name,), text, each * len(twins))
                )
            most = min(outputs, inputs)
            if most < LEAST_OUTPUTS:
                continue
            rank = effective_rank(matrix)
            if rank < LOW_RANK * most:
                text = f"Its weights use about {rank:.0f} of {most} directions (effective rank)."
                low.append(Redundancy("low effective rank", (layer.name,), text))
    return (*dead, *double, *low)


def _with_bias(layer: Layer, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows with their bias: behind an activation only those that are alike in it too are."""
    bias = constant_of(layer.bias)
    if bias is None or bias.size != len(matrix):
        return matrix
    column = bias.numpy().astype(matrix.dtype).reshape(-1, 1)
    return np.concatenate([matrix, column], axis=1)
