"""Which of the measured candidates is best under a budget: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TIE_LATENCY = 0.04
"""Latencies that differ by less are taken as equal: machines are noisy."""

SLOWER = 1.02
"""A ratio of latencies up to here is no slowdown: so much differs between runs of one file."""

TIE_SIZE = 0.02
"""Sizes that differ by less are taken as equal."""


@dataclass(frozen=True)
class Option:
    """A candidate as numbers. latency: in the units of the budget, or a ratio to the original."""

    size: float
    latency: float
    drop: float
    noise_db: float


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to; None: no limit."""

    drop: float | None = None
    size: float | None = None
    latency: float | None = None


def violation(option: Option, limits: Limits) -> float:
    """How far an option is beyond the limits, relative to each; 0 where it keeps to all."""
    worst = 0.0
    for value, limit in (
        (option.drop, limits.drop),
        (option.size, limits.size),
        (option.latency, limits.latency),
    ):
        if limit is not None and value > limit:
            worst += min((value - limit) / max(limit, 1e-9), 1e9)
    return worst


def choose(
    options: Sequence[Option],
    limits: Limits,
    *,
    smallest: bool = False,
    tie_latency: float = TIE_LATENCY,
) -> int:
    """The number of the best option: fastest, then smallest, then most faithful.

    smallest: smallest, then fastest, then most faithful. tie_latency: latencies that differ by a
    smaller share count as equal. Where the drop has no limit, the most
    faithful: a size or a time was asked for, no more. Ties are wide, since latencies are
    measured. Where no option keeps to the limits, the one that comes nearest is taken.
    Raises ValueError without options.
    """
    if not options:
        raise ValueError("there is nothing to choose from")
    numbered = list(range(len(options)))
    fitting = [i for i in numbered if violation(options[i], limits) == 0]
    if not fitting:
        return min(numbered, key=lambda i: (violation(options[i], limits), options[i].drop))
    if limits.drop is None:
        free = [(options[i].noise_db, -options[i].latency, -options[i].size, i) for i in fitting]
        return max(free)[-1]
    if smallest:
        return min(
            fitting, key=lambda i: (options[i].size, options[i].latency, -options[i].noise_db)
        )
    fastest = min(options[i].latency for i in fitting)
    fast = [i for i in fitting if options[i].latency <= fastest * (1 + tie_latency)]
    least = min(options[i].size for i in fast)
    small = [i for i in fast if options[i].size <= least * (1 + TIE_SIZE)]
    return max(small, key=lambda i: (options[i].noise_db, -options[i].size))
