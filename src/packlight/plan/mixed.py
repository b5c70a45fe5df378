"""A choice for each layer under the budget: solve, apply, measure, correct, and again.

A knapsack over the table of candidates proposes a whole recipe; its file is made and measured,
and the difference between what was predicted and what came out corrects the next budget.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from packlight.plan.exchange import Assignment, Resource
from packlight.plan.knapsack import nearest_feasible, solve_knapsack
from packlight.plan.solve import Limits
from packlight.plan.table import Table
from packlight.plan.trials import Tried, Workbench
from packlight.progress import SILENT, Progress

ROUNDS = 8
CLOSE = 1.15
"""Noise powers that differ by less than this factor (0.6 dB) are not worth another round."""

FIRST_GUESS = 1e-2
"""Noise power to begin with, 20 dB, where no trial tells a better one."""


@dataclass(frozen=True)
class Proposal:
    """A recipe that the knapsack proposed, as measured, and the bytes it was predicted to take."""

    tried: Tried
    predicted_bytes: float


def search_mixed(
    bench: Workbench,
    table: Table,
    base: Tried,
    limits: Limits,
    minimise: Resource,
    *,
    packed: bool = False,
    refit: bool = False,
    known: tuple[Tried, ...] = (),
    seconds: float = 120.0,
    progress: Progress = SILENT,
) -> list[Proposal]:
    """Recipes with a choice for each layer, all measured, in the order they were proposed.

    limits: drop absolute, size in bytes (of the packed file where `packed`), latency as a ratio.
    minimise: "bytes" or "ms" where the drop has a limit: the largest noise that keeps it is
    found by bisection. Without one the loss is minimised within the other limits.
    refit: round layer after layer, each to what the earlier ones leave.
    known: what was measured before, for a first guess.
    """
    found: list[Proposal] = []
    seen: set[tuple[int, ...]] = set()
    begun = time.monotonic()
    low, high = 0.0, math.inf  # noise powers that kept the drop, and that did not
    aim = _first_aim(known, limits)
    rest = _rest(bench, table, base, packed)
    slack_bytes = slack_ms = 0.0
    progress.stage("choosing for each layer", ROUNDS)
    for number in range(ROUNDS):
        if number and time.monotonic() - begun > seconds:
            break
        max_loss = aim if limits.drop is not None else None
        max_bytes = None if limits.size is None else limits.size - rest - slack_bytes
        max_ms = _most_ms(table, base, limits, slack_ms)
        assignment = solve_knapsack(
            table.costs,
            minimise=minimise if limits.drop is not None else "loss",
            max_loss=max_loss,
            max_bytes=max_bytes,
            max_ms=max_ms,
            borders=table.borders,
            integer=table.integer,
        ) or nearest_feasible(
            table.costs,
            max_loss=max_loss,
            max_bytes=max_bytes,
            max_ms=max_ms,
            borders=table.borders,
            integer=table.integer,
        )
        if assignment is None or assignment.choices in seen:
            break
        seen.add(assignment.choices)
        recipe = replace(
            table.recipe(base.recipe, assignment.choices),
            sequential=refit,
            bias_correction=base.recipe.bias_correction or refit,
        )
        label = f"mixed {len(found) + 1}" + (", refitted in sequence" if refit else "")
        trial = bench.evaluate(recipe, label)
        if packed and limits.size is not None and not trial.failure:
            trial = bench.pack_trial(trial)
        if limits.latency is not None and not trial.failure and minimise == "ms":
            trial = bench.rank([trial], seconds=2.0)[0]
        found.append(Proposal(trial, assignment.bytes + rest))
        progress.step(label)
        if trial.failure:
            break
        fits = True
        if limits.size is not None:
            size = float(trial.packed_bytes or trial.size_bytes) if packed else trial.size_bytes
            slack_bytes = size - (assignment.bytes + rest)
            fits = size <= limits.size
        if trial.latency_ratio is not None and limits.latency is not None:
            fits &= trial.latency_ratio <= limits.latency
            slack_ms += _late(table, base, assignment, trial)
        if limits.drop is None:
            if fits:
                break
            continue
        if trial.drop <= limits.drop:
            low = max(low, assignment.loss)
        else:
            high = min(high, assignment.loss)
        if high / max(low, 1e-30) < CLOSE:
            break
        aim = _next_aim(low, high)
    return found


def _rest(bench: Workbench, table: Table, base: Tried, packed: bool) -> float:
    """Bytes of the base's file that are no layer's weights, as the table counts those."""
    held = 0.0
    for name, words, costs in zip(table.names, table.words, table.costs, strict=True):
        held += costs[words.index(base.recipe.choice(name))].bytes
    size = bench.pack_trial(base).packed_bytes if packed else base.size_bytes
    return max((size or 0) - held, 0.0)


def _first_aim(known: tuple[Tried, ...], limits: Limits) -> float:
    """A noise power that may just keep the drop: twice the largest that is known to."""
    if limits.drop is None:
        return FIRST_GUESS
    kept = [
        10 ** (-one.noise_db / 10)
        for one in known
        if one.metric is not None and one.drop <= limits.drop and math.isfinite(one.noise_db)
    ]
    return max([FIRST_GUESS / 4, *(2 * power for power in kept if power < 0.5)])


def _next_aim(low: float, high: float) -> float:
    if low == 0.0:
        return high / 8
    return low * 4 if math.isinf(high) else math.sqrt(low * high)


def _base_ms(table: Table, base: Tried) -> float:
    return sum(
        costs[words.index(base.recipe.choice(name))].ms
        for name, words, costs in zip(table.names, table.words, table.costs, strict=True)
    )


def _original_ms(base: Tried) -> float | None:
    if base.latency_ms is None or not base.latency_ratio:
        return None
    return base.latency_ms / base.latency_ratio


def _most_ms(table: Table, base: Tried, limits: Limits, slack_ms: float) -> float | None:
    """Milliseconds that the layers may take so that the whole keeps to the limit."""
    original = _original_ms(base)
    if limits.latency is None or original is None or base.latency_ms is None:
        return None
    return max(_base_ms(table, base) + limits.latency * original - base.latency_ms - slack_ms, 0.0)


def _late(table: Table, base: Tried, assignment: Assignment, trial: Tried) -> float:
    """Milliseconds by which a trial was slower than predicted."""
    if trial.latency_ms is None or base.latency_ms is None:
        return 0.0
    return (trial.latency_ms - base.latency_ms) - (assignment.ms - _base_ms(table, base))
