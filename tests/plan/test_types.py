from __future__ import annotations

import itertools

import numpy as np
import pytest

from packlight.errors import WrongUsage
from packlight.llm.costs import TensorCosts, TypeCost
from packlight.plan.types import plan_types

BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q6_K": 6.5625, "Q8_0": 8.5}


def random_costs(tensors: int, seed: int = 0) -> list[TensorCosts]:
    """Losses fall fourfold a bit, from a start that differs by tensor."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(tensors):
        weights = int(draw.integers(1, 8)) * 65_536
        start = float(draw.lognormal(0, 2))
        options = tuple(
            TypeCost(kind, int(weights * bits / 8), start * 4.0**-bits)
            for kind, bits in BITS.items()
        )
        found.append(TensorCosts(f"blk.{number}.ffn_up.weight", weights, options))
    return found


@pytest.mark.parametrize("bits", [2.7, 3.5, 4.5])
def test_the_average_is_within_a_hundredth_and_never_above(bits: float):
    costs = random_costs(40)
    plan = plan_types(costs, bits=bits)
    assert plan.met
    assert bits * 0.99 <= plan.bits <= bits


def test_no_other_choice_under_the_budget_is_better():
    costs = random_costs(5, seed=3)
    plan = plan_types(costs, bits=3.6)
    budget = 3.6 * sum(one.weights for one in costs) / 8
    every = itertools.product(*(one.options for one in costs))
    best = min(
        sum(option.loss for option in taken)
        for taken in every
        if sum(option.bytes for option in taken) <= budget
    )
    assert plan.loss == pytest.approx(best, rel=1e-9)


def test_types_follow_the_losses():
    costs = random_costs(30)
    plan = plan_types(costs, bits=4.0)
    per_weight = [one.options[0].loss / one.weights for one in costs]
    given = [BITS[plan.types[one.name]] for one in costs]
    order = np.argsort(per_weight)
    assert np.mean(np.array(given)[order[:10]]) < np.mean(np.array(given)[order[-10:]])


def test_a_size_of_the_file_counts_what_else_is_in_it():
    costs = random_costs(20)
    whole = sum(one.options[2].bytes for one in costs)
    plan = plan_types(costs, max_size_bytes=whole + 1000, other_bytes=1000)
    less = plan_types(costs, max_size_bytes=whole + 1000, other_bytes=whole // 4)
    assert plan.bytes <= whole
    assert less.bytes <= whole + 1000 - whole // 4
    assert less.loss > plan.loss


def test_a_drop_is_kept_with_the_fewest_bytes():
    costs = random_costs(20)
    mild, strict = (plan_types(costs, max_drop=drop) for drop in (0.1, 0.01))
    assert mild.loss <= 0.1
    assert strict.loss <= 0.01
    assert mild.bytes < strict.bytes


def test_what_cannot_be_kept_gives_the_nearest_and_says_so():
    costs = random_costs(5)
    small = plan_types(costs, bits=1.0)
    assert not small.met
    assert set(small.types.values()) == {"Q2_K"}
    exact = plan_types(costs, max_drop=1e-30)
    assert not exact.met
    assert set(exact.types.values()) == {"Q8_0"}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "give one of"),
        ({"bits": 4.0, "max_drop": 0.1}, "give one of"),
        ({"bits": 0.0}, "more than 0"),
        ({"max_drop": -1.0}, "more than 0"),
    ],
)
def test_wrong_budgets_are_refused(budget: dict[str, float], message: str):
    with pytest.raises(WrongUsage, match=message):
        plan_types(random_costs(2), **budget)  # type: ignore[arg-type]


def test_a_tensor_without_types_is_named():
    with pytest.raises(WrongUsage, match=r"no type fits blk\.7"):
        plan_types([TensorCosts("blk.7.x", 64, ())], bits=4.0)
