from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.plan.knapsack import (
    Assignment,
    Border,
    Cost,
    Resource,
    frontier,
    lower_hull,
    nearest_feasible,
    solve_knapsack,
)

EXACT = 1e-9
FREE = {"max_loss": None, "max_bytes": None, "max_ms": None}


@dataclass(frozen=True)
class Case:
    costs: list[list[Cost]]
    integer: list[list[bool]]
    borders: tuple[Border, ...]


def evaluate(case: Case, choices: Sequence[int]) -> Assignment:
    """What an assignment costs, written out."""
    taken = [row[choice] for row, choice in zip(case.costs, choices, strict=True)]
    ms = sum(cost.ms for cost in taken)
    for border in case.borders:
        first = case.integer[border.first][choices[border.first]]
        second = case.integer[border.second][choices[border.second]]
        ms += border.ms if first != second else 0.0
    return Assignment(tuple(choices), sum(c.loss for c in taken), sum(c.bytes for c in taken), ms)


def every_assignment(case: Case) -> list[Assignment]:
    spaces = [range(len(row)) for row in case.costs]
    found = [evaluate(case, choices) for choices in itertools.product(*spaces)]
    return [a for a in found if all(map(math.isfinite, (a.loss, a.bytes, a.ms)))]


def keeps(one: Assignment, limits: dict[str, float | None]) -> bool:
    return all(
        limit is None or getattr(one, name.removeprefix("max_")) <= limit + 1e-9 * abs(limit)
        for name, limit in limits.items()
    )


def beyond(one: Assignment, limits: dict[str, float | None]) -> float:
    return sum(
        max(0.0, getattr(one, name.removeprefix("max_")) - limit) / (abs(limit) or 1.0)
        for name, limit in limits.items()
        if limit is not None
    )


def draw_case(seed: int, layers: int = 5, candidates: int = 4, *, whole: bool = False) -> Case:
    """Fewer bits: fewer bytes, mostly less time, more loss; losses span many powers of ten."""
    rng = np.random.default_rng(seed)
    costs, integer = [], []
    for _ in range(layers):
        count = int(rng.integers(1, candidates + 1))
        if whole:  # whole numbers, so that many assignments tie and budgets are hit exactly
            numbers = rng.integers(0, 4, (count, 3)).astype(float)
        else:
            size = rng.uniform(1e3, 1e6) * np.sort(rng.uniform(0.05, 1, count))[::-1]
            loss = np.sort(10 ** rng.uniform(-9, 0, count))
            numbers = np.stack([loss, size, rng.uniform(0.01, 1, count)], axis=1)
        costs.append([Cost(*map(float, row)) for row in numbers])
        integer.append([bool(yes) for yes in rng.integers(0, 2, count)])
    borders = tuple(
        Border(i, i + 1, float(rng.integers(0, 3)) if whole else float(rng.uniform(0, 0.4)))
        for i in range(layers - 1)
    )
    return Case(costs, integer, borders)


def draw_limits(seed: int, case: Case, minimise: Resource) -> dict[str, float | None]:
    """Budgets somewhere within the range of what is possible, now and then out of reach."""
    rng = np.random.default_rng(seed + 1)
    all_ = every_assignment(case)
    limits = dict(FREE)
    for name in ("loss", "bytes", "ms"):
        if name != minimise and rng.random() < 0.7:
            values = sorted(getattr(one, name) for one in all_)
            limits[f"max_{name}"] = values[int(rng.integers(0, len(values)))]
    if rng.random() < 0.1:
        limits["max_bytes"] = 0.5 * min(one.bytes for one in all_) - 1.0
    return limits


cases = st.builds(draw_case, st.integers(0, 10**6), whole=st.booleans())
resources = st.sampled_from(["loss", "bytes", "ms"])


@given(cases, resources, st.integers(0, 10**6))
def test_the_solution_is_the_best_by_brute_force(case: Case, minimise: Resource, seed: int) -> None:
    limits = draw_limits(seed, case, minimise)
    able = [one for one in every_assignment(case) if keeps(one, limits)]
    found = solve_knapsack(
        case.costs,
        minimise=minimise,
        **limits,
        borders=case.borders,
        integer=case.integer,
        gap=0.0,
    )
    if not able:
        assert found is None
        return
    assert found is not None
    assert keeps(found, limits)
    again = evaluate(case, found.choices)
    for name in ("loss", "bytes", "ms"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), rel=EXACT)
    best = min(getattr(one, minimise) for one in able)
    # Ties are broken by a weight that may cost so much of the objective, and no more.
    least = min(getattr(one, minimise) for one in every_assignment(case))
    assert getattr(found, minimise) <= best + 1e-5 * (best - least) + 1e-12


