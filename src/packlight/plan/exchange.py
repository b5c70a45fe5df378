"""The numbers of a multiple-choice knapsack, and bettering a solution by one exchange at a time.

What the exact solver is held against: fast, always there, and blind to what takes two exchanges.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Resource: TypeAlias = Literal["loss", "bytes", "ms"]
RESOURCES: tuple[Resource, ...] = ("loss", "bytes", "ms")
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

ROUNDING = 1e-12
"""Sums that differ by less than this share are equal: their terms were added in another order."""


@dataclass(frozen=True)
class Cost:
    """What one candidate of one layer costs; infinite or NaN where it cannot be taken."""

    loss: float
    bytes: float
    ms: float


@dataclass(frozen=True)
class Border:
    """Two layers (by index) between which converting costs `ms` when just one is in integers."""

    first: int
    second: int
    ms: float


@dataclass(frozen=True)
class Assignment:
    """The candidate of each layer, by index, and what all of it costs, borders included."""

    choices: tuple[int, ...]
    loss: float
    bytes: float
    ms: float


@dataclass(frozen=True)
class Problem:
    """The candidates of all layers in one row of n, and the budgets as (resource, limit).

    values: {resource: [n]}. layer: [n] whose candidate it is. place: [n] its number there.
    usable, integer: [n]. ends: [borders, 2] layers. border_ms: [borders].
    """

    values: dict[Resource, Floats]
    layer: Ints
    place: Ints
    usable: NDArray[np.bool_]
    integer: NDArray[np.bool_]
    layers: int
    ends: Ints
    border_ms: Floats
    minimise: Resource
    limits: tuple[tuple[Resource, float], ...]
    forbidden: frozenset[tuple[int, ...]]

    @property
    def order(self) -> tuple[Resource, ...]:
        """What is minimised first, and what breaks ties."""
        return (self.minimise, *(name for name in RESOURCES if name != self.minimise))


def state_problem(
    costs: Sequence[Sequence[Cost]],
    *,
    minimise: Resource,
    limits: tuple[tuple[Resource, float], ...],
    borders: Sequence[Border] = (),
    integer: Sequence[Sequence[bool]] | None = None,
    forbidden: Collection[tuple[int, ...]] = (),
) -> Problem:
    """The problem as arrays. Raises ValueError for numbers that make none."""
    if minimise not in RESOURCES:
        raise ValueError(f"there is no resource {minimise!r}: one of {', '.join(RESOURCES)}")
    if integer is not None and [len(row) for row in integer] != [len(row) for row in costs]:
        raise ValueError("integer must say yes or no for every candidate of every layer")
    if borders and integer is None:
        raise ValueError("borders need to know which candidates compute in integers")
    for border in borders:
        inside = 0 <= border.first < len(costs) and 0 <= border.second < len(costs)
        if not inside or not 0 <= border.ms < math.inf:
            raise ValueError(f"{border} does not cost 0 ms or more between two of {len(costs)}")
    flat = [cost for row in costs for cost in row]
    values: dict[Resource, Floats] = {
        name: np.array([getattr(cost, name) for cost in flat], np.float64) for name in RESOURCES
    }
    counted = [border for border in borders if border.ms > 0 and border.first != border.second]
    kind = [yes for row in integer for yes in row] if integer else [False] * len(flat)
    return Problem(
        values=values,
        layer=np.array([i for i, row in enumerate(costs) for _ in row], np.int64),
        place=np.array([i for row in costs for i in range(len(row))], np.int64),
        usable=np.all([np.isfinite(numbers) for numbers in values.values()], axis=0),
        integer=np.array(kind, np.bool_),
        layers=len(costs),
        ends=np.array([(b.first, b.second) for b in counted], np.int64).reshape(-1, 2),
        border_ms=np.array([border.ms for border in counted], np.float64),
        minimise=minimise,
        limits=limits,
        forbidden=frozenset(tuple(choices) for choices in forbidden),
    )


def state_assignment(problem: Problem, taken: Ints) -> Assignment:
    """The solution `taken`, [layers] of places in the row, as choices and their costs."""
    found = totals(problem, taken)
    return Assignment(choices_of(problem, taken), found["loss"], found["bytes"], found["ms"])


def choices_of(problem: Problem, taken: Ints) -> tuple[int, ...]:
    """The number of each layer's candidate among its own."""
    return tuple(int(place) for place in problem.place[taken])


def totals(problem: Problem, taken: Ints) -> dict[Resource, float]:
    """What a solution costs, summed without rounding errors, so in any order the same."""
    split = problem.integer[taken][problem.ends]
    borders = problem.border_ms[split[:, 0] != split[:, 1]]
    return {
        name: math.fsum([*numbers[taken], *(borders if name == "ms" else ())])
        for name, numbers in problem.values.items()
    }


