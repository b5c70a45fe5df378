"""What a loss of quality would buy, guessed from the weights alone, before anything is run.

Rounding the weight W of a layer to Q adds noise of e = |W - Q|^2 / |W|^2 times the power of its
signal to what it gives. Noises of layers add up, and the answers that they change are in
proportion to the root of the sum: loss = K sqrt(sum of e). Which K differs from network to network
and with how well is rounded, so that this is no more than a guess; the run measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer, weight_matrix
from packlight.graph.rewrite.packing import BLOCK
from packlight.graph.sizes import packed_bits, stored_bytes
from packlight.plan.exchange import Cost
from packlight.plan.goal import Goal, candidate_words, runs_on
from packlight.plan.knapsack import solve_knapsack
from packlight.recipe import Choice, parse_choice
from packlight.targets import Target

LOSS_OF_NOISE = 0.03
"""K: the loss of top-1 agreement where the summed noise is as strong as the signal of a layer.
Measured on resnet20 (CIFAR-10): 0.019 to 0.045 for weights of 2 to 6 bits; 0.01 on resnet32."""

ACTIVATIONS = 1.5e-3
"""Noise of a layer's inputs in 8 bits, in shares of the signal, likewise."""

_ROWS = 64
"""Rows of a weight that speak for all of them."""

_CODED = math.pi * math.e / 6
"""An entropy coded uniform quantizer of rate R leaves this times 2^(-2 R) of a normal's variance
(Gish and Pierce, 1968)."""


def guess_size(
    layers: Sequence[Layer],
    target: Target,
    goal: Goal,
    max_drop: float,
    *,
    rest: int,
    has_data: bool,
) -> int:
    """Bytes of the file (of the packed one where the goal is a download) for a loss of quality.

    rest: bytes of what is no layer's weight. has_data: activations' ranges can be measured.
    """
    words, costs = candidate_words(goal.wish), []
    for layer in layers:
        possible = ["float32"]
        possible += [
            word
            for word in words
            if word != "float32"
            and runs_on(layer, word, target)
            and not why_not(layer, word)
            and (has_data or parse_choice(word).compute != "static")
        ]
        costs.append(
            [
                Cost(noise, _bytes(layer, word, goal), 0.0)
                for word, noise in weigh_noise(layer, possible).items()
            ]
        )
    found = solve_knapsack(
        costs, minimise="bytes", max_loss=(max_drop / LOSS_OF_NOISE) ** 2, seconds=1.0, gap=1e-2
    )
    return rest + math.ceil(found.bytes if found else sum(layer.bytes for layer in layers))


def weigh_noise(layer: Layer, words: Sequence[str]) -> dict[str, float]:
    """|W - Q|^2 / |W|^2 by choice, where errors are anywhere within a step, and inputs' noise."""
    matrices = [weight_matrix(layer, index) for index in range(len(layer.weights))]
    parts = [one[:: max(len(one) // _ROWS, 1)].astype(np.float64) for one in matrices]
    power = max(sum(float(np.square(part).sum()) for part in parts), 1e-30)
    found = {}
    for word in words:
        choice = parse_choice(word)
        lost = 0.0 if word == "float32" else sum(_lost(part, choice) for part in parts)
        found[word] = lost / power + (ACTIVATIONS if choice.activation_bits <= 8 else 0.0)
    return found


def _lost(matrix: NDArray[np.float64], choice: Choice) -> float:
    """|W - Q|^2 to expect of a weight [rows, in]."""
    power = float(np.square(matrix).sum())
    if choice.weights == "coded":
        return float(_CODED * 4.0**-choice.bits * power)
    if choice.weights == "float16":
        return 4.0**-12 * power
    blocks = matrix
    if choice.compute == "blocks":
        blocks = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % BLOCK))).reshape(-1, BLOCK)
    step = 2 * np.abs(blocks).max(axis=1, initial=0.0) / (2.0 ** int(choice.weights[3:]) - 2)
    return float(np.square(step).sum() * blocks.shape[1] / 12)


def _bytes(layer: Layer, word: str, goal: Goal) -> float:
    return packed_bits(layer, word) / 8 if goal.wish == "download" else stored_bytes(layer, word)
