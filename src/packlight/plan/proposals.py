"""What goes from a model for a share of its multiplications or weights: solve, measure, correct.

The knapsack proposes; what it proposed is fitted, in short, and its loss measured, which tells
the losses of parts better for the next proposal. Of those measured the fastest is taken that is
nearly as faithful as the best: the share is the same, and only time is left to gain.

Losses of channels and of ranks do not add up either: resnet20 without half of its multiplications
kept 89.3 % by ranks alone and 88.5 % by the mixture that should have lost less (512 pictures). So
what goes alone, ranks alone, and both take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from packlight.errors import WrongUsage
from packlight.plan.allocation import Allocation, Part, allocate, learn_losses, spread_evenly
from packlight.plan.channels import measure_times, noise_of, reasons_pinned
from packlight.plan.cuts import Cuts
from packlight.plan.ground import OF_WORDS, Ground
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
    """An allocation with what was measured of it.

    time: the share of the latency saved. gains: whether its ranks, if any, are why: without them
    it was no faster.
    """

    allocation: Allocation
    loss: float
    time: float | None
    gains: bool = True


def choose_cuts(
    ground: Ground,
    parts: Sequence[Part],
    share: float,
    progress: Progress,
    *,
    rounds: int = ROUNDS,
) -> Cuts:
    """What goes or is taken apart, so that this share is saved (of what, the ground says).

    parts: from `measure_parts`. Raises WrongUsage where so much cannot go.
    """
    found = propose(ground, parts, share, progress, rounds=rounds)
    found = [one for one in found if one.gains] or found
    least = min(one.loss for one in found)
    good = [one for one in found if one.loss <= NEARLY * least]
    chosen = min(good, key=lambda one: (-(one.time or 0.0), one.loss))
    return chosen.allocation.cuts


def know_time(parts: Sequence[Part]) -> bool:
    """Whether any part is known to save time: else loss and multiplications alone decide."""
    return any(option.time for options in parts for option in options)


def by_time(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same parts, for a share of the time."""
    return tuple(tuple(replace(one, share=max(one.time, 0.0)) for one in row) for row in parts)


def propose(
    ground: Ground,
    parts: Sequence[Part],
    share: float,
    progress: Progress,
    *,
    rounds: int = ROUNDS,
) -> list[Proposal]:
    """Allocations that save this share, all measured, in the order they were proposed."""
    saved = _savings(ground)
    if allocate(parts, share, saved) is None:
        most = saved(_most(parts))
        raise WrongUsage(
            f"--prune {share:.0%}: at most {most:.0%} of this model's {OF_WORDS[ground.of]} can be "
            f"removed ({reasons_pinned(ground.groups)}); ask for less."
        )
    timed = know_time(parts)
    ways = _ways(parts)
    turns = dict.fromkeys(ways, 0)
    progress.stage("measuring proposals", rounds)
    measure = noise_of(ground)
    found: list[Proposal] = []
    while ways and len(found) < rounds:
        way = ways.pop(0)
        seen = [(one.allocation.choices, one.loss) for one in found]
        # Begin with what one would do who knows nothing: no answer should be worse than that.
        first = not turns[way] and (way is not _any or not found)
        known = spread_evenly(parts) if first else learn_losses(parts, seen)
        factor = FACTORS[turns[way] % len(FACTORS)] if timed and not first else 1.0
        forbidden = [choices for choices, _ in seen]
        proposed = _propose(known, share, saved, factor, forbidden, way)
        hope = HOPELESS * min((one.loss for one in found), default=np.inf)
        if proposed is None or (not first and proposed.loss > hope):
            continue  # it promises nothing more
        ways.append(way)
        turns[way] += 1
        proposed = replace(proposed, cuts=ground.possible(proposed.cuts))
        found.append(_measured(ground, proposed, measure, timed))
        progress.step(f"noise {found[-1].loss:.4f}")
    return found


def _savings(ground: Ground) -> Callable[[Cuts], float]:
    """What gives the share that cuts save: counted, or by the clock."""

    @cache
    def saved(cuts: Cuts) -> float:
        cuts = ground.possible(cuts)
        times = measure_times(ground, [cuts]) if ground.of == "time" else None
        return ground.saved(cuts) if times is None else times[0]

    return saved


def _measured(
    ground: Ground, proposed: Allocation, measure: Callable[[Cuts], float], timed: bool
) -> Proposal:
    cuts = proposed.cuts
    both = [cuts, cuts.whole] if cuts.ranks else [cuts]
    times = measure_times(ground, both) if timed or cuts.ranks else None
    gains = times is None or not cuts.ranks or times[0] > times[1]
    return Proposal(proposed, measure(cuts), times[0] if times and timed else None, gains)


def _any(cuts: Cuts) -> bool:
    return True


def _gone(cuts: Cuts) -> bool:
    return not cuts.ranks


def _apart(cuts: Cuts) -> bool:
    return cuts.whole == Cuts()


def _ways(parts: Sequence[Part]) -> list[Callable[[Cuts], bool]]:
    """Which options may be taken together: where there are two kinds, each alone, too."""
    cuts = [one.cuts for options in parts for one in options]
    mixed = any(one.ranks for one in cuts) and any(one.whole != Cuts() for one in cuts)
    return [_gone, _apart, _any] if mixed else [_any]


def _propose(
    parts: Sequence[Part],
    share: float,
    saved: Callable[[Cuts], float],
    factor: float,
    forbidden: Sequence[tuple[int, ...]],
    way: Callable[[Cuts], bool],
) -> Allocation | None:
    """The fastest within a factor of the least loss, among those that were not proposed yet."""
    best = allocate(parts, share, saved, forbidden=forbidden, allowed=way)
    if best is None or factor == 1.0:
        return best
    within = factor * best.loss
    fast = allocate(parts, share, saved, within=within, forbidden=forbidden, allowed=way)
    return fast or best


def _most(parts: Sequence[Part]) -> Cuts:
    cuts = Cuts()
    for options in parts:
        cuts = cuts | max(options, key=lambda one: one.share).cuts
    return cuts
