"""A choice for each layer under the budget: solve, apply, measure, correct, and again.

A knapsack over the table of candidates proposes a whole recipe; its file is made and measured,
and the difference between what was predicted and what came out corrects the next budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from packlight.plan.exchange import Assignment, Resource
from packlight.plan.knapsack import nearest_feasible, solve_knapsack
from packlight.plan.solve import SLOWER, Limits
from packlight.plan.table import Table
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.progress import SILENT, Progress

ROUNDS = 8
REFITTED_ROUNDS = 4
"""Of proposals that are rounded layer after layer: each takes as long as all layers' passes, and
the first aim is good, since proposals without refitting came before."""

CLOSE = 1.15
"""Noise powers that differ by less than this factor (0.6 dB) are not worth another round."""

FULL = 0.99
"""A size limit that is used up to this share is used."""

FIRST_GUESS = 1e-2
"""Noise power to begin with, 20 dB, where no trial tells a better one."""

WRONG_SHARE = 0.25
"""Of answers that few bits changed, so many more were right before than after: measured on
resnet20 with weights of 2 to 4 bits, 0.05 to 0.3 where fewer than a tenth changed."""

_FAILURES = 3
"""So many files that do not run, and no more are made."""

_SKIPS = 20
"""So often may one assignment be the answer again before the search ends."""


@dataclass(frozen=True)
class Proposal:
    """A recipe that the knapsack proposed, as measured, and what was predicted of it.

    predicted_bytes: of the whole file. predicted_loss: noise power, as the table counts it.
    """

    tried: Tried
    predicted_bytes: float
    predicted_loss: float


def keeps_drop(one: Tried, limits: Limits) -> bool:
    """Whether a candidate keeps the drop, as far as so few samples tell.

    Of many candidates that lose something, some seem to lose little by luck alone. So more is
    asked than that the drop is small on these samples. Of a classifier with labels: the answers
    that changed, counted high by one standard error, times `WRONG_SHARE`; there are many more of
    them than of right ones lost, and so they tell it with less chance. Of other metrics: one half
    of the drop's interval must keep to the limit, unless nothing was lost.
    """
    if limits.drop is None:
        return True
    metric = one.metric
    if metric is None or one.drop > limits.drop:
        return False
    changed = None if metric.agreement is None else 1 - metric.agreement
    if changed is not None and not math.isclose(changed, metric.drop, abs_tol=1e-12):
        error = math.sqrt(changed * (1 - changed) / max(metric.samples, 1))
        return WRONG_SHARE * (changed + error) <= limits.drop
    return one.drop <= 0 or (one.drop + metric.drop_interval_95[1]) / 2 <= limits.drop


def search_mixed(
    bench: Workbench,
    table: Table,
    base: Tried,
    limits: Limits,
    minimise: Resource,
    *,
    packed: bool = False,
    refit: bool = False,
    known: Sequence[Tried] = (),
    before: Sequence[Proposal] = (),
    seconds: float = 120.0,
    progress: Progress = SILENT,
) -> list[Proposal]:
    """Recipes with a choice for each layer, all measured, in the order they were proposed.

    limits: drop absolute, size in bytes (of the packed file where `packed`), latency as a ratio.
    minimise: "bytes" or "ms" where the drop has a limit: the largest noise that keeps it is
    found by bisection, and the limit on what is minimised plays no part, since where it cannot
    be kept the least is nearest. Where that happens the most faithful within it is proposed
    too. Without a limit on the drop the loss is minimised within the others.
    refit: round layer after layer, each to what the earlier ones leave.
    known, before: what was measured, and proposed without refitting, before: for a first guess.
    """
    run = _Run(bench, table, base, limits, packed, refit, progress)
    deadline = time.monotonic() + seconds
    rounds = REFITTED_ROUNDS if refit else ROUNDS
    progress.stage("choosing for each layer", rounds)
    if limits.drop is None:
        _fill(run, deadline, rounds=rounds)
        return run.found
    _bisect(run, minimise, _first_aim(known, before, limits), deadline, rounds=rounds)
    kept = [one for one in run.found if keeps_drop(one.tried, limits)]
    limited = limits.size if minimise == "bytes" else limits.latency
    if limited is not None and not any(run.fits(one.tried) for one in kept):
        _fill(run, deadline, rounds=2)
    return run.found


@dataclass
class _Run:
    """What one search knows: the question, what was proposed, and what the table is off by."""

    bench: Workbench
    table: Table
    base: Tried
    limits: Limits
    packed: bool
    refit: bool
    progress: Progress
    found: list[Proposal] = field(default_factory=list)
    seen: dict[tuple[int, ...], Proposal] = field(default_factory=dict)
    failed: set[tuple[int, ...]] = field(default_factory=set)
    more_bytes: float = 0.0
    more_ms: float = 0.0

    def __post_init__(self) -> None:
        self.rest = _rest(self.bench, self.table, self.base, self.packed)

    def propose(self, minimise: Resource, max_loss: float | None = None) -> Assignment | None:
        """The best assignment within the budgets as they are known now, or the nearest."""
        size = self.limits.size
        max_bytes = None if size is None else size - self.rest - self.more_bytes
        return _propose(
            self.table,
            minimise,
            max_loss=max_loss,
            max_bytes=None if minimise == "bytes" else max_bytes,
            max_ms=None if minimise == "ms" else _most_ms(self),
            forbidden=self.failed,
        )

    def measure(self, assignment: Assignment) -> Proposal:
        """Make and measure what was proposed; what was predicted wrongly corrects the budgets."""
        recipe = replace(
            self.table.recipe(self.base.recipe, assignment.choices),
            sequential=self.refit,
            bias_correction=self.base.recipe.bias_correction or self.refit,
        )
        label = f"mixed {len(self.found) + 1}" + (", refitted in sequence" if self.refit else "")
        trial = self.bench.evaluate(recipe, label)
        if self.packed and self.limits.size is not None and not trial.failure:
            trial = self.bench.pack_trial(trial)
        asked = self.limits.latency is not None and self.limits.latency < 1
        if asked and not trial.failure and trial.latency_ratio is None:
            trial = self.bench.rank([trial], seconds=2.0)[0]
        predicted = assignment.bytes + self.rest
        proposal = Proposal(trial, predicted, assignment.loss)
        self.found.append(proposal)
        self.seen[assignment.choices] = proposal
        self.progress.step(label)
        if trial.failure:
            self.failed.add(assignment.choices)
        else:
            if not self.packed or trial.packed_bytes is not None:
                self.more_bytes = self.size_of(trial) - predicted
            self.more_ms = _late(self, assignment, trial)
        return proposal

    def size_of(self, one: Tried) -> float:
        """Bytes as the limit counts them."""
        return float(one.packed_bytes or one.size_bytes) if self.packed else one.size_bytes

    def fits(self, one: Tried) -> bool:
        """Whether a candidate keeps to the limits on size and latency, as far as measured."""
        limits = self.limits
        small = limits.size is None or self.size_of(one) <= limits.size
        slow = limits.latency is not None and (one.latency_ratio or 0.0) > limits.latency
        return not one.failure and small and not slow

    def over(self, rounds: int, deadline: float) -> bool:
        """Whether rounds, time or patience with files that do not run are at an end."""
        late = bool(self.found) and time.monotonic() > deadline
        return rounds <= 0 or late or len(self.failed) >= _FAILURES


def _bisect(run: _Run, minimise: Resource, aim: float, deadline: float, *, rounds: int) -> None:
    """Find the largest noise that keeps the drop.

    An assignment is the answer for all aims from its own loss to the one it was found with. So
    one that keeps the drop shows that such an aim does, and one that does not shows that no aim
    from its own loss on does; where a later aim gives it again, nothing is measured.
    """
    low, high, falls = 0.0, math.inf, 0
    most = sum(max(cost.loss for cost in costs) for costs in run.table.costs)
    for _ in range(rounds + _SKIPS):
        if run.over(rounds - len(run.found), deadline):
            return
        assignment = run.propose(minimise, aim)
        if assignment is None:
            return
        known = run.seen.get(assignment.choices)
        one = known or run.measure(assignment)
        if one.tried.failure:
            continue  # it is forbidden from now on: the same aim has another answer
        if keeps_drop(one.tried, run.limits):
            low = max(low, aim, assignment.loss)
        elif known and assignment.loss > aim:
            return  # nothing is as faithful as that
        else:
            high = min(high, assignment.loss)
        if low >= min(high, most) or high <= low * CLOSE:
            return
        falls = falls + 1 if low == 0.0 else 0
        aim = _next_aim(low, high, falls)


def _fill(run: _Run, deadline: float, *, rounds: int) -> None:
    """Find the most faithful assignment within the other limits, and use them up."""
    last = len(run.found) + rounds
    while not run.over(last - len(run.found), deadline):
        assignment = run.propose("loss")
        if assignment is None or assignment.choices in run.seen:
            return
        one = run.measure(assignment).tried
        size = run.limits.size
        if run.fits(one) and (size is None or run.size_of(one) >= FULL * size):
            return


def _propose(
    table: Table,
    minimise: Resource,
    *,
    max_loss: float | None,
    max_bytes: float | None,
    max_ms: float | None,
    forbidden: Collection[tuple[int, ...]],
) -> Assignment | None:
    """The best assignment within budgets; where there is none, the nearest to them."""

    def solve(least: Resource, ms: float | None) -> Assignment | None:
        return solve_knapsack(
            table.costs,
            minimise=least,
            max_loss=max_loss,
            max_bytes=max_bytes,
            max_ms=ms,
            borders=table.borders,
            integer=table.integer,
            forbidden=forbidden,
        )

    found = solve(minimise, max_ms)
    if found is None and max_ms is not None:
        # Times of single layers are rough: near the fastest there is still much to choose.
        fastest = solve("ms", None)
        found = None if fastest is None else solve(minimise, SLOWER * fastest.ms)
    return found or nearest_feasible(
        table.costs,
        max_loss=max_loss,
        max_bytes=max_bytes,
        max_ms=max_ms,
        borders=table.borders,
        integer=table.integer,
        forbidden=forbidden,
    )


def _rest(bench: Workbench, table: Table, base: Tried, packed: bool) -> float:
    """Bytes of the base's file that are no layer's weights, as the table counts those."""
    held = 0.0
    for name, words, costs in zip(table.names, table.words, table.costs, strict=True):
        held += costs[words.index(base.recipe.choice(name))].bytes
    size = bench.pack_trial(base).packed_bytes if packed else base.size_bytes
    return (size or base.size_bytes) - held


def _first_aim(known: Sequence[Tried], before: Sequence[Proposal], limits: Limits) -> float:
    """A noise power that may just keep the drop: twice the largest that is known to.

    What was proposed before tells it in the table's own measure; where none of that kept the
    drop, the least noise that did not is the first to be tried again.
    """
    done = [one for one in before if not one.tried.failure]
    good = [one.predicted_loss for one in done if keeps_drop(one.tried, limits)]
    if good:
        return 2 * max(good)
    if done:
        return min(one.predicted_loss for one in done)
    kept = [10 ** (-one.noise_db / 10) for one in known if keeps_drop(one, limits)]
    return max([FIRST_GUESS / 4, *(2 * power for power in kept if 0 < power < 0.5)])


def _next_aim(low: float, high: float, falls: int) -> float:
    if low == 0.0:
        return float(high / 8**falls)
    return low * 4 if math.isinf(high) else math.sqrt(low * high)


def _base_ms(run: _Run) -> float:
    table, recipe = run.table, run.base.recipe
    return sum(
        costs[words.index(recipe.choice(name))].ms
        for name, words, costs in zip(table.names, table.words, table.costs, strict=True)
    )


def _most_ms(run: _Run) -> float | None:
    """Milliseconds that the layers may take so that the whole keeps to the limit."""
    base, ratio = run.base, run.limits.latency
    if ratio is None or base.latency_ms is None or not base.latency_ratio:
        return None
    # "Not slower than the original" is no wish: what no clock tells apart is allowed.
    whole = ratio * (SLOWER if ratio >= 1 else 1.0) * base.latency_ms / base.latency_ratio
    return max(_base_ms(run) + whole - base.latency_ms - run.more_ms, 0.0)


def _late(run: _Run, assignment: Assignment, trial: Tried) -> float:
    """Milliseconds by which a trial was slower than predicted."""
    if trial.latency_ms is None or run.base.latency_ms is None:
        return 0.0
    return (trial.latency_ms - run.base.latency_ms) - (assignment.ms - _base_ms(run))
