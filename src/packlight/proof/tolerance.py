"""How far a file's outputs may be from those that were promised, on another machine.

The same file gives other last digits elsewhere: another processor (with VNNI or without, ARM),
a browser, a graphics card. Where it computes in integers, a last digit may push a value over
the edge to the next code, and the outputs move by what that code is worth. How much is
measured where the file is made: it is run twice, by the kernels that this processor has and
as it is written, one operator after another in floats, as a runtime without them does. With

    spread    largest difference of the two, over held-out samples
    moved     largest difference from the original's outputs
    scale     range of the output (largest - smallest value)

an output may differ by

    max(4 spread, min(moved, scale / 100), scale / 1000)

: four times what was seen (few samples don't show the largest), or by as much as compressing
moved it, though by no more than a hundredth of its range, or by a thousandth, since floats
alone are summed in another order elsewhere. Where an output ranks classes, the first class must
be the same, unless it led the second by less than twice the tolerance. Integers (and bits of
types that NumPy lacks) count the share of elements that differ instead: four times the share
that differed between the two, which as a rule is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.measure.outputs import OutputRecord

Array = NDArray[Any]
Run = Mapping[str, Array]
"""The outputs of one run, by name."""

_SAFETY = 4.0
_MOST_MOVED = 0.01
_LEAST = 0.001


@dataclass(frozen=True)
class OutputPromise:
    """What is promised of one output; of floats in its own unit, of integers as a share.

    classes: its largest entry is the answer. scale: its range (0 for integers). spread,
    original_spread: largest difference between two ways of running the compressed file, and the
    original. tolerance, original_tolerance: what they may differ by elsewhere.
    """

    name: str
    dtype: str
    classes: bool
    scale: float
    spread: float
    tolerance: float
    original_spread: float
    original_tolerance: float


@dataclass(frozen=True)
class Difference:
    """How far runs are from those that were promised, output by output the worst.

    largest: in the unit of the promise. share: largest of the output's range (of integers: of
    their count). same_class: samples with the same first class, of `classes` that were compared.
    near_ties: with another one, where the promised one hardly led. misplaced: shapes, types or
    places of NaN are others. identical: bit for bit.
    """

    name: str
    largest: float = 0.0
    share: float = 0.0
    tolerance: float = 0.0
    classes: int = 0
    same_class: int = 0
    near_ties: int = 0
    misplaced: bool = False
    identical: bool = True

    @property
    def within(self) -> bool:
        """Whether the promise is kept."""
        kept = not self.misplaced and self.largest <= self.tolerance
        return kept and self.same_class + self.near_ties == self.classes


def promise_output(
    record: OutputRecord,
    compressed: Sequence[Array],
    written: Sequence[Array],
    original: Sequence[Array],
    original_written: Sequence[Array],
) -> OutputPromise:
    """Derive what is promised of an output from runs of the same samples.

    record: of the output, from comparing both files. written: outputs of the same file, run as it
    is written (empty where that could not be done).
    """
    name, dtype = record.name, str(compressed[0].dtype)
    spread = _largest(compressed, written)
    original_spread = _largest(original, original_written)
    if not record.floating:
        tolerances = (min(_SAFETY * spread, 1.0), min(_SAFETY * original_spread, 1.0))
        return OutputPromise(
            name, dtype, False, 0.0, spread, tolerances[0], original_spread, tolerances[1]
        )
    scale = _scale(compressed)
    moved = _largest(original, compressed)
    return OutputPromise(
        name,
        dtype,
        record.looks_like_scores,
        scale,
        spread,
        max(_SAFETY * spread, min(moved, _MOST_MOVED * scale), _LEAST * scale),
        original_spread,
        max(_SAFETY * original_spread, _LEAST * _scale(original)),
    )


def compare_runs(
    promise: OutputPromise, pairs: Iterable[tuple[Array, Array]], *, of_original: bool = False
) -> Difference:
    """Hold one output of each run against what was promised: pairs of (promised, found).

    of_original: the runs are the original's.
    """
    tolerance = promise.original_tolerance if of_original else promise.tolerance
    largest, classes, same, ties = 0.0, 0, 0, 0
    misplaced, identical = False, True
    for promised, found in pairs:
        if promised.shape != found.shape or promised.dtype != found.dtype:
            misplaced, identical = True, False
            continue
        identical = identical and promised.tobytes() == found.tobytes()
        difference = _difference(promised, found)
        if difference is None:
            misplaced = True
            continue
        largest = max(largest, difference)
        if promise.classes and promised.ndim >= 2 and promised.size:
            rows = promised.reshape(len(promised), -1).astype(np.float64)
            others = found.reshape(len(found), -1).astype(np.float64)
            equal = rows.argmax(axis=1) == others.argmax(axis=1)
            leads = _leads(rows)
            classes += len(rows)
            same += int(equal.sum())
            ties += int((~equal & (leads <= 2 * tolerance)).sum())
    share = largest / promise.scale if promise.scale > 0 else largest
    return Difference(
        promise.name, largest, share, tolerance, classes, same, ties, misplaced, identical
    )


def _leads(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the first class of each row leads the second: [n]."""
    if rows.shape[1] < 2:
        return np.full(len(rows), np.inf)
    two = np.partition(rows, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def _largest(one: Sequence[Array], other: Sequence[Array]) -> float:
    """Largest difference of runs where both are finite and of one shape; 0 where none is."""
    found = [
        _difference(a, b, strict=False)
        for a, b in zip(one, other, strict=False)
        if a.shape == b.shape and a.dtype == b.dtype
    ]
    return max((value for value in found if value is not None), default=0.0)


def _difference(one: Array, other: Array, *, strict: bool = True) -> float | None:
    """Largest |one - other| of floats, the share of unequal elements of others.

    strict: None where NaN or infinity are not at the same places.
    """
    if not one.size:
        return 0.0
    if not np.issubdtype(one.dtype, np.floating):
        return float(np.mean(one != other))
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if strict and not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return None
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))


def _scale(runs: Sequence[Array]) -> float:
    """Range of the finite values; of a constant output its size."""
    finite = [run[np.isfinite(run)].astype(np.float64) for run in runs]
    values = np.concatenate([part.reshape(-1) for part in finite]) if finite else np.zeros(0)
    if not values.size:
        return 0.0
    extent = float(values.max() - values.min())
    return extent if extent > 0 else float(np.abs(values).max())
