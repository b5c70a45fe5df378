"""Which type each tensor of a language model gets, so that the model suffers least.

The losses of single tensors add up as long as they are small (their estimate is of second order),
so one type for each tensor under a budget of bytes is a multiple-choice knapsack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packlight.errors import WrongUsage
from packlight.llm.costs import TensorCosts
from packlight.plan.exchange import Assignment, Cost
from packlight.plan.knapsack import solve_knapsack

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types that are weighed where rows divide by 256, fewest bits first."""

CODEBOOKS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
"""Types that are weighed besides where fewer than `FEW_BITS` are asked for: of the same size they
lose less than types without a codebook, and llama.cpp takes longer to compute with them."""

ONE_BIT = ("IQ1_S", "IQ1_M")
"""Types that are weighed besides where fewer than `FEWEST_BITS` are asked for."""

FEW_BITS = 3.5
FEWEST_BITS = 2.4

NARROW = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that are weighed for other rows."""


@dataclass(frozen=True)
class TypePlan:
    """The type of each tensor. loss: the predicted KL divergence a token, in nats.

    bytes: of these tensors. bits: a weight, on average over them. met: whether the budget is
    kept; where no choice keeps to it, this is the one that comes nearest.
    """

    types: Mapping[str, str]
    loss: float
    bytes: int
    bits: float
    met: bool


def plan_types(
    costs: Sequence[TensorCosts],
    *,
    bits: float | None = None,
    max_size_bytes: int | None = None,
    max_drop: float | None = None,
    other_bytes: int = 0,
    alignment: int = 32,
) -> TypePlan:
    """Give each tensor its type under one budget.

    bits: a weight on average over these tensors, scales included. max_size_bytes: of the whole
    file, of which `other_bytes` are not these tensors (metadata, tokenizer, norms). max_drop: the
    predicted KL divergence, for which the fewest bytes are sought. alignment: of each tensor in
    the file. Raises WrongUsage unless there is just one budget, and where a tensor has no type.
    """
    if sum(limit is not None for limit in (bits, max_size_bytes, max_drop)) != 1:
        raise WrongUsage("give one of bits, max_size_bytes and max_drop")
    for one in costs:
        if not one.options:
            raise WrongUsage(f"no type fits {one.name}: allow more types")
    weights = sum(one.weights for one in costs)
    table = [
        [Cost(option.loss, float(option.bytes + -option.bytes % alignment), 0.0) for option in row]
        for row in (one.options for one in costs)
    ]
    if max_drop is not None:
        if not max_drop > 0:
            raise WrongUsage(f"max_drop is {max_drop}, it must be more than 0")
        found = solve_knapsack(table, minimise="bytes", max_loss=max_drop)
        return _plan(costs, found or _extreme(table, "loss"), found is not None)
    budget = float((max_size_bytes or 0) - other_bytes)
    if bits is not None:
        if not bits > 0:
            raise WrongUsage(f"bits is {bits}, it must be more than 0")
        budget = bits * weights / 8
    found = solve_knapsack(table, minimise="loss", max_bytes=budget) if budget > 0 else None
    return _plan(costs, found or _extreme(table, "bytes"), found is not None)


def _extreme(table: Sequence[Sequence[Cost]], resource: Literal["loss", "bytes"]) -> Assignment:
    """The least of a resource, whatever it costs."""
    choices = tuple(
        min(range(len(row)), key=lambda place, row=row: getattr(row[place], resource))  # type: ignore[misc]
        for row in table
    )
    taken = [row[place] for row, place in zip(table, choices, strict=True)]
    return Assignment(choices, sum(c.loss for c in taken), sum(c.bytes for c in taken), 0.0)


def _plan(costs: Sequence[TensorCosts], found: Assignment, met: bool) -> TypePlan:
    taken = [one.options[place] for one, place in zip(costs, found.choices, strict=True)]
    size = sum(option.bytes for option in taken)
    return TypePlan(
        types={one.name: option.type for one, option in zip(costs, taken, strict=True)},
        loss=found.loss,
        bytes=size,
        bits=8 * size / max(sum(one.weights for one in costs), 1),
        met=met,
    )
