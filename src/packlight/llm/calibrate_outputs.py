"""Rows that make up for each other: where a layer's outputs pull in one direction downstream.

Rounding row by row minimises tr(D H D^T), D = W - V, as if every output mattered for itself. What
counts is tr(G D H D^T), G = E[g g^T] of the gradients at the outputs (`calibrate_curvature`), and
with G = R R^T, R upper triangular, that is |R^T D H^(1/2)|^2: row i of R^T D holds the errors of
rows up to i, so that after the rows before it row i is best rounded at the target

    t_i = w_i + sum_{j < i} (w_j - v_j) R_ji / R_ii

the same way that within a row an input makes up for those before it. Two-sided curvature in
rounding: Tseng et al. 2025, "Model-preserving adaptive rounding". Here rows are taken in parts.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableOutput

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]

PARTS = 16
"""Rows are rounded in so many parts; those of one part do not make up for each other."""

DAMPING = 0.03
"""Share of G's mean diagonal that is added to it: it comes from some thousand tokens."""


def round_in_parts(
    weight: Floats,
    slopes: Floats,
    encode: Callable[[Floats], Bytes],
    decode: Callable[[Bytes], Floats],
    *,
    parts: int = PARTS,
    damping: float = DAMPING,
) -> Bytes:
    """Give the bytes [out, row_bytes] of a weight whose rows make up for those before them.

    weight: [out, in]. slopes: G, [out, out]. encode: rounds some rows, all alike, to bytes
    [rows, row_bytes]; decode: gives what they stand for. A part holds each `parts`-th row, so that
    neighbours, which belong to one head, are in different ones.
    """
    rows = weight.shape[0]
    order = np.concatenate([np.arange(part, rows, parts) for part in range(min(parts, rows))])
    factor = _upper_factor(slopes[np.ix_(order, order)].astype(np.float64), damping)
    ordered = weight[order]
    error = np.zeros(ordered.shape, np.float64)
    data: Bytes | None = None
    for part in _parts(rows, parts):
        target = ordered[part]
        if part.start:
            pull = factor[: part.start, part].T @ error[: part.start]
            made_up = np.linalg.solve(factor[part, part].T, pull)
            target = (target + made_up).astype(np.float32)
        some = encode(target)
        error[part] = ordered[part] - decode(some)
        if data is None:
            data = np.empty((rows, some.shape[1]), np.uint8)
        data[order[part]] = some
    if data is None:
        raise ValueError("a weight without rows cannot be rounded")
    return data


class SlopeStore:
    """G of each layer in a file in a folder, from when it is measured to when it is used; files go
    when nobody holds this any more.

    complete: set by whoever has measured all that there are to measure.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self._names: dict[str, Path] = {}
        self.complete = False
        self.clear()
        weakref.finalize(self, _remove, self._names)

    def add(self, name: str, slopes: Floats) -> None:
        """Keep G [out, out] of a layer. Raises UnusableOutput where the disk is full."""
        try:
            handle, path = tempfile.mkstemp(".npy", self._prefix, self._folder)
            self._names[name] = Path(path)
            with os.fdopen(handle, "wb") as file:
                np.save(file, slopes.astype(np.float32), allow_pickle=False)
        except OSError as full:
            raise UnusableOutput(
                f"{self._folder} cannot be written to ({full.strerror}): make room and start again"
            ) from full

    def path(self, name: str) -> Path | None:
        """The file with G of a layer, where it is known."""
        return self._names.get(name)

    def clear(self) -> None:
        """Remove all files, also those that a killed run has left."""
        left = self._folder.glob(f"{self._prefix}*.npy")
        _remove({path.name: path for path in left})
        self._names.clear()
        self.complete = False


def _remove(files: dict[str, Path]) -> None:
    for path in files.values():
        with suppress(OSError):
            path.unlink()


def _parts(rows: int, parts: int) -> Iterator[slice]:
    start = 0
    for part in range(min(parts, rows)):
        stop = start + len(range(part, rows, parts))
        yield slice(start, stop)
        start = stop


def _upper_factor(slopes: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """R, upper triangular, of damped G = R R^T; the identity where there is no gradient."""
    rows = slopes.shape[0]
    mean = float(np.trace(slopes)) / rows
    if not mean > 0:
        return np.eye(rows)
    damped = slopes / mean + damping * np.eye(rows)
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return np.ascontiguousarray(lower[::-1, ::-1])
