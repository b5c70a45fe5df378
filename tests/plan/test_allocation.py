"""What the knapsack gives is the best of all there is, and its losses learn from measurements."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.plan.allocation import (
    CLOSE,
    MOST_OPTIONS,
    Allocation,
    Option,
    Part,
    allocate,
    combine,
    learn_losses,
    spread_evenly,
)
from packlight.plan.cuts import Cuts
from packlight.ranks import Rank

NOTHING = Option(Cuts(), 0.0, 0.0, 0.0)


def part(number: int, rows: list[tuple[float, float, float]]) -> Part:
    """An untouched part with options of (loss, macs, time)."""
    cuts = [Cuts(((f"g{number}", k + 1),)) for k in range(len(rows))]
    return (NOTHING, *(Option(cut, *row) for cut, row in zip(cuts, rows, strict=True)))


def sums(parts: tuple[Part, ...], choices: tuple[int, ...]) -> np.ndarray:
    chosen = [options[choice] for options, choice in zip(parts, choices, strict=True)]
    return np.array([(one.loss, one.share, one.time) for one in chosen]).sum(axis=0)


def every(parts: tuple[Part, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(options)) for options in parts)))


def saved_of(parts: tuple[Part, ...]):
    """What cuts save when the savings of parts add up."""
    each = {one.cuts.keep: one.share for options in parts for one in options}
    return lambda cuts: sum(each[(item,)] for item in cuts.keep)


numbers = st.integers(1, 40).map(lambda k: k / 200)
problems = st.lists(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=3), min_size=1, max_size=4
).map(lambda rows: tuple(part(number, row) for number, row in enumerate(rows)))


@given(problems, st.floats(0.02, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_least_loss_of_all_that_save_enough(parts: tuple[Part, ...], share: float) -> None:
    found = allocate(parts, share, saved_of(parts))
    totals = np.array([sums(parts, choices) for choices in every(parts)])
    enough = totals[totals[:, 1] >= share - 1e-9]
    if not len(enough):
        assert found is None or found.share >= share - CLOSE
        return
    assert found is not None and found.share >= share - CLOSE
    nearly = totals[totals[:, 1] >= share - CLOSE - 1e-9]
    assert nearly[:, 0].min() - 1e-9 <= found.loss <= enough[:, 0].min() + 1e-9
    loss, macs, time = sums(parts, found.choices)
    assert (found.loss, found.share, found.time) == pytest.approx((loss, macs, time))


@given(problems, st.floats(0.02, 0.3), st.floats(1.0, 2.0))
@settings(max_examples=60, deadline=None)
def test_the_fastest_within_a_loss(parts: tuple[Part, ...], share: float, factor: float) -> None:
    best = allocate(parts, share, saved_of(parts))
    if best is None:
        return
    within = factor * best.loss * (1 + 1e-9)
    found = allocate(parts, share, saved_of(parts), within=within)
    totals = np.array([sums(parts, choices) for choices in every(parts)])
    kept = totals[(totals[:, 1] >= share - 1e-9) & (totals[:, 0] <= within)]
    if not len(kept):
        return  # the best saves a hair less than the share
    assert found is not None and found.loss <= within * (1 + 1e-9)
    assert found.time >= kept[:, 2].max() - 1e-9


def test_what_two_parts_promise_together_is_counted() -> None:
    """Each saves 0.3 alone, both 0.4: to save 0.5 the third must go as well."""
    parts = (part(0, [(0.1, 0.3, 0)]), part(1, [(0.1, 0.3, 0)]), part(2, [(0.5, 0.2, 0)]))

    def saved(cuts: Cuts) -> float:
        names = {name for name, _ in cuts.keep}
        return (
            0.3 * len(names & {"g0", "g1"}) - 0.2 * ({"g0", "g1"} <= names) + 0.2 * ("g2" in names)
        )

    found = allocate(parts, 0.5, saved)
    assert found is not None and found.share >= 0.5 - CLOSE and found.choices[2] == 1


def test_forbidden_choices_are_not_proposed_again() -> None:
    parts = (part(0, [(0.1, 0.3, 0)]), part(1, [(0.2, 0.3, 0)]))
    first = allocate(parts, 0.2, saved_of(parts))
    assert isinstance(first, Allocation) and first.choices == (1, 0)
    second = allocate(parts, 0.2, saved_of(parts), forbidden=[(1, 0)])
    assert second is not None and second.choices == (0, 1)
    assert allocate(parts, 0.9, saved_of(parts)) is None


def test_a_branch_goes_or_keeps_its_groups() -> None:
    groups = [part(0, [(0.1, 0.2, 0.1)]), part(1, [(0.3, 0.1, 0.2)])]
    branch = Option(Cuts(removed=("b",)), 0.5, 0.6, 0.7)
    options = combine(groups, branch)
    assert options[0] == NOTHING and options[-1] == branch and len(options) == 5
    both = options[3]
    assert both.cuts == Cuts((("g0", 1), ("g1", 1)))
    assert (both.loss, both.share, both.time) == pytest.approx((0.4, 0.3, 0.3))
    many = [part(k, [(0.1 * j, 0.1 * j, 0.1 * j) for j in range(1, 6)]) for k in range(4)]
    thinned = combine(many, branch)
    assert len(thinned) <= MOST_OPTIONS + 1 and thinned[0] == NOTHING
    assert max(one.share for one in thinned) == pytest.approx(2.0)  # the largest cuts stay


def test_spread_evenly_takes_the_same_share_of_all() -> None:
    row = [(0.0, k / 40, 0.0) for k in range(1, 5)]
    parts = tuple(part(k, [(loss * k, macs, 0.0) for loss, macs, _ in row]) for k in range(4))
    found = allocate(spread_evenly(parts), 0.2, saved_of(parts))
    assert found is not None and found.choices == (2, 2, 2, 2)


def test_losses_learn_which_part_was_missed_more_than_it_seemed() -> None:
    random = np.random.default_rng(0)
    parts = tuple(part(k, [(0.1, 0.1, 0.1), (0.3, 0.2, 0.2)]) for k in range(4))
    truth = np.array([1.0, 4.0, 1.0, 0.5])
    seen = []
    for _ in range(12):
        choices = tuple(int(c) for c in random.integers(0, 3, 4))
        loss = float(sum(truth[k] * parts[k][c].loss for k, c in enumerate(choices)))
        seen.append((choices, loss))
    learnt = learn_losses(parts, seen)
    factors = np.array([row[2].loss / old[2].loss for row, old in zip(learnt, parts, strict=True)])
    np.testing.assert_allclose(factors, truth, rtol=0.25)
    assert learn_losses(parts, []) == parts
    assert [one.share for one in learnt[1]] == [one.share for one in parts[1]]


def apart(number: int, rows: list[tuple[float, float, float]]) -> Part:
    """The same with ranks of a layer."""
    ranks = [Cuts(ranks=((f"l{number}", Rank("matrix", 9 - k)),)) for k in range(len(rows))]
    return (NOTHING, *(Option(cut, *row) for cut, row in zip(ranks, rows, strict=True)))


def test_ranks_of_a_part_learn_by_themselves() -> None:
    """What goes is missed 1000 times more than it seemed, ranks as much as it seemed."""
    row = [(0.1, 0.1, 0.1), (0.3, 0.2, 0.2)]
    parts = tuple(combine([part(k, row)], None, [apart(k, row)]) for k in range(3))
    assert [len(options) for options in parts] == [5, 5, 5]  # nothing, 2 counts, 2 ranks
    seen = [((1, 2, 1), 500.0), ((3, 4, 3), 0.5), ((2, 1, 1), 500.0), ((4, 3, 3), 0.5)]
    learnt = learn_losses(parts, seen)
    for old, new in zip(parts, learnt, strict=True):
        factors = [b.loss / a.loss for a, b in zip(old[1:], new[1:], strict=True)]
        assert factors == pytest.approx([1000, 1000, 1, 1], rel=0.05)


def test_a_branch_has_ranks_instead_of_channels() -> None:
    groups = [part(0, [(0.1, 0.2, 0.1)]), part(1, [(0.3, 0.1, 0.2)])]
    layers = [apart(0, [(0.1, 0.1, 0.1)]), apart(1, [(0.2, 0.1, 0.1)])]
    options = combine(groups, Option(Cuts(removed=("b",)), 0.5, 0.6, 0.7), layers)
    assert len(options) == 4 + 3 + 1 and options[0] == NOTHING
    assert all(not one.cuts.ranks or one.cuts.whole == Cuts() for one in options)
    assert options[6].loss == pytest.approx(0.3) and len(options[6].cuts.ranks) == 2


@given(problems, problems, st.floats(0.02, 0.3))
@settings(max_examples=40, deadline=None)
def test_only_what_is_allowed_is_taken(
    some: tuple[Part, ...], others: tuple[Part, ...], share: float
) -> None:
    """As if the other parts were not there; choices still count all options."""
    both = (*some, *(apart(k, [(o.loss, o.share, o.time) for o in row[1:]]) for k, row in
                     enumerate(others)))  # fmt: skip
    alone = allocate(some, share, saved_of(some))
    found = allocate(both, share, saved_of(some), allowed=lambda cuts: not cuts.ranks)
    assert (found is None) == (alone is None)
    if found is not None and alone is not None:
        assert found.choices == (*alone.choices, *(0 for _ in others))
        barred = [found.choices]
        again = allocate(
            both, share, saved_of(some), allowed=lambda cuts: not cuts.ranks, forbidden=barred
        )
        assert again is None or again.choices != found.choices
