from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.plan.solve import TIE_LATENCY, TIE_SIZE, Limits, Option, choose, violation

sizes = st.integers(1, 1000).map(float)
ratios = st.floats(0.05, 20).map(lambda x: round(x, 2))
drops = st.floats(-0.1, 1).map(lambda x: round(x, 3))
noises = st.one_of(st.floats(-10, 120).map(lambda x: round(x, 1)), st.just(-math.inf))
options = st.builds(Option, size=sizes, latency=ratios, drop=drops, noise_db=noises)
failed = st.builds(
    Option,
    size=sizes,
    latency=st.just(math.inf),
    drop=st.just(math.inf),
    noise_db=st.just(-math.inf),
)
some = st.lists(st.one_of(options, failed), min_size=1, max_size=8)
limits = st.builds(
    Limits,
    drop=st.one_of(st.none(), drops.filter(lambda x: x >= 0)),
    size=st.one_of(st.none(), sizes),
    latency=st.one_of(st.none(), ratios),
)


def keeps_to(option: Option, limits: Limits) -> bool:
    """The rule, written out: no value above its limit."""
    return (
        (limits.drop is None or option.drop <= limits.drop)
        and (limits.size is None or option.size <= limits.size)
        and (limits.latency is None or option.latency <= limits.latency)
    )


def ranking(among: Sequence[Option], limits: Limits) -> Option:
    """The best of those that are allowed, by trying every one against every other."""
    if limits.drop is None:
        return sorted(among, key=lambda one: (-one.noise_db, one.latency, one.size))[0]
    for one in among:
        fast = [o for o in among if o.latency <= min(a.latency for a in among) * (1 + TIE_LATENCY)]
        small = [o for o in fast if o.size <= min(f.size for f in fast) * (1 + TIE_SIZE)]
        if one in small and all(
            (one.noise_db, -one.size) >= (other.noise_db, -other.size) for other in small
        ):
            return one
    raise AssertionError("one of them is always the best")


@given(some, limits)
def test_the_choice_keeps_to_the_limits_when_any_option_does(
    options: list[Option], limits: Limits
) -> None:
    chosen = options[choose(options, limits)]
    assert keeps_to(chosen, limits) == any(keeps_to(one, limits) for one in options)


@given(some, limits)
def test_the_choice_is_the_best_by_brute_force(options: list[Option], limits: Limits) -> None:
    allowed = [one for one in options if keeps_to(one, limits)]
    if allowed:
        chosen, best = options[choose(options, limits)], ranking(allowed, limits)
        if limits.drop is None:  # then drops do not count
            chosen, best = replace(chosen, drop=0.0), replace(best, drop=0.0)
        assert chosen == best


@given(some, limits)
def test_without_a_feasible_option_none_violates_less(
    options: list[Option], limits: Limits
) -> None:
    if not any(keeps_to(one, limits) for one in options):
        least = min(violation(one, limits) for one in options)
        chosen = options[choose(options, limits)]
        assert violation(chosen, limits) == least
        rivals = [one.drop for one in options if violation(one, limits) == least]
        assert chosen.drop == min(rivals)


@given(some, limits, st.integers(0, 2**32))
def test_the_order_of_the_options_does_not_matter(
    options: list[Option], limits: Limits, seed: int
) -> None:
    import random

    shuffled = random.Random(seed).sample(options, len(options))
    if any(keeps_to(one, limits) for one in options):
        one, other = shuffled[choose(shuffled, limits)], options[choose(options, limits)]
        if limits.drop is None:
            one, other = replace(one, drop=0.0), replace(other, drop=0.0)
        assert one == other


@given(options, limits)
def test_a_violation_is_zero_just_where_all_limits_are_kept(one: Option, limits: Limits) -> None:
    assert (violation(one, limits) == 0) == keeps_to(one, limits)


def test_an_option_that_failed_is_taken_only_without_another() -> None:
    broken = Option(size=1, latency=math.inf, drop=math.inf, noise_db=-math.inf)
    large = Option(size=900, latency=1.5, drop=0.5, noise_db=3)
    limits = Limits(drop=0.01, size=100, latency=1.0)
    assert choose([broken, large], limits) == 1
    assert choose([broken], limits) == 0


@pytest.mark.parametrize(
    ("others", "best"),
    [
        # (size, latency, drop, dB); the first option is 100 bytes, 0.50, 0.0, 40 dB
        ([(50, 0.60, 0, 40)], 0),  # the slower one may be smaller: fastest comes first
        ([(50, 0.51, 0, 40)], 1),  # within the noise of a clock: the smaller one
        ([(99, 0.50, 0, 30)], 0),  # as large, within 2 %: the more faithful one
        ([(101, 0.50, 0, 41)], 1),
        ([(50, 0.40, 0.02, 90)], 0),  # beyond the drop allowed
    ],
)
def test_fastest_then_smallest_then_most_faithful(
    others: list[tuple[float, ...]], best: int
) -> None:
    options = [Option(100, 0.50, 0.0, 40.0), *(Option(*other) for other in others)]
    assert choose(options, Limits(drop=0.01)) == best


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="nothing"):
        choose([], Limits())


def test_without_ties_the_fastest_wins_whatever_its_size() -> None:
    options = [Option(100, 0.500, 0.0, 30), Option(50, 0.505, 0.0, 30)]
    assert choose(options, Limits(drop=0.01)) == 1
    assert choose(options, Limits(drop=0.01), tie_latency=0.0) == 0
