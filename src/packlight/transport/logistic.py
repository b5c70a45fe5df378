"""Mixes predictions of yes/no decisions, learning as it goes, in integers only.

Probabilities live as s = ln(p / (1 - p)) in steps of 1/256, where independent evidence adds
up; a mixer weighs several of them and moves its weights down the gradient of the code
length (Mahoney 2005, "Adaptive weighing of context models").
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from packlight.transport.bits import LEAST, ONE, Ints

STEPS = 256
"""Steps of s in one unit of ln(p / (1 - p))."""

EDGE = 10 * STEPS - 1
"""The largest |s|; beyond it a probability is under 1 / 20000."""

_DECAY = 18_374_827_034_086_858_296
"""exp(-1/256) * 2^64."""


@lru_cache(maxsize=1)
def squash_table() -> Ints:
    """Give 65536 / (1 + exp(-s)) for s = -EDGE .. EDGE, with exp by repeated multiplication."""
    powers = [1 << 64]
    for _ in range(EDGE):
        powers.append(powers[-1] * _DECAY >> 64)
    upper = [(ONE << 64) // ((1 << 64) + power) for power in powers]
    whole = [ONE - one for one in reversed(upper[1:])] + upper
    return np.clip(np.array(whole, np.int64), LEAST, ONE - LEAST)


@lru_cache(maxsize=1)
def stretch_table() -> Ints:
    """Give s of p = i / 4096 for i = 0 .. 4095: the inverse of the other table."""
    middle = (np.arange(4096, dtype=np.int64) << 4) + 8
    place = np.searchsorted(squash_table(), middle).astype(np.int64)
    return np.minimum(place, 2 * EDGE) - EDGE


class Mixer:
    """Weights of several models' votes, one set a context; 65536 stands for 1."""

    def __init__(self, sets: int, votes: int) -> None:
        self._weights = np.full((sets, votes), 65536 * 9 // (votes * 7), np.int64)
        self._seen = np.zeros(sets, np.int64)

    def mix(self, chosen: Ints, votes: Ints) -> Ints:
        """Give the weighted sums [n] of votes [votes, n] with the sets `chosen` [n]."""
        total = np.sum(self._weights[chosen].T * votes, axis=0)
        mixed: Ints = np.clip(total >> 16, -EDGE, EDGE)
        return mixed

    def learn(self, chosen: Ints, votes: Ints, mixed: Ints, bits: Ints) -> None:
        """Move the sets towards what would have predicted the decisions `bits` [n] better.

        Several decisions of one set move it together, by their mean: the step grows with
        their number, and shrinks with all that the set has seen.
        """
        error = (bits << 16) - squash_table()[mixed + EDGE]
        gradient = np.zeros_like(self._weights)
        np.add.at(gradient, chosen, ((votes * error) >> 8).T)
        times = np.bincount(chosen, minlength=len(self._seen)).astype(np.int64)
        gain = 3 + np.minimum(times, 512) // 6
        calm = 48 + np.minimum(self._seen // 64, 4000)
        self._weights += gradient * gain[:, None] // (np.maximum(times, 1) * calm)[:, None]
        self._seen += times
