from __future__ import annotations

import numpy as np
import pytest

from packlight.measure.outputs import Comparison, OutputRecord, add_to_comparison
from packlight.proof.tolerance import OutputPromise, compare_runs, promise_output

PROMISE = OutputPromise("y", "float32", True, 10.0, 0.0, 0.5, 0.0, 0.1)


def record(*outputs: np.ndarray) -> OutputRecord:
    found = Comparison()
    for one in outputs:
        found = add_to_comparison(found, {"y": one}, {"y": one}, rows=len(one))
    return found.outputs[0]


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("spread", "moved", "tolerance"),
    [
        (0.0, 0.0, 0.01),  # scale 10: a thousandth, whatever was measured
        (0.0, 0.05, 0.05),  # what compressing moved
        (0.0, 3.0, 0.1),  # but no more than a hundredth of the range
        (0.2, 0.05, 0.8),  # four times what two ways of running differ by
    ],
)
def test_the_rule_in_closed_form(spread: float, moved: float, tolerance: float) -> None:
    compressed = floats(-4.0, 6.0, 1.0)
    found = promise_output(
        record(compressed),
        [compressed],
        [compressed + np.float32([0, 0, spread])],
        [compressed + np.float32([0, 0, -moved])],
        [compressed],
    )
    assert found.scale == 10.0
    assert found.spread == pytest.approx(spread, abs=1e-6)
    assert found.tolerance == pytest.approx(tolerance, rel=1e-5)
    assert found.original_tolerance == pytest.approx(max(4 * moved, 0.01), rel=1e-3)


def test_without_a_second_way_of_running_the_rest_of_the_rule_holds() -> None:
    y = floats(0.0, 5.0)
    found = promise_output(record(y), [y], [], [y], [])
    assert (found.spread, found.tolerance) == (0.0, pytest.approx(0.005))


def test_integers_are_held_by_the_share_that_differs() -> None:
    y = np.array([[1, 2, 3, 4]], np.int64)
    other = np.array([[1, 2, 3, 5]], np.int64)
    exact = promise_output(record(y), [y], [y], [y], [y])
    assert (exact.tolerance, exact.classes) == (0.0, False)
    assert not compare_runs(exact, [(y, other)]).within
    loose = promise_output(record(y), [y], [other], [y], [y])
    assert loose.tolerance == 1.0
    assert compare_runs(loose, [(y, other)]).within


def test_outputs_within_and_beyond_the_tolerance() -> None:
    y = floats(0.0, 3.0, 9.0)
    assert compare_runs(PROMISE, [(y, y)]).identical
    near = compare_runs(PROMISE, [(y, y), (y, y + np.float32(0.4))])
    assert near.within and not near.identical
    assert (near.classes, near.same_class) == (2, 2)
    assert near.share == pytest.approx(0.04)
    assert not compare_runs(PROMISE, [(y, y + np.float32(0.6))]).within
    assert not compare_runs(PROMISE, [(y, y + np.float32(0.4))], of_original=True).within


def test_another_class_is_found_even_within_the_tolerance_of_values() -> None:
    clear, tie = floats(0.0, 4.0, 5.1), floats(0.0, 4.0, 4.9)
    found = compare_runs(PROMISE, [(clear, floats(0.0, 4.6, 4.59))])
    assert (found.same_class, found.near_ties, found.within) == (0, 0, False)
    found = compare_runs(PROMISE, [(tie, floats(0.0, 4.45, 4.42))])
    assert (found.same_class, found.near_ties, found.within) == (0, 1, True)


@pytest.mark.parametrize(
    "other",
    [
        floats(0.0, np.nan, 9.0),
        floats(0.0, np.inf, 9.0),
        floats(0.0, 3.0),
        floats(0.0, 3.0, 9.0).astype(np.float64),
    ],
)
def test_what_is_not_finite_or_of_another_shape_is_found(other: np.ndarray) -> None:
    found = compare_runs(PROMISE, [(floats(0.0, 3.0, 9.0), other)])
    assert found.misplaced and not found.within


def test_promised_nan_and_infinity_are_to_come_again() -> None:
    y = floats(np.nan, np.inf, -np.inf)
    assert compare_runs(PROMISE, [(y, y)]).within
    assert compare_runs(PROMISE, [(y, -y)]).misplaced
