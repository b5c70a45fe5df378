"""What goes from a model for a share of its multiply-accumulates: solve, measure, correct.

The knapsack proposes; what it proposed is fitted, in short, and its loss measured, which tells
the losses of parts better for the next proposal. Of those measured the fastest is taken that is
nearly as faithful as the best: the multiplications are the same, and only time is left to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from packlight.errors import WrongUsage
from packlight.plan.allocation import Allocation, Part, allocate, learn_losses, spread_evenly
from packlight.plan.channels import Ground, measure_times, noise_of, reasons_pinned
from packlight.plan.cuts import Cuts
from packlight.progress import Progress

FACTORS = (1.1, 1.0)
"""The fastest is proposed of what loses no more than so many times the least."""

ROUNDS = 8
"""Proposals, each with losses corrected by all before."""

NEARLY = 1.1
"""Noise powers that differ by less than this factor (0.4 dB) are nearly the same: on resnet20 a
factor of 1.25 was 1.6 points of accuracy."""

HOPELESS = 2.0
"""No more is proposed once so many times the best measured loss is expected."""


@dataclass(frozen=True)
class Proposal:
    """An allocation with what was measured of it. time: the share of the latency saved."""

    allocation: Allocation
    loss: float
    time: float | None


def choose_cuts(
    ground: Ground,
    parts: Sequence[Part],
    share: float,
    progress: Progress,
    *,
    rounds: int = ROUNDS,
) -> Cuts:
    """What goes, so that this share of the multiply-accumulates does.

    parts: from `measure_parts`. Raises WrongUsage where so much cannot go.
    """
    found = propose(ground, parts, share, progress, rounds=rounds)
    least = min(one.loss for one in found)
    good = [one for one in found if one.loss <= NEARLY * least]
    chosen = min(good, key=lambda one: (-(one.time or 0.0), one.loss))
    return chosen.allocation.cuts


def know_time(parts: Sequence[Part]) -> bool:
    """Whether any part is known to save time: else loss and multiplications alone decide."""
    return any(option.time for options in parts for option in options)


def propose(
    ground: Ground,
    parts: Sequence[Part],
    share: float,
    progress: Progress,
    *,
    rounds: int = ROUNDS,
) -> list[Proposal]:
    """Allocations that save this share, all measured, in the order they were proposed."""
    total = ground.total

    def saved(cuts: Cuts) -> float:
        return 1 - ground.macs_left(cuts) / total

    faithful = allocate(parts, share, saved)
    if faithful is None:
        most = saved(_most(parts))
        raise WrongUsage(
            f"--prune {share:.0%}: at most {most:.0%} of this model's multiply-accumulates can be "
            f"removed ({reasons_pinned(ground.groups)}); ask for less."
        )
    timed = know_time(parts)
    progress.stage("measuring proposals", rounds)
    measure = noise_of(ground)
    found: list[Proposal] = []
    for number in range(rounds):
        seen = [(one.allocation.choices, one.loss) for one in found]
        # Begin with what one would do who knows nothing: no answer should be worse than that.
        known = learn_losses(parts, seen) if number else spread_evenly(parts)
        factor = FACTORS[number % len(FACTORS)] if timed and number else 1.0
        proposed = _propose(known, share, saved, factor, [choices for choices, _ in seen])
        hope = HOPELESS * min((one.loss for one in found), default=np.inf)
        if proposed is None or (number and proposed.loss > hope):
            break
        times = measure_times(ground, [proposed.cuts]) if timed else None
        loss = measure(proposed.cuts)
        found.append(Proposal(proposed, loss, None if times is None else times[0]))
        progress.step(f"noise {loss:.4f}")
    return found


def _propose(
    parts: Sequence[Part],
    share: float,
    saved: Callable[[Cuts], float],
    factor: float,
    forbidden: Sequence[tuple[int, ...]],
) -> Allocation | None:
    """The fastest within a factor of the least loss, among those that were not proposed yet."""
    best = allocate(parts, share, saved, forbidden=forbidden)
    if best is None or factor == 1.0:
        return best
    within = factor * best.loss
    return allocate(parts, share, saved, within=within, forbidden=forbidden) or best


def _most(parts: Sequence[Part]) -> Cuts:
    cuts = Cuts()
    for options in parts:
        cuts = cuts | max(options, key=lambda one: one.macs).cuts
    return cuts
