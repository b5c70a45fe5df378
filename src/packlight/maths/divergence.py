"""How far two outputs lie apart."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from packlight.maths.grids import Array


def signal_to_noise_db(reference: Array, other: Array) -> float:
    """Signal-to-noise ratio in decibels: 10 log10(|y|^2 / |y - y'|^2).

    reference, other: arrays of one shape. Equal arrays give inf, noise on silence -inf.
    """
    xp = array_namespace(reference)
    y, off = _signal_and_noise(reference, other)
    return decibels(float(xp.sum(y * y)), float(xp.sum(off * off)))


def decibels(signal: float, noise: float) -> float:
    """Give 10 log10(signal / noise) of two powers; inf without noise, -inf without signal."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def explained_variance(reference: Array, other: Array) -> float:
    """Share of the reference's variance that the other explains: 1 - |y-y'|^2 / |y-mean(y)|^2.

    The mean is over all elements. A constant reference gives 1 if matched exactly, else 0.
    """
    xp = array_namespace(reference)
    y, off = _signal_and_noise(reference, other)
    spread = y - xp.mean(y)
    return explained(float(xp.sum(spread * spread)), float(xp.sum(off * off)))


def explained(variance: float, noise: float) -> float:
    """Give 1 - noise / variance of two sums of squares; without variance 1 or 0."""
    if variance > 0:
        return 1 - noise / variance
    return 0.0 if noise > 0 else 1.0


def top1_agreement(reference: Array, other: Array) -> float:
    """Share of rows whose largest entry is at the same place. Both: [n, classes], n > 0."""
    xp = array_namespace(reference)
    same = xp.argmax(reference, axis=1) == xp.argmax(other, axis=1)
    return float(xp.count_nonzero(same)) / int(reference.shape[0])


def _signal_and_noise(reference: Array, other: Array) -> tuple[Array, Array]:
    if tuple(reference.shape) != tuple(other.shape):
        raise ValueError(
            f"outputs of shape {tuple(reference.shape)} and {tuple(other.shape)} do not compare"
        )
    xp = array_namespace(reference)
    y = xp.astype(reference, xp.float64)
    return y, y - xp.astype(other, xp.float64)