def share_of(limit: float) -> float:
    """What an excess over a budget is divided by."""
    return abs(limit) or 1.0


def excess(problem: Problem, found: dict[Resource, float]) -> float:
    """How far beyond the budgets, as the sum of shares of each; 0 where all are kept."""
    return sum(
        max(0.0, found[name] - limit) / share_of(limit)
        for name, limit in problem.limits
        if found[name] - limit > ROUNDING * abs(limit)
    )


def rank(problem: Problem, taken: Ints) -> tuple[float, ...]:
    """Smaller is better: excess, what is minimised, what breaks ties, then the choices."""
    found = totals(problem, taken)
    order = (found[name] for name in problem.order)
    return (excess(problem, found), *order, *choices_of(problem, taken))


def improve(problem: Problem, taken: Ints) -> Ints:
    """Exchange one layer's candidate at a time, the best exchange first, until none betters.

    An assignment that keeps to the budgets goes on doing so.
    """
    taken = taken.copy()
    # Each step betters the rank, so that this ends by itself; the bound is for rounding errors.
    for _ in range(4 * problem.layers + 100):
        found = totals(problem, taken)
        change = _changes(problem, taken, found)
        keys = [_excess_change(problem, change, found), *(change[n] for n in problem.order)]
        able = problem.usable.copy()
        able[taken] = False
        for best in np.lexsort([problem.place, *reversed(keys)]):
            if not able[best]:
                continue
            first = next((key[best] for key in keys if key[best] != 0), 0.0)
            if first >= 0:
                return taken
            other = taken.copy()
            other[problem.layer[best]] = best
            if choices_of(problem, other) not in problem.forbidden:
                taken = other
                break
        else:
            return taken
    return taken


def start_greedily(problem: Problem) -> Ints | None:
    """The best of each layer, then exchanges that relieve the budgets at the least rise; or None.

    None where that does not reach the budgets, or ends at a forbidden assignment.
    """
    values = np.where(problem.usable, problem.values[problem.minimise], np.inf)
    taken = np.full(problem.layers, -1, np.int64)
    for layer in range(problem.layers):
        own = np.flatnonzero(problem.layer == layer)
        if not len(own) or not np.isfinite(values[own]).any():
            return None
        taken[layer] = own[int(np.argmin(values[own]))]
    for _ in range(len(problem.layer)):
        found = totals(problem, taken)
        if excess(problem, found) == 0:
            return None if choices_of(problem, taken) in problem.forbidden else taken
        change = _changes(problem, taken, found)
        relief = -_excess_change(problem, change, found)
        relief[~problem.usable] = 0.0
        rise = np.maximum(change[problem.minimise], 0.0)
        smallest = float(np.min(rise[rise > 0], initial=1.0)) * 1e-6
        rate = np.where(relief > 0, relief / (rise + smallest), 0.0)
        best = int(np.argmax(rate))
        if rate[best] <= 0:
            return None
        taken[problem.layer[best]] = best
    return None


def _changes(problem: Problem, taken: Ints, found: dict[Resource, float]) -> dict[Resource, Floats]:
    """By how much each resource changes with each candidate, [n], instead of that taken there."""
    changes = {}
    for name, numbers in problem.values.items():
        usable = np.where(problem.usable, numbers, 0.0)
        change = usable - numbers[taken][problem.layer]
        if name == "ms":
            change = change + _border_changes(problem, taken)
        change[np.abs(change) <= ROUNDING * abs(found[name])] = 0.0
        changes[name] = change
    return changes


def _border_changes(problem: Problem, taken: Ints) -> Floats:
    """Milliseconds of conversion that come or go with each candidate, [n]."""
    state = problem.integer[taken]
    split = state[problem.ends]
    # A layer that changes sides turns each of its borders around.
    turned = np.where(split[:, 0] != split[:, 1], -problem.border_ms, problem.border_ms)
    by_layer = np.zeros(problem.layers)
    np.add.at(by_layer, problem.ends[:, 0], turned)
    np.add.at(by_layer, problem.ends[:, 1], turned)
    changes = problem.integer != state[problem.layer]
    return cast(Floats, np.where(changes, by_layer[problem.layer], 0.0))


def _excess_change(
    problem: Problem, change: dict[Resource, Floats], found: dict[Resource, float]
) -> Floats:
    result = np.zeros(len(problem.layer))
    for name, limit in problem.limits:
        slack = ROUNDING * abs(limit)
        before = max(0.0, found[name] - limit)
        after = np.maximum(0.0, found[name] + change[name] - limit)
        before = before if before > slack else 0.0
        result += (np.where(after > slack, after, 0.0) - before) / share_of(limit)
    result[np.abs(result) <= ROUNDING] = 0.0
    return result
