from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.plan.speed import slow_in_integers


def times(gains: list[float]) -> tuple[list[str], dict[str, float], dict[str, float]]:
    names = [f"l{number}" for number in range(len(gains))]
    return names, dict.fromkeys(names, 10.0), {n: 10 + g for n, g in zip(names, gains, strict=True)}


def test_a_stretch_is_as_long_as_it_gains() -> None:
    options = slow_in_integers(*times([3, -1, 2, -4, -4, 1]))
    assert options["first 3 layers float"] == ("l0", "l1", "l2")
    assert options["layers that are slower in integers float"] == ("l0", "l2", "l5")
    assert not any("last" in label and "first" not in label for label in options)


@pytest.mark.parametrize("gains", [[-1.0, -2.0, -3.0], [], [-1.0]])
def test_where_integers_are_faster_nothing_is_offered(gains: list[float]) -> None:
    assert slow_in_integers(*times(gains)) == {}


def test_unknown_times_count_as_equal() -> None:
    names, floats, _ = times([0, 0, 0])
    assert slow_in_integers(names, floats, {}) == {}


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_stretches_are_the_best_from_their_end_and_never_all(gains: list[float]) -> None:
    names, floats, integers = times(gains)
    gain = {name: integers[name] - floats[name] for name in names}
    for label, kept in slow_in_integers(names, floats, integers).items():
        assert 0 < len(kept) < len(names)
        if label.startswith("first") and "last" not in label:
            best = max(itertools.accumulate(gain[name] for name in names))
            assert sum(gain[name] for name in kept) == pytest.approx(best, abs=1e-9)
