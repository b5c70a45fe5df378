"""What two files' outputs have in common, streamed batch by batch.

Of every output and sample only a few sums are kept, so that memory grows by some ten
numbers a sample. An output whose axis 0 counts the samples is cut along it; one that
does not is taken as a whole, one observation a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_NOT_SCORES = ("embed", "feature", "hidden", "pool", "vector", "latent", "coord", "box")


@dataclass(frozen=True)
class OutputRecord:
    """One output of both files; every row is one sample (or one batch taken as a whole).

    sums: [n, 5] elements counted, sum y, sum y^2, sum (y - y')^2, share that is equal.
        Elements that are not finite in the original are left out, but for the last column.
    lost: [n] the compressed output is not finite where the original is, or of another shape.
    floating: of a float type. places: [n, 2] the largest score's class in the original and
        the compressed file; empty unless the output is [samples, classes >= 2].
    ranks: [n, 2] how many classes score above the label's (-1: no usable label); where the
        output is one integer a sample, 0 if it is the label and 1 if not.
    probabilities, unit_length: every row of the original sums to 1, or has length 1.
    """

    name: str
    floating: bool
    sums: _Floats
    lost: NDArray[np.bool_]
    places: _Ints
    ranks: _Ints
    probabilities: bool = True
    unit_length: bool = True

    @property
    def looks_like_scores(self) -> bool:
        """Whether the output is a classifier's, as far as names and values tell.

        [samples, classes] of floats; a name that speaks of something else, or rows of length 1
        as embeddings have them, say no; rows that sum to 1 say yes; otherwise the largest
        entry must not be at one and the same place for all of eight samples or more.
        """
        if not len(self.places) or not self.floating:
            return False
        if any(word in self.name.lower() for word in _NOT_SCORES):
            return False
        if self.probabilities:
            return True
        if self.unit_length:
            return False
        return len(self.places) < 8 or len(np.unique(self.places[:, 0])) > 1


@dataclass(frozen=True)
class Comparison:
    """All outputs of both files on the samples seen so far."""

    samples: int = 0
    outputs: tuple[OutputRecord, ...] = ()


def add_to_comparison(
    comparison: Comparison,
    original: Mapping[str, NDArray[Any]],
    compressed: Mapping[str, NDArray[Any]],
    *,
    rows: int,
    labels: NDArray[Any] | None = None,
) -> Comparison:
    """Add a batch of `rows` samples run by both files.

    labels: [rows], or None. Raises UnusableModel where an output is missing.
    """
    missing = [name for name in original if name not in compressed]
    if missing:
        raise UnusableModel(
            f"the compressed file has no output {missing[0]!r}; it must keep all outputs of the "
            f"original: {', '.join(original)}"
        )
    records = {record.name: record for record in comparison.outputs}
    for name, array in original.items():
        record = _record(name, np.asarray(array), np.asarray(compressed[name]), rows, labels)
        records[name] = _joined(records[name], record) if name in records else record
    return replace(comparison, samples=comparison.samples + rows, outputs=tuple(records.values()))


def rows_of(outputs: Mapping[str, NDArray[Any]]) -> int:
    """Guess how many samples a batch holds: axis 0 if all outputs share its length, else 1."""
    lengths = {np.shape(array)[0] if np.ndim(array) else 1 for array in outputs.values()}
    return int(lengths.pop()) if len(lengths) == 1 else 1


def lost_rows(
    original: Mapping[str, NDArray[Any]], compressed: Mapping[str, NDArray[Any]], rows: int
) -> NDArray[np.bool_]:
    """Say of each sample of a batch whether the compressed file lost any of its outputs: [rows]."""
    lost = np.zeros(rows, np.bool_)
    for name, array in original.items():
        lost |= _record(name, np.asarray(array), np.asarray(compressed[name]), rows, None).lost
    return lost


def shape_of_scores(shape: Sequence[int], rows: int) -> bool:
    """Whether a shape is [rows, classes >= 2], trailing axes of length 1 apart."""
    return len(shape) >= 2 and shape[0] == rows and shape[1] >= 2 and all(n == 1 for n in shape[2:])


def _record(
    name: str, y: NDArray[Any], other: NDArray[Any], rows: int, labels: NDArray[Any] | None
) -> OutputRecord:
    floating = np.issubdtype(y.dtype, np.floating)
    scores = floating and shape_of_scores(y.shape, rows)
    cut = rows if y.ndim and y.shape[0] == rows else 1
    reference = _numbers(y).reshape(cut, -1)
    if y.shape != other.shape:
        # The file that is handed over gave something else: nothing of the output is right.
        compared = np.full_like(reference, np.nan)
    else:
        compared = _numbers(other).reshape(cut, -1)
    known = np.isfinite(reference)
    lost = np.any(known & ~np.isfinite(compared), axis=1)
    equal = (reference == compared) | (np.isnan(reference) & np.isnan(compared))
    clean = np.where(known, reference, 0)
    off = np.where(known & np.isfinite(compared), reference - compared, 0)
    sums = np.stack(
        [
            known.sum(axis=1),
            clean.sum(axis=1),
            np.sum(clean * clean, axis=1),
            np.sum(off * off, axis=1),
            equal.mean(axis=1) if equal.shape[1] else np.ones(cut),
        ],
        axis=1,
    ).astype(np.float64)
    nothing = np.zeros((0, 2), np.int64)
    if not scores:
        ranks = nothing
        if y.dtype.kind in "iu" and reference.shape == (rows, 1) and _fits(labels, rows):
            ranks = np.concatenate([reference, compared], axis=1) != np.asarray(labels)[:, None]
        return OutputRecord(
            name, floating, sums, lost, nothing, ranks.astype(np.int64), False, False
        )
    ordered = np.where(np.isnan(reference), -np.inf, reference)
    ordered_other = np.where(np.isnan(compared), -np.inf, compared)
    places = np.stack([ordered.argmax(axis=1), ordered_other.argmax(axis=1)], axis=1)
    places[lost, 1] = -1
    ranks = np.stack([_ranks(ordered, labels), _ranks(ordered_other, labels)], axis=1)
    ranks[lost & (ranks[:, 0] >= 0), 1] = reference.shape[1]
    return OutputRecord(
        name,
        floating,
        sums,
        lost,
        places.astype(np.int64),
        ranks,
        bool(np.all(clean >= 0) and np.allclose(clean.sum(axis=1), 1, atol=1e-2)),
        bool(np.allclose(np.sum(clean * clean, axis=1), 1, atol=1e-3)),
    )


def _joined(one: OutputRecord, other: OutputRecord) -> OutputRecord:
    return replace(
        one,
        sums=np.concatenate([one.sums, other.sums]),
        lost=np.concatenate([one.lost, other.lost]),
        places=np.concatenate([one.places, other.places]),
        ranks=np.concatenate([one.ranks, other.ranks]),
        probabilities=one.probabilities and other.probabilities,
        unit_length=one.unit_length and other.unit_length,
    )


def _ranks(scores: _Floats, labels: NDArray[Any] | None) -> _Ints:
    """How many classes come before the label's; equal scores by place, as argmax has it."""
    ranks = np.full(len(scores), -1, np.int64)
    if labels is None or not _fits(labels, len(scores)):
        return ranks
    usable = (labels >= 0) & (labels < scores.shape[1])
    rows = np.flatnonzero(usable)
    own = labels[rows].astype(np.int64)
    mine = scores[rows, own][:, None]
    before = (scores[rows] == mine) & (np.arange(scores.shape[1]) < own[:, None])
    ranks[rows] = np.sum((scores[rows] > mine) | before, axis=1)
    return ranks


def _fits(labels: NDArray[Any] | None, rows: int) -> bool:
    return labels is not None and labels.shape == (rows,) and labels.dtype.kind in "iub"


def _numbers(array: NDArray[Any]) -> _Floats:
    """Float64 values; text and other objects become numbers that differ where they do."""
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    digests = [
        int.from_bytes(
            hashlib.blake2b(str(item).encode("utf-8", "replace"), digest_size=6).digest()
        )
        for item in array.reshape(-1)
    ]
    return np.array(digests, np.float64).reshape(array.shape)


def equal_outputs(
    one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], *, tolerance: float = 1e-3
) -> bool:
    """Whether two runs gave the same within float tolerance, relative to each output's size."""
    if one.keys() != other.keys():
        return False
    for name, array in one.items():
        candidate = other[name]
        if array.shape != candidate.shape or array.dtype != candidate.dtype:
            return False
        if not np.issubdtype(array.dtype, np.floating):
            if not np.array_equal(array, candidate):
                return False
            continue
        a, b = array.astype(np.float64), candidate.astype(np.float64)
        size = float(np.sqrt(np.mean(np.square(a[np.isfinite(a)])))) if np.isfinite(a).any() else 0
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * max(size, 1e-30), equal_nan=True):
            return False
    return True
