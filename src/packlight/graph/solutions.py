"""What a choice makes of a layer's weight, and how far off that is at the layer's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.apply import Weights, pack_chosen, round_chosen, stored_as
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.observe import Observations
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.packing import unpack
from packlight.graph.rewrite.single import float_of
from packlight.maths.entropy import ideal_bits
from packlight.maths.grouped import output_error_of_groups
from packlight.maths.moments import Moments
from packlight.maths.rounding import output_error
from packlight.recipe import Choice, Recipe, parse_choice


@dataclass(frozen=True)
class Solution:
    """A layer's weight under a choice.

    error: tr((W - V) H (W - V)^T), the mean squared error at the layer's output, summed over
    its outputs; of the weights alone, and with H = I where no second moments are known.
    bits: ideal code length of the codes, with scales and levels as they are stored.
    """

    error: float
    bits: float


def find_solutions(
    model: ir.Model,
    words: Mapping[str, Iterable[str]],
    recipe: Recipe,
    observations: Observations,
    weights: Weights,
) -> dict[tuple[str, str], Solution]:
    """The solution of each (layer, choice); a recipe says how weights are rounded.

    words: by layer, choices that it can have. weights: what is rounded already; the rest is
    added, so that applying a recipe rounds nothing again.
    """
    found = {}
    for layer in find_layers(model):
        for word in words.get(layer.name, ()):
            found[layer.name, word] = _solution(
                model, layer, parse_choice(word), recipe, observations, weights
            )
    return found


def _solution(
    model: ir.Model,
    layer: Layer,
    choice: Choice,
    recipe: Recipe,
    observations: Observations,
    weights: Weights,
) -> Solution:
    if choice.word == "float32":
        return Solution(0.0, 8.0 * layer.bytes)
    moments = observations.moments.get(layer.name)
    if choice.word == "float16":
        matrix = weight_matrix(layer).astype(np.float32)
        half = matrix.astype(np.float16).astype(np.float32)
        return Solution(_error(layer, matrix, half, moments), 16.0 * layer.parameters)
    integers = choice.compute in ("static", "dynamic") and choice.activation_bits != 4
    if integers and layer.kind != "LSTM":
        one = round_chosen(model, [(layer, choice)], recipe, observations, weights)[layer.name]
        values = one.codes.astype(np.float32) * one.scale[:, None]
        error = _error(layer, weight_matrix(layer), values, moments)
        return Solution(error, ideal_bits(one.codes) + 32.0 * one.scale.size)
    if integers:
        form = parse_choice("weights-int8")
    else:
        form = choice if choice.compute == "blocks" else stored_as(choice) or choice
    packed = pack_chosen(model, [(layer, form)], recipe, observations, weights)
    error = bits = 0.0
    for index in range(len(layer.weights)):
        one_packed = packed[layer.name, index]
        values = unpack(one_packed)
        alpha = float_of(layer.node, "alpha", 1.0) if layer.kind == "Gemm" else 1.0
        if form.compute != "blocks" and alpha not in (0.0, 1.0):
            values = values * np.float32(alpha)
        error += _error(layer, weight_matrix(layer, index), values, None if index else moments)
        bits += ideal_bits(one_packed.codes)
        bits += 32.0 * sum(
            part.size for part in (one_packed.scale, one_packed.levels) if part is not None
        )
    return Solution(error, bits)


def _error(
    layer: Layer, matrix: NDArray[np.float32], values: NDArray[np.float32], moments: Moments | None
) -> float:
    if moments is None or not moments.count:
        return float(np.square(matrix.astype(np.float64) - values).sum())
    order = kernel_order(layer)
    if moments.grouped:
        return output_error_of_groups(matrix[:, order], values[:, order], moments.second)
    return output_error(matrix[:, order], values[:, order], moments.second)
