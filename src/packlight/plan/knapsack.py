"""One candidate for every layer, under budgets: a multiple-choice knapsack.

With x[l, c] = 1 where layer l takes candidate c, s[l] the sum of those x[l, c] that compute in
integers, and d[b] = 1 where just one of the two layers of border b does,

    minimise    sum loss[l, c] x[l, c]                          (or bytes, or milliseconds)
    subject to  sum_c x[l, c] = 1                               for every layer l
                sum bytes[l, c] x[l, c] <= max_bytes            (and likewise loss)
                sum ms[l, c] x[l, c] + sum_b ms[b] d[b] <= max_ms
                |s[first] - s[second]| <= d[b]                  for every border b

solved by HiGHS (Huangfu and Hall, 2018) through `scipy.optimize.milp`; the problem is that of
Sinha and Zoltners (1979). Numbers in, numbers out: nothing here knows what a layer is.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from packlight.plan.exchange import (
    ROUNDING,
    Assignment,
    Border,
    Cost,
    Floats,
    Ints,
    Problem,
    Resource,
    choices_of,
    excess,
    improve,
    rank,
    share_of,
    start_greedily,
    state_assignment,
    state_problem,
    totals,
)

__all__ = [
    "Assignment",
    "Border",
    "Cost",
    "Resource",
    "frontier",
    "lower_hull",
    "nearest_feasible",
    "solve_knapsack",
]

_SCALE = 1000.0
"""A budget as the solver sees it: it keeps rows to within 1e-6, so to 1e-9 of the budget."""

_TIE = 1e-6
"""Weight of what breaks ties, in shares of the objective: far below what anyone measures."""

_RETRIES = 8
"""So often is a solution forbidden that is beyond a budget by no more than the tolerance."""


def solve_knapsack(
    costs: Sequence[Sequence[Cost]],
    *,
    minimise: Resource,
    max_loss: float | None = None,
    max_bytes: float | None = None,
    max_ms: float | None = None,
    borders: Sequence[Border] = (),
    integer: Sequence[Sequence[bool]] | None = None,
    forbidden: Collection[tuple[int, ...]] = (),
    seconds: float = 10.0,
    gap: float = 1e-4,
) -> Assignment | None:
    """The assignment with the least of one resource that keeps to the budgets of the others.

    costs: [layers][candidates]. integer: likewise, whether it computes in integers (borders
        need it). forbidden: choices that are not to be proposed again. seconds, gap: where the
        solver may stop, the gap as a share of how far the answer is from the cheapest.
    Among equals less loss, fewer bytes, fewer milliseconds; never worse than exchanging one
    layer at a time. The same numbers give the same answer, unless the time ends first.
    None where no assignment keeps to the budgets, or none was found in time.
    Raises ValueError for numbers that make no problem.
    """
    problem = state_problem(
        costs,
        minimise=minimise,
        limits=_limits(max_loss, max_bytes, max_ms),
        borders=borders,
        integer=integer,
        forbidden=forbidden,
    )
    if not forbidden:  # with one, the best of the rest may hold a candidate that is beaten
        problem = _pruned(problem, lower_hull(costs, integer=integer if borders else None))
    start = start_greedily(problem) if problem.layers else np.zeros(0, np.int64)
    best = None if start is None else improve(problem, start)
    asked = problem
    deadline = time.monotonic() + seconds
    for attempt in range(_RETRIES + 1 if problem.layers else 0):
        left = deadline - time.monotonic()
        # At last a hair inside the budgets, where the solver's tolerance does not reach beyond.
        margin = 2e-9 if attempt == _RETRIES else 0.0
        found = _solve(asked, best, seconds=left, gap=gap, margin=margin) if left > 0 else None
        if found is None:
            break
        if excess(problem, totals(problem, found)) == 0:
            both = [improve(problem, found), *([] if best is None else [best])]
            best = min(both, key=lambda taken: rank(problem, taken))
            break
        asked = replace(asked, forbidden=asked.forbidden | {choices_of(asked, found)})
    if best is None or choices_of(problem, best) in problem.forbidden:
        return None
    return state_assignment(problem, best)


def nearest_feasible(
    costs: Sequence[Sequence[Cost]],
    *,
    max_loss: float | None = None,
    max_bytes: float | None = None,
    max_ms: float | None = None,
    borders: Sequence[Border] = (),
    integer: Sequence[Sequence[bool]] | None = None,
    forbidden: Collection[tuple[int, ...]] = (),
    seconds: float = 10.0,
    gap: float = 1e-4,
) -> Assignment | None:
    """The assignment that is least beyond the budgets, each excess as a share of its budget.

    Among equals that with the least loss. None where a layer has no candidate that can be
    taken, or all assignments are forbidden.
    """
    problem = state_problem(
        costs,
        minimise="loss",
        limits=_limits(max_loss, max_bytes, max_ms),
        borders=borders,
        integer=integer,
        forbidden=forbidden,
    )
    found: Ints | None = np.zeros(0, np.int64)
    if problem.layers:
        found = _solve(problem, None, seconds=seconds, gap=gap, margin=0.0, elastic=True)
    if found is None or choices_of(problem, found) in problem.forbidden:
        return None
    return state_assignment(problem, improve(problem, found))


def lower_hull(
    costs: Sequence[Sequence[Cost]], *, integer: Sequence[Sequence[bool]] | None = None
) -> tuple[tuple[int, ...], ...]:
    """The candidates of each layer, by index, that no other of that layer beats.

    One beats another with no more of any resource and, where `integer` is given, on the same
    side of a border. Of equals the first is kept; those that cannot be taken are not.
    """
    kept = []
    for number, layer in enumerate(costs):
        numbers = np.array([[c.loss, c.bytes, c.ms] for c in layer], np.float64).reshape(-1, 3)
        kind = np.array(integer[number] if integer else np.zeros(len(layer)), np.bool_)
        able = np.logical_and.reduce(np.isfinite(numbers), axis=1)
        below = np.logical_and.reduce(numbers[:, None] <= numbers[None], axis=2)
        below &= kind[:, None] == kind[None]
        first = np.arange(len(layer))
        beats = below & (~below.T | (first[:, None] < first[None])) & able[:, None]
        kept.append(tuple(int(i) for i in np.flatnonzero(able & ~beats.any(axis=0))))
    return tuple(kept)


def frontier(
    costs: Sequence[Sequence[Cost]],
    *,
    across: Resource = "bytes",
    minimise: Resource = "loss",
    points: int = 12,
    max_loss: float | None = None,
    max_bytes: float | None = None,
    max_ms: float | None = None,
    borders: Sequence[Border] = (),
    integer: Sequence[Sequence[bool]] | None = None,
    seconds: float = 10.0,
    gap: float = 1e-4,
) -> tuple[Assignment, ...]:
    """Assignments of which none has less of both resources, by rising `across`; up to `points`.

    Budgets of `across` are spread between the cheapest assignment and the one with the least of
    `minimise`, by ratio where all are positive; other budgets hold throughout. seconds: in all.
    """
    if across == minimise:
        raise ValueError(f"a frontier lies between two resources, not {across} and itself")
    deadline = time.monotonic() + seconds

    def best(least: Resource, budget: float | None = None) -> Assignment | None:
        limits = {"loss": max_loss, "bytes": max_bytes, "ms": max_ms}
        if budget is not None:
            limits[across] = budget
        return solve_knapsack(
            costs,
            minimise=least,
            max_loss=limits["loss"],
            max_bytes=limits["bytes"],
            max_ms=limits["ms"],
            borders=borders,
            integer=integer,
            seconds=deadline - time.monotonic(),
            gap=gap,
        )

    cheapest, dearest = best(across), best(minimise)
    if cheapest is None or dearest is None:
        return ()
    low, high = getattr(cheapest, across), getattr(dearest, across)
    spread = np.geomspace if low > 0 else np.linspace
    # The first budget is the cheapest's own: it may be had with less of the other resource.
    budgets = spread(low, max(low, high), max(points, 2))[:-1]
    found = [*(best(minimise, float(budget)) for budget in budgets), dearest]
    ordered = sorted(
        {one.choices: one for one in found if one is not None}.values(),
        key=lambda one: (getattr(one, across), getattr(one, minimise), one.choices),
    )
    kept: list[Assignment] = []
    for one in ordered:
        if not kept or getattr(one, minimise) < getattr(kept[-1], minimise):
            kept.append(one)
    return tuple(kept)


def _limits(
    loss: float | None, size: float | None, ms: float | None
) -> tuple[tuple[Resource, float], ...]:
    given: tuple[tuple[Resource, float | None], ...] = (("loss", loss), ("bytes", size), ("ms", ms))
    if any(limit is not None and math.isnan(limit) for _, limit in given):
        raise ValueError("a budget must be a number")
    return tuple((name, limit) for name, limit in given if limit is not None and limit < math.inf)


def _pruned(problem: Problem, kept: Sequence[Collection[int]]) -> Problem:
    pairs = zip(problem.layer, problem.place, strict=True)
    inside = np.array([place in kept[layer] for layer, place in pairs], np.bool_)
    return replace(problem, usable=problem.usable & inside)


def _solve(
    problem: Problem,
    incumbent: Ints | None,
    *,
    seconds: float,
    gap: float,
    margin: float,
    elastic: bool = False,
) -> Ints | None:
    """The solver's best, [layers] of places in the row; None where it has none.

    incumbent: a solution to be bettered, which sets the scale of the objective and leaves out
    what costs more by itself. margin: kept from the budgets, as a share. elastic: budgets may
    be exceeded, and the least sum of excesses is sought.
    """
    n, borders = len(problem.layer), len(problem.border_ms)
    extra = len(problem.limits) if elastic else 0
    width = n + borders + extra
    upper = np.concatenate([problem.usable, np.ones(borders), np.full(extra, np.inf)])
    rises = {name: _rise(problem, name, width) for name in problem.order}
    rows, lows, highs = _structure(problem)
    for number, (name, limit) in enumerate(problem.limits):
        rise, least = rises[name]
        slack, unit = limit - least, share_of(limit)
        if not elastic:
            if slack < -ROUNDING * abs(limit):
                return None
            slack = max(slack, 0.0)
            upper[rise > slack * (1 + 1e-9)] = 0.0
            rise, unit = np.where(upper > 0, rise, 0.0), slack or 1.0
        row = {int(i): float(rise[i] / unit * _SCALE) for i in np.flatnonzero(rise)}
        if elastic:
            row[n + borders + number] = -_SCALE
        rows.append(row)
        lows.append(-np.inf)
        highs.append((slack / unit - margin) * _SCALE)
    rise, least = rises[problem.minimise]
    top = float(np.max(rise[upper > 0], initial=0.0))
    if incumbent is not None:
        # No rise is negative: what is above the incumbent's own sum is in no better solution.
        top = max(totals(problem, incumbent)[problem.minimise] - least, 0.0)
        upper[rise > top * (1 + 1e-9)] = 0.0
    objective = np.zeros(width)
    objective[n + borders :] = _SCALE
    weights = (_TIE, _TIE * 1e-2, _TIE * 1e-4) if elastic else (1.0, _TIE, _TIE * 1e-2)
    for weight, name in zip(weights, problem.order, strict=True):
        rise = np.where(upper > 0, rises[name][0], 0.0)
        unit = top if name == problem.minimise else float(np.max(rise))
        objective += weight * _SCALE * rise / (unit or 1.0)
    with _silent_solver():
        result = milp(
            objective,
            integrality=np.concatenate([np.ones(n), np.zeros(borders + extra)]),
            bounds=Bounds(np.zeros(width), upper),
            constraints=LinearConstraint(_matrix(rows, width), lows, highs),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": gap},
        )
    if result.x is None:
        return None
    chosen = np.flatnonzero(result.x[:n] > 0.5)
    return chosen if np.array_equal(problem.layer[chosen], np.arange(problem.layers)) else None


@contextlib.contextmanager
def _silent_solver() -> Iterator[None]:
    """Whatever is printed meanwhile goes nowhere.

    HiGHS 1.12 prints a line about its own doings when it repairs a solution, past its own option
    for silence and past Python, into what may be the JSON that a program waits for.
    """
    with contextlib.ExitStack() as undo:
        try:
            kept = os.dup(1)
        except OSError:  # there is no standard output
            yield
            return
        undo.callback(os.close, kept)
        nothing = os.open(os.devnull, os.O_WRONLY)
        undo.callback(os.close, nothing)
        _flush()
        os.dup2(nothing, 1)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, 1)


def _flush() -> None:
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


def _structure(problem: Problem) -> tuple[list[dict[int, float]], list[float], list[float]]:
    """Rows that hold whatever the budgets: {column: number}, each with its least and most."""
    n = len(problem.layer)
    by_layer = [np.flatnonzero(problem.layer == layer) for layer in range(problem.layers)]
    rows = [dict.fromkeys((int(i) for i in own), 1.0) for own in by_layer]
    lows, highs = [1.0] * len(rows), [1.0] * len(rows)
    for number, (first, second) in enumerate(problem.ends):
        sides = [[int(i) for i in by_layer[end] if problem.integer[i]] for end in (first, second)]
        for one, other in (sides, reversed(sides)):
            row = dict.fromkeys(one, -1.0) | dict.fromkeys(other, 1.0)
            rows.append({**row, n + number: 1.0})
            lows.append(0.0)
            highs.append(np.inf)
    for choices in sorted(problem.forbidden):
        if len(choices) == problem.layers:
            pairs = zip(by_layer, choices, strict=True)
            rows.append({int(own[c]): 1.0 for own, c in pairs if 0 <= c < len(own)})
            lows.append(-np.inf)
            highs.append(problem.layers - 1.0)
    return rows, lows, highs


def _matrix(rows: Sequence[dict[int, float]], width: int) -> csr_array:
    starts = np.cumsum([0, *(len(row) for row in rows)])
    columns = np.array([column for row in rows for column in row], np.int32)
    numbers = np.array([number for row in rows for number in row.values()], np.float64)
    return csr_array((numbers, columns, starts.astype(np.int32)), shape=(len(rows), width))


def _rise(problem: Problem, name: Resource, width: int) -> tuple[Floats, float]:
    """How far each candidate and border is above the least there, [width], and the least's sum."""
    n = len(problem.layer)
    least = np.full(problem.layers, np.inf)
    values = np.where(problem.usable, problem.values[name], np.inf)
    np.minimum.at(least, problem.layer, values)
    least[~np.isfinite(least)] = 0.0
    rise = np.zeros(width)
    rise[:n] = np.where(problem.usable, values - least[problem.layer], 0.0)
    if name == "ms":
        rise[n : n + len(problem.border_ms)] = problem.border_ms
    return rise, math.fsum(least)