@given(cases, st.integers(0, 10**6))
def test_among_equals_the_fewest_bytes(case: Case, seed: int) -> None:
    case = Case([[Cost(0.0, c.bytes, c.ms) for c in row] for row in case.costs], case.integer, ())
    limits = draw_limits(seed, case, "loss")
    able = [one for one in every_assignment(case) if keeps(one, limits)]
    found = solve_knapsack(case.costs, minimise="loss", **limits, gap=0.0)
    if able:
        assert found is not None
        assert found.bytes <= min(one.bytes for one in able) * (1 + 1e-3) + 1e-9


@given(cases, resources, st.integers(0, 10**6))
def test_what_is_forbidden_is_not_proposed(case: Case, minimise: Resource, seed: int) -> None:
    """Forbidding each answer in turn goes through the assignments from the best on."""
    limits = draw_limits(seed, case, minimise)
    able = sorted(getattr(o, minimise) for o in every_assignment(case) if keeps(o, limits))
    tried: list[Assignment] = []
    for _ in range(4):
        found = solve_knapsack(
            case.costs,
            minimise=minimise,
            **limits,
            borders=case.borders,
            integer=case.integer,
            forbidden={one.choices for one in tried},
            gap=0.0,
        )
        if found is None:
            break
        assert found.choices not in {one.choices for one in tried}
        tried.append(found)
    assert len(tried) == min(4, len(able))
    spread = (able[-1] - able[0]) if able else 0.0
    for one, best in zip(tried, able, strict=False):
        assert getattr(one, minimise) == pytest.approx(best, rel=1e-5, abs=1e-5 * spread)


@given(cases, st.integers(0, 10**6))
def test_the_nearest_is_the_least_beyond_the_budgets(case: Case, seed: int) -> None:
    limits = draw_limits(seed, case, "loss")
    rng = np.random.default_rng(seed)
    limits = {k: None if v is None else v * float(rng.uniform(0.3, 1)) for k, v in limits.items()}
    found = nearest_feasible(
        case.costs, **limits, borders=case.borders, integer=case.integer, gap=0.0
    )
    assert found is not None
    least = min(beyond(one, limits) for one in every_assignment(case))
    assert beyond(found, limits) <= least * (1 + 1e-5) + 1e-5


def greedy(case: Case, max_bytes: float) -> Assignment | None:
    """From the least loss on, the exchange that saves most bytes for the loss it adds."""
    choices = [min(range(len(row)), key=lambda c, row=row: row[c].loss) for row in case.costs]
    while evaluate(case, choices).bytes > max_bytes:
        rates = []
        for layer, row in enumerate(case.costs):
            now = row[choices[layer]]
            for other, cost in enumerate(row):
                if cost.bytes < now.bytes:
                    rise = max(cost.loss - now.loss, 1e-30)
                    rates.append(((now.bytes - cost.bytes) / rise, layer, other))
        if not rates:
            return None
        _, layer, other = max(rates)
        choices[layer] = other
    return evaluate(case, choices)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_never_worse_than_greedy_on_a_whole_network(seed: int, share: float) -> None:
    case = draw_case(seed, layers=50, candidates=8)
    low = sum(min(c.bytes for c in row) for row in case.costs)
    high = sum(max(c.bytes for c in row) for row in case.costs)
    budget = low + share * (high - low)
    found = solve_knapsack(case.costs, minimise="loss", max_bytes=budget)
    rival = greedy(case, budget)
    assert found is not None
    assert found.bytes <= budget
    assert rival is None or found.loss <= rival.loss


def test_borders_keep_a_stretch_together() -> None:
    """Each layer alone would alternate; converting four times costs more than it gains."""
    costs = [[Cost(0, 4, 1.0), Cost(0, 1, 0.9 if i % 2 else 1.05)] for i in range(6)]
    integer = [[False, True]] * 6
    borders = [Border(i, i + 1, 0.2) for i in range(5)]
    alone = solve_knapsack(costs, minimise="ms")
    found = solve_knapsack(costs, minimise="ms", borders=borders, integer=integer)
    assert alone is not None
    assert found is not None
    assert alone.choices == (0, 1, 0, 1, 0, 1)
    assert found.choices == (1, 1, 1, 1, 1, 1)
    assert found.ms == pytest.approx(3 * 1.05 + 3 * 0.9)


def test_golden() -> None:
    costs = [
        [Cost(0.0, 400, 4.0), Cost(0.01, 100, 2.0), Cost(0.2, 50, 1.5)],
        [Cost(0.0, 800, 3.0), Cost(0.002, 200, 1.0), Cost(0.03, 100, 1.0)],
    ]
    found = solve_knapsack(costs, minimise="loss", max_bytes=600)
    assert found == Assignment((0, 1), 0.002, 600.0, 5.0)
    found = solve_knapsack(costs, minimise="bytes", max_loss=0.04)
    assert found == Assignment((1, 2), 0.04, 200.0, 3.0)
    assert solve_knapsack(costs, minimise="ms", max_bytes=149) is None
    found = nearest_feasible(costs, max_bytes=100)
    assert found == Assignment((2, 2), 0.23, 150.0, 2.5)


