"""What goes where: a knapsack over parts of a model, and its losses corrected by measurements.

A part is a residual branch with the groups of channels inside it, or a group of channels that
lies in none. For each part one option is taken, with x[p, o] = 1:

    minimise    sum loss[p, o] x[p, o]
    subject to  sum_o x[p, o] = 1                  for every part p
                sum macs[p, o] x[p, o] >= share    (of the multiply-accumulates)

or the most time saved within a loss.

Losses of parts do not simply add up. Of whole proposals whose loss L_i was measured, a factor
c[p] for each part is learnt that explains them, near the one s that they have in common:

    minimise    sum_i (sum_p c[p] s loss[p, o_i(p)] / L_i - 1)^2 + ridge sum_p (c[p] - 1)^2

(ridge regression: Hoerl and Kennard 1970; c[p] from `LEAST_FACTOR`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from packlight.plan.cuts import Cuts
from packlight.plan.knapsack import Cost, solve_knapsack

CORRECTIONS = 8
CLOSE = 0.01
"""So near to the share that was asked for an answer need come."""

MOST_OPTIONS = 64
"""Of one part: groups inside a branch multiply theirs."""

RIDGE = 0.05
LEAST_FACTOR = 0.1


@dataclass(frozen=True)
class Option:
    """What may be done to one part. loss: noise power at the output. macs, time: shares saved."""

    cuts: Cuts
    loss: float
    macs: float
    time: float


Part = tuple[Option, ...]
"""Its options; the first is to leave it as it is, which costs and saves nothing."""


@dataclass(frozen=True)
class Allocation:
    """One option for each part, by number. macs: the share that is saved, as counted."""

    choices: tuple[int, ...]
    cuts: Cuts
    loss: float
    macs: float
    time: float


def combine(groups: Sequence[Part], branch: Option | None) -> Part:
    """The options of a branch with groups of channels inside: of each group one, or all of it.

    Where they are too many the groups' options are thinned out, the smallest cuts first.
    """
    rows = [list(options) for options in groups]
    while np.prod([len(row) for row in rows], dtype=float) > MOST_OPTIONS:
        longest = max(rows, key=len)
        del longest[1]
    found = []
    for chosen in itertools.product(*rows):
        cuts = Cuts()
        for option in chosen:
            cuts = cuts | option.cuts
        sums = (sum(getattr(o, name) for o in chosen) for name in ("loss", "macs", "time"))
        found.append(Option(cuts, *sums))
    return (*found, *([] if branch is None else [branch]))


def allocate(
    parts: Sequence[Part],
    share: float,
    saved: Callable[[Cuts], float],
    *,
    within: float | None = None,
    forbidden: Sequence[tuple[int, ...]] = (),
) -> Allocation | None:
    """The options that save this share of the multiply-accumulates at the least loss.

    saved: the share that cuts save, as counted on the graph: a layer between two parts saves
    less than both promise, and the next budget is corrected by that. within: the largest loss, of
    which then the fastest is wanted. forbidden: choices that are not to be proposed. None where
    there is no such allocation.
    """
    costs = [[Cost(one.loss, -one.macs, -one.time) for one in options] for options in parts]
    most = sum(max((one.macs for one in options), default=0.0) for options in parts)
    aim = share
    best: Allocation | None = None

    def rank(one: Allocation) -> tuple[float, float]:
        return (one.loss, -one.time) if within is None else (-one.time, one.loss)

    for _ in range(CORRECTIONS):
        found = solve_knapsack(
            costs,
            minimise="loss" if within is None else "ms",
            max_loss=within,
            max_bytes=-min(aim, most * (1 - 1e-9)),
            forbidden=forbidden,
        )
        if found is None:
            break
        cuts = Cuts()
        for options, choice in zip(parts, found.choices, strict=True):
            cuts = cuts | options[choice].cuts
        macs = saved(cuts)
        here = Allocation(found.choices, cuts, found.loss, macs, -found.ms)
        if macs >= share - CLOSE and (best is None or rank(here) < rank(best)):
            best = here
        if abs(macs - share) < CLOSE or aim >= most:
            break
        aim += share - macs
    return best


def spread_evenly(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with losses under which each gives up the same share of what it can save.

    With loss = macs^2 / most, what the next bit costs is equal where macs / most is.
    """
    return tuple(
        tuple(
            replace(one, loss=one.macs**2 / max(max(other.macs for other in options), 1e-12))
            for one in options
        )
        for options in parts
    )


def learn_losses(
    parts: Sequence[Part], seen: Sequence[tuple[tuple[int, ...], float]]
) -> tuple[Part, ...]:
    """The parts with losses that explain what was measured of whole allocations.

    seen: (choices, noise power measured). Without any the parts are as they were.
    """
    table = np.array(
        [
            [options[choice].loss for options, choice in zip(parts, choices, strict=True)]
            for choices, _ in seen
        ]
    ).reshape(len(seen), len(parts))
    wanted = np.array([loss for _, loss in seen])
    usable = (table.sum(axis=1) > 0) & (wanted > 0)
    if not usable.any():
        return tuple(parts)
    table, wanted = table[usable], wanted[usable]
    common = float(np.median(wanted / table.sum(axis=1)))
    factors = common * _fit(table * common / wanted[:, None])
    return tuple(
        tuple(replace(one, loss=one.loss * float(factor)) for one in options)
        for options, factor in zip(parts, factors, strict=True)
    )


def _fit(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors near 1 under which every row adds up to 1."""
    count = table.shape[1]
    rows = np.vstack([table, np.sqrt(RIDGE) * np.eye(count)])
    right = np.concatenate([np.ones(len(table)), np.full(count, np.sqrt(RIDGE))])
    result = lsq_linear(rows, right, bounds=(LEAST_FACTOR, np.inf))
    return np.asarray(result.x, np.float64)
