"""Smoothing whose scales are searched for: what each group gains most from, or none at all.

The error of rounded weights, and of rounded activations, is predicted for several strengths of
two rules (SmoothQuant, Xiao et al. 2023, equation 4; AWQ, Lin et al. 2023, equation 5); see
`packlight.maths.balance.search_smoothing`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer, find_layers
from packlight.graph.observe import Observations
from packlight.graph.rewrite.smooth import find_groups, weight_of
from packlight.graph.rewrite.weights import sum_moments, weight_grid
from packlight.maths.balance import search_smoothing
from packlight.maths.grids import IntegerGrid
from packlight.maths.histograms import Histogram
from packlight.maths.moments import Moments
from packlight.recipe import Recipe, parse_choice

STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""The error is flat around the best strength: finer steps cost time and gain little."""

PRODUCTS = 1 << 28
"""Multiplications for one candidate: of a larger group some outputs stand for all."""

FEWEST_OUTPUTS = 64

GAIN = 0.95
"""The predicted error must fall to this share: other scales than 1 are an estimate too."""

BLOCK = 32


@dataclass(frozen=True)
class Aim:
    """What scales are searched for: how weights and activations will be rounded.

    bits: of weights, 4 or 8. blocks: whether they have a scale a block of 32, or one a channel.
    activation_bits: of activations, None where they stay in float.
    """

    bits: int
    blocks: bool
    activation_bits: int | None


def find_aim(recipe: Recipe, layers: Sequence[Layer]) -> Aim | None:
    """How a recipe rounds most weights of its matrix products; None where it rounds none.

    One for the whole recipe: layers of one group may differ, and recipes that differ in a few
    layers shall start from the same graph.
    """
    counts: Counter[Aim] = Counter()
    for layer in layers:
        choice = parse_choice(recipe.choice(layer.name))
        if layer.kind not in ("Gemm", "MatMul") or choice.weights.startswith("float"):
            continue
        aim = Aim(
            8 if choice.weights == "int8" else 4,
            choice.compute == "blocks",
            choice.activation_bits if choice.activation_bits < 32 else None,
        )
        counts[aim] += layer.parameters
    return counts.most_common(1)[0][0] if counts else None


def search_scales(
    model: ir.Model, observations: Observations, aim: Aim
) -> dict[str, NDArray[np.float64]]:
    """Scales [in] by the name of the group, for those that gain by scales.

    observations: of the same model; groups without second moments are left out.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    found = {}
    for group in find_groups(model):
        seen = {
            name: observations.moments[name]
            for name in group.layers
            if name in observations.moments and observations.moments[name].count > 0
        }
        moments = sum_moments(seen.values())
        if moments is None:
            continue
        histograms = _histograms([layers[name] for name in group.layers], observations.histograms)
        scales = _search_group(
            [weight_of(layers[name]) for name in group.layers],
            moments,
            reaches(moments, histograms),
            aim,
        )
        if scales is not None:
            found[group.name] = scales
    return found


def reaches(moments: Moments, histograms: Sequence[Histogram]) -> NDArray[np.float64]:
    """How low and how high each channel reaches [2, in], as far as is known of it.

    Every channel is taken to reach as many standard deviations as it takes for the widest one
    to reach what was seen of the whole tensor; 4 where that is not known.
    """
    mean = np.asarray(moments.mean, np.float64)
    spread = np.sqrt(np.clip(np.diag(moments.second) - mean * mean, 0, None))
    if not histograms or not np.any(spread > 0):
        return np.stack([mean - 4 * spread, mean + 4 * spread])
    low = min(one.minimum for one in histograms)
    high = max(one.maximum for one in histograms)
    alive = spread > 0
    widths = [np.min((high - mean[alive]) / spread[alive])]
    widths.append(np.min((mean[alive] - low) / spread[alive]))
    width = max(*widths, 1.0)
    return np.stack(
        [np.maximum(mean - width * spread, low), np.minimum(mean + width * spread, high)]
    )


def _search_group(
    weights: list[NDArray[np.float64]],
    moments: Moments,
    ranges: NDArray[np.float64],
    aim: Aim,
) -> NDArray[np.float64] | None:
    stacked = np.concatenate(weights)
    outputs, inputs = stacked.shape
    most = max(PRODUCTS // inputs**2, FEWEST_OUTPUTS)
    if outputs > most:
        stacked = stacked[np.linspace(0, outputs - 1, most).astype(int)]
    blocks = aim.blocks and inputs % BLOCK == 0
    # A block has a zero point of its own, a channel has none.
    grid = IntegerGrid(aim.bits, signed=False, symmetric=False) if blocks else weight_grid(aim.bits)
    found = search_smoothing(
        [stacked],
        np.asarray(moments.second),
        ranges,
        grid,
        block_shape=(1, BLOCK) if blocks else (1, -1),
        activation_bits=aim.activation_bits,
        strengths=STRENGTHS,
    )
    if found.error >= GAIN * found.error_without:
        return None
    return np.asarray(found.scales, np.float64)


def _histograms(layers: Sequence[Layer], known: Mapping[str, Histogram]) -> list[Histogram]:
    """What was seen of the tensors that these layers read."""
    names = dict.fromkeys(
        str(layer.node.inputs[0].name) for layer in layers if layer.node.inputs[0]
    )
    return [known[name] for name in names if name in known and known[name].count]
