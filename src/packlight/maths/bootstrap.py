"""How sure a ratio of paired measurements is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio with its interval.

    ratio: median of the paired ratios. low, high: ends of its confidence interval;
    (0, inf) where so few pairs allow no statement.
    """

    ratio: float
    low: float
    high: float


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    block: int | None = None,
) -> RatioEstimate:
    """Median of `numerator / denominator` and its confidence interval.

    numerator, denominator: [n], positive, in the order they were measured; pair k was
        measured at the same time. block: pairs that are drawn together; None: sqrt(n).

    The interval is the wider, at each end, of two. The moving-block bootstrap (Künsch,
    1989; Liu and Singh, 1992) draws stretches of neighbours rather than single pairs,
    so that a machine that is slow for a while does not pass for many independent witnesses.
    The interval between order statistics k and n+1-k, with
    P(k <= Binomial(n, 1/2) <= n-k) >= confidence (Thompson, 1936), holds for any
    distribution where few pairs give the bootstrap too little to draw from; it is widened
    by the autocorrelation of which side of the median the pairs lie on.
    Raises ValueError for lengths that differ, no pairs, or values that are not positive.
    """
    above = np.asarray(numerator, np.float64)
    below = np.asarray(denominator, np.float64)
    if above.ndim != 1 or above.shape != below.shape or above.size == 0:
        raise ValueError(
            f"a paired ratio needs two lists of one length, not {above.shape} and {below.shape}"
        )
    if not (
        np.isfinite(above).all() and np.isfinite(below).all() and min(above.min(), below.min()) > 0
    ):
        raise ValueError("a paired ratio needs positive, finite values")
    if not 0 < confidence < 1 or resamples < 1 or (block is not None and block < 1):
        raise ValueError("confidence lies between 0 and 1; resamples and block are positive")
    ratios = above / below
    count = ratios.size
    ratio = float(np.median(ratios))
    rank = _rank_of_median(count, confidence)
    if rank == 0:
        return RatioEstimate(ratio, 0.0, math.inf)
    # Where neighbours resemble each other, the count of those below the median varies more.
    reach = math.sqrt(_inflation(np.sign(ratios - ratio))) * (count / 2 - rank)
    rank = max(1, math.floor(count / 2 - reach))
    ordered = np.sort(ratios)
    length = min(count, block if block is not None else math.isqrt(count))
    generator = np.random.default_rng(seed)
    drawn = -(-count // length)
    starts = generator.integers(0, count, size=(resamples, drawn))
    # Blocks go round the end, so that every pair is drawn equally often (Politis, 1992).
    places = (starts[:, :, None] + np.arange(length)) % count
    medians = np.median(ratios[places.reshape(resamples, -1)[:, :count]], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return RatioEstimate(
        ratio,
        min(float(low), float(ordered[rank - 1])),
        max(float(high), float(ordered[count - rank])),
    )


def _inflation(sides: NDArray[np.float64]) -> float:
    """How much more the sum of `sides` [n] varies than if they were independent, at least 1.

    1 + 2 * (autocorrelations up to the first that is not positive) (Geyer, 1992).
    """
    count = sides.size
    power = float(sides @ sides)
    total = 1.0
    for lag in range(1, count if power > 0 else 1):
        correlation = float(sides[lag:] @ sides[:-lag]) / power
        if correlation <= 0:
            break
        total += 2 * correlation
    return total


def _rank_of_median(count: int, confidence: float) -> int:
    """Largest k with P(Binomial(count, 1/2) < k) <= (1 - confidence) / 2; 0 if there is none."""
    tail = (1 - confidence) / 2
    below = 0.0
    for rank in range(count // 2 + 1):
        # log, since 2^-count vanishes for long measurements
        log_term = (
            math.lgamma(count + 1)
            - math.lgamma(rank + 1)
            - math.lgamma(count - rank + 1)
            - count * math.log(2)
        )
        below += math.exp(log_term)
        if below > tail:
            return rank
    return count // 2
