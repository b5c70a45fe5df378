"""How sure a measured share or difference is.

All intervals are two-sided at `confidence`. Score intervals invert a test instead of
taking an estimated error for granted, so that they hold for few samples and when no
sample differs at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Interval = tuple[float, float]
_Floats = NDArray[np.float64]


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a share (Wilson 1927), conservative for the mean of any scores within 0..1.

    successes: how many of `n`, or the sum of the scores. Without samples: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    z, share = _quantile(confidence), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def paired_difference_interval(
    only_first_right: float, only_second_right: float, n: int, *, confidence: float = 0.95
) -> Interval:
    """Interval of p1 - p2, the shares two classifiers get right of the same `n` samples.

    The score interval of Tango (1998, Statistics in Medicine 17:891): all D for which
    |b - c - n D| <= z sqrt(n (2 q + D (1 - D))), with b and c the discordant counts and q the
    constrained maximum-likelihood estimate of the share that only the second gets right.
    Without samples: (-1, 1).
    """
    b, c = only_first_right, only_second_right
    if b < 0 or c < 0 or b + c > n:
        raise ValueError(f"{b} and {c} discordant samples do not fit {n}")
    if n == 0:
        return -1.0, 1.0
    z = _quantile(confidence)

    def score(difference: float) -> float:
        quadratic = -b - c + (2 * n - b + c) * difference
        constant = -c * difference * (1 - difference)
        root = math.sqrt(max(quadratic * quadratic - 8 * n * constant, 0.0))
        only_second = (root - quadratic) / (4 * n)
        variance = n * (2 * only_second + difference * (1 - difference))
        distance = b - c - n * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    middle = (b - c) / n
    return _crossing(score, z, -1.0, middle), _crossing(score, -z, middle, 1.0)


def samples_for_proof(
    drop: float, discordant_rate: float, budget: float, *, confidence: float = 0.95
) -> int | None:
    """About how many samples prove that the drop is within the budget, should it stay the same.

    The least n for which the paired interval of n * rate discordant samples ends within the
    budget. drop: share of samples lost. discordant_rate: share on which the two differ.
    budget: largest drop allowed. Returns None where the drop is not below the budget, or where
    more than 10^9 samples would be needed.
    """
    if drop >= budget:
        return None
    rate = max(discordant_rate, abs(drop))

    def proven(n: int) -> bool:
        lost, won = n * (rate + drop) / 2, n * (rate - drop) / 2
        return paired_difference_interval(lost, won, n, confidence=confidence)[1] <= budget

    most = 1
    while not proven(most):
        most *= 2
        if most > 1_000_000_000:
            return None
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if proven(middle) else (middle, most)
    return most


def bootstrap_interval(
    sums: NDArray[np.floating],
    statistic: Callable[[_Floats], _Floats],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of sums over samples, by resampling the samples.

    Bias-corrected and accelerated (Efron 1987), with the quantiles widened for few samples as
    Hesterberg (2015, section 4.3) does, since percentiles alone are too narrow by about
    sqrt((n - 1) / n) and Student's quantile. Below 20 samples, where resamples cannot reach
    far enough, it also spans the jackknife's Student interval.
    sums: [n, k], what each sample adds to k sums. statistic: maps sums [r, k] to [r] values.
    Raises ValueError for fewer than two samples.
    """
    sums = np.asarray(sums, np.float64)
    n = len(sums)
    if n < 2:
        raise ValueError(f"an interval by resampling needs two samples or more, not {n}")
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, sums.shape[1]))
    for number in range(resamples):
        drawn[number] = np.bincount(rng.integers(n, size=n), minlength=n) @ sums
    values = np.sort(statistic(drawn))
    observed = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if values[0] == values[-1]:
        return min(float(values[0]), observed), max(float(values[-1]), observed)
    below = (np.sum(values < observed) + np.sum(values <= observed)) / (2 * resamples)
    bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    without = statistic(sums.sum(axis=0, keepdims=True) - sums)
    off = without.mean() - without
    power = float(np.sum(off**2)) ** 1.5
    acceleration = float(np.sum(off**3)) / (6 * power) if power > 0 else 0.0
    tail = (1 - confidence) / 2
    wide = float(stdtrit(n - 1, 1 - tail)) * math.sqrt(n / (n - 1))
    ends = []
    for z in (-wide, wide):
        shifted = bias + z
        share = float(ndtr(bias + shifted / max(1 - acceleration * shifted, 1e-6)))
        ends.append(float(np.quantile(values, min(max(share, 0.0), 1.0))))
    low, high = min(ends[0], observed), max(ends[1], observed)
    if n < 20:
        error = math.sqrt(float(np.sum(off**2)) * (n - 1) / n)
        half = float(stdtrit(n - 1, 1 - tail)) * error
        low, high = min(low, observed - half), max(high, observed + half)
    return low, high


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _crossing(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where the falling score meets a level, by halving."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2