def test_small_losses_count_among_large_ones() -> None:
    """1e-9 against 2e-9, in a network where another layer may lose 1."""
    costs = [
        [Cost(1.0, 1, 1), Cost(1e-9, 2, 1)],
        [Cost(1e-9, 2, 1), Cost(2e-9, 1, 1)],
        [Cost(1e-9, 2, 1), Cost(3e-9, 1, 1)],
    ]
    found = solve_knapsack(costs, minimise="loss", max_bytes=5)
    assert found is not None
    assert found.choices == (1, 1, 0)


def test_a_budget_hit_exactly_is_kept_and_one_missed_by_little_is_not() -> None:
    costs = [[Cost(1, 0, 0), Cost(0, 0.1 * 3, 0)] for _ in range(10)]
    total = math.fsum([0.1 * 3] * 10)
    exact = solve_knapsack(costs, minimise="loss", max_bytes=total)
    missed = solve_knapsack(costs, minimise="loss", max_bytes=total * (1 - 1e-10))
    assert exact is not None
    assert exact.loss == 0
    assert missed is not None
    assert missed.loss == 1


def test_candidates_that_failed_are_left_out() -> None:
    costs = [[Cost(0, 5, 1), Cost(math.nan, 1, 1)], [Cost(math.inf, 1, 1), Cost(0, 4, 1)]]
    found = solve_knapsack(costs, minimise="bytes")
    assert found is not None
    assert found.choices == (0, 1)
    assert solve_knapsack([[Cost(math.inf, 1, 1)]], minimise="bytes") is None
    assert nearest_feasible([[Cost(math.inf, 1, 1)]], max_bytes=3) is None


def test_no_layers_is_an_empty_assignment() -> None:
    assert solve_knapsack([], minimise="loss") == Assignment((), 0.0, 0.0, 0.0)
    assert solve_knapsack([], minimise="loss", forbidden={()}) is None
    assert nearest_feasible([], max_bytes=3) == Assignment((), 0.0, 0.0, 0.0)


@given(cases)
def test_the_frontier_has_nothing_that_is_beaten(case: Case) -> None:
    found = frontier(case.costs, borders=case.borders, integer=case.integer, gap=0.0)
    assert found
    everything = every_assignment(case)
    assert found[0].bytes == pytest.approx(min(o.bytes for o in everything), rel=1e-6, abs=1e-9)
    assert found[-1].loss == pytest.approx(min(o.loss for o in everything), rel=1e-6, abs=1e-9)
    for one, after in itertools.pairwise(found):
        assert one.bytes < after.bytes
        assert one.loss > after.loss
    for one in found:
        better = [o.loss for o in everything if o.bytes <= one.bytes * (1 + 1e-12)]
        least = min(o.loss for o in everything)
        assert one.loss <= min(better) + 1e-5 * (min(better) - least) + 1e-12


@given(cases, st.booleans())
def test_the_hull_is_what_nothing_beats(case: Case, split: bool) -> None:
    integer = case.integer if split else None
    for number, (row, kept) in enumerate(
        zip(case.costs, lower_hull(case.costs, integer=integer), strict=True)
    ):
        for i, mine in enumerate(row):
            rivals = [
                j
                for j, other in enumerate(row)
                if (not split or case.integer[number][i] == case.integer[number][j])
                and (other.loss, other.bytes, other.ms) != (mine.loss, mine.bytes, mine.ms)
                and other.loss <= mine.loss
                and other.bytes <= mine.bytes
                and other.ms <= mine.ms
            ]
            same = row.index(mine) if not split else i
            if i in kept:
                assert not rivals
            elif not split:
                assert rivals or same < i


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Some versions of HiGHS print lines of their own into the standard output."""
    for seed in range(3):
        assert frontier(draw_case(seed, layers=60, candidates=12).costs, points=6)
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_the_same_numbers_give_the_same_answer() -> None:
    case = draw_case(7, layers=40, candidates=8)
    budget = sum(min(c.bytes for c in row) for row in case.costs) * 1.5
    found = {
        solve_knapsack(
            case.costs,
            minimise="loss",
            max_bytes=budget,
            borders=case.borders,
            integer=case.integer,
        )
        for _ in range(3)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minimise": "joy"}, "no resource"),
        ({"minimise": "loss", "max_bytes": math.nan}, "a number"),
        ({"minimise": "loss", "borders": [Border(0, 1, 1.0)]}, "compute in integers"),
        ({"minimise": "loss", "integer": [[True]]}, "yes or no"),
        (
            {"minimise": "loss", "borders": [Border(0, 9, 1.0)], "integer": [[True, False]] * 2},
            "Border",
        ),
    ],
)
def test_numbers_that_make_no_problem(settings: dict[str, object], said: str) -> None:
    costs = [[Cost(0, 1, 1), Cost(1, 0, 1)]] * 2
    with pytest.raises(ValueError, match=said):
        solve_knapsack(costs, **settings)  # type: ignore[arg-type]
