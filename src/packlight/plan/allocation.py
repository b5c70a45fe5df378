"""What goes where: a knapsack over parts of a model, and its losses corrected by measurements.

A part is a residual branch with the groups of channels and the layers inside it, or a group of
channels or a layer that lies in none. For each part one option is taken, with x[p, o] = 1:

    minimise    sum loss[p, o] x[p, o]
    subject to  sum_o x[p, o] = 1                  for every part p
                sum share[p, o] x[p, o] >= share   (of the multiplications, or of the weights)

or the most time saved within a loss.

Losses of parts do not simply add up. Of whole proposals whose loss L_i was measured, a factor
c[p] for each part is learnt that explains them, near the one s that they have in common (ranks
have another s, and of each part a factor of their own: they are missed otherwise than what is
gone):

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
    """What may be done to one part. loss: noise power at the output. share, time: saved."""

    cuts: Cuts
    loss: float
    share: float
    time: float


Part = tuple[Option, ...]
"""Its options; the first is to leave it as it is, which costs and saves nothing."""


@dataclass(frozen=True)
class Allocation:
    """One option for each part, by number. share: what is saved, as counted."""

    choices: tuple[int, ...]
    cuts: Cuts
    loss: float
    share: float
    time: float


def combine(groups: Sequence[Part], branch: Option | None, layers: Sequence[Part] = ()) -> Part:
    """The options of a branch: of each group of channels inside one, or of each layer, or all.

    Groups and layers are not combined: a thinner layer has less to gain from a rank. Where they
    are too many their options are thinned out, the smallest cuts first.
    """
    ranks = _products(layers)[1:] if layers else ()
    return (*_products(groups), *ranks, *([] if branch is None else [branch]))


def _products(parts: Sequence[Part]) -> list[Option]:
    """One option of each, in every combination; the first is nothing."""
    rows = [list(options) for options in parts]
    while np.prod([len(row) for row in rows], dtype=float) > MOST_OPTIONS:
        longest = max(rows, key=len)
        del longest[1]
    found = []
    for chosen in itertools.product(*rows):
        cuts = Cuts()
        for option in chosen:
            cuts = cuts | option.cuts
        sums = (sum(getattr(o, name) for o in chosen) for name in ("loss", "share", "time"))
        found.append(Option(cuts, *sums))
    return found


def allocate(
    parts: Sequence[Part],
    share: float,
    saved: Callable[[Cuts], float],
    *,
    within: float | None = None,
    forbidden: Sequence[tuple[int, ...]] = (),
    allowed: Callable[[Cuts], bool] = lambda _: True,
) -> Allocation | None:
    """The options that save this share at the least loss.

    saved: the share that cuts save, as counted on the graph: a layer between two parts saves
    less than both promise, and the next budget is corrected by that. within: the largest loss, of
    which then the fastest is wanted. forbidden: choices that are not to be proposed. allowed:
    whether an option may be taken. None where there is no such allocation.
    """
    places = [[k for k, one in enumerate(row) if allowed(one.cuts)] for row in parts]
    rows = [[row[k] for k in place] for row, place in zip(parts, places, strict=True)]
    costs = [[Cost(one.loss, -one.share, -one.time) for one in options] for options in rows]
    most = sum(max((one.share for one in options), default=0.0) for options in rows)
    barred = [
        tuple(place.index(choice) for place, choice in zip(places, choices, strict=True))
        for choices in forbidden
        if all(choice in place for place, choice in zip(places, choices, strict=True))
    ]
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
            forbidden=barred,
        )
        if found is None:
            break
        choices = tuple(place[k] for place, k in zip(places, found.choices, strict=True))
        cuts = Cuts()
        for options, choice in zip(parts, choices, strict=True):
            cuts = cuts | options[choice].cuts
        reached = saved(cuts)
        here = Allocation(choices, cuts, found.loss, reached, -found.ms)
        if reached >= share - CLOSE and (best is None or rank(here) < rank(best)):
            best = here
        if abs(reached - share) < CLOSE or aim >= most:
            break
        aim += share - reached
    return best


def spread_evenly(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with losses under which each gives up the same share of what it can save.

    With loss = share^2 / most, what the next bit costs is equal where share / most is.
    """
    return tuple(
        tuple(
            replace(one, loss=one.share**2 / max(max(other.share for other in options), 1e-12))
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
    each = np.zeros((len(seen), 2, len(parts)))
    for row, (choices, _) in zip(each, seen, strict=True):
        for number, (options, choice) in enumerate(zip(parts, choices, strict=True)):
            row[_kind(options[choice]), number] = options[choice].loss
    wanted = np.array([loss for _, loss in seen])
    usable = (each.sum(axis=(1, 2)) > 0) & (wanted > 0)
    if not usable.any():
        return tuple(parts)
    each, wanted = each[usable], wanted[usable]
    common = _common(each.sum(axis=2), wanted)
    table = each * common[:, None] / wanted[:, None, None]
    factors = common[:, None] * _fit(table.reshape(len(wanted), -1)).reshape(2, -1)
    return tuple(
        tuple(replace(one, loss=one.loss * float(factors[_kind(one), number])) for one in options)
        for number, options in enumerate(parts)
    )


def _common(sums: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """What losses of each kind have to be multiplied by, mostly. sums: [allocations, kinds]."""
    ratios = wanted / sums.sum(axis=1)
    mostly = [sums[:, kind] >= sums.sum(axis=1) / 2 for kind in range(sums.shape[1])]
    return np.array([np.median(ratios[rows] if rows.any() else ratios) for rows in mostly])


def _kind(one: Option) -> int:
    """1 for ranks, 0 for what is gone: each has its own factor."""
    return int(bool(one.cuts.ranks))


def _fit(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors near 1 under which every row adds up to 1."""
    count = table.shape[1]
    rows = np.vstack([table, np.sqrt(RIDGE) * np.eye(count)])
    right = np.concatenate([np.ones(len(table)), np.full(count, np.sqrt(RIDGE))])
    result = lsq_linear(rows, right, bounds=(LEAST_FACTOR, np.inf))
    return np.asarray(result.x, np.float64)
