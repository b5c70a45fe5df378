"""Matrices of layers that read the same, rounded together: here, or in other processes.

Each by itself, under the second moments of what reaches it; of experts each is a matrix. They
know nothing of each other, so that whoever rounds them, the bytes are the same. What goes
elsewhere lies in files, on a disk that all share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.blas import one_blas_thread
from packlight.llm.calibrate_outputs import round_in_parts
from packlight.llm.compress_alone import Spread, cut_rows
from packlight.llm.rounding import Rounding, relative_error
from packlight.llm.shared_folder import SharedFolder, cannot_share
from packlight.maths.factor import keep_factors

Floats: TypeAlias = NDArray[np.float32]
Moments: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]


class Rows(Protocol):
    """A type that rows of weights get. A frozen value, which can go to another process."""

    @property
    def kind(self) -> str:
        """Its name."""

    def encode(self, weight: Floats, moments: Floats | None, *, part: bool = False) -> Bytes:
        """Bytes [n, row_bytes] of rows [n, in] under second moments [in, in]. part: others of the
        same matrix follow, for which the second moments are the same array. Raises ValueError.
        """

    def decode(self, data: Bytes) -> Floats:
        """What bytes stand for, [n, in]."""


@dataclass(frozen=True)
class Matrix:
    """What is to become of a tensor's matrices.

    slopes: the file with G [out, out], where rows make up for each other; they are rounded in so
    many parts (`packlight.llm.calibrate_outputs`).
    """

    name: str
    rows: Rows
    slopes: Path | None
    parts: int


@dataclass(frozen=True)
class RoundedMatrix:
    """Bytes [out, row_bytes]. error, power: tr(D H D^T), D the difference, and tr(W H W^T)."""

    data: Bytes
    error: float
    power: float
    seconds: float


def figures(rounded: Sequence[RoundedMatrix], compensated: bool) -> tuple[float, bool, float]:
    """Of a tensor, as `packlight.llm.journal.Row` has them: error, compensated, seconds."""
    error, power, seconds = (
        sum(getattr(one, figure) for one in rounded) for figure in ("error", "power", "seconds")
    )
    return error / power if power else 0.0, compensated, round(seconds, 3)


class Taking(Rounding, Protocol):
    """A run that takes rounded matrices."""

    def matrix(self, name: str) -> Matrix:
        """What is to become of a tensor."""

    def take(
        self, name: str, rounded: Sequence[RoundedMatrix], *, compensated: bool, note: str
    ) -> None:
        """Write a tensor whose matrices are all there. note: what is to be said of it."""


def round_together(
    run: Taking,
    weights: Mapping[str, Floats],
    moments: Moments | None,
    *,
    spread: Spread | None = None,
    scratch: Path | None = None,
) -> dict[str, Floats]:
    """Round and write tensors that read the same; give what their bytes stand for.

    weights: [out, in] each, or [experts, out, in]. moments: [in, in], or [experts, in, in] (of
    experts that no token came to 0), or None. spread: over whom matrices are spread; None: this
    process. scratch: the folder where they lie meanwhile. Raises UnusableModel, UnusableOutput.
    """
    each = {name: weight if weight.ndim == 3 else weight[None] for name, weight in weights.items()}
    matrices = {name: run.matrix(name) for name in weights}
    near = {name: np.empty_like(one) for name, one in each.items()}
    found: dict[str, list[RoundedMatrix]] = {name: [] for name in weights}
    count = len(next(iter(each.values())))
    whole = None if moments is None else moments.reshape(count, *moments.shape[-2:])
    reached = [whole is not None and bool(whole[e].any()) for e in range(count)]
    unseen = count - sum(reached) if whole is not None else 0
    note = f"{unseen} experts saw no token of the text" if unseen else ""

    def receive(name: str, rounded: RoundedMatrix) -> None:
        found[name].append(rounded)
        if len(found[name]) == count:  # finished for good, if the run is killed now
            run.take(name, found.pop(name), compensated=moments is not None, note=note)

    def moments_of(e: int) -> Floats | None:
        """Symmetric and in float32, solvers use them as they are."""
        return whole[e].astype(np.float32) if whole is not None and reached[e] else None

    if spread is None or count * len(weights) == 1:
        for e in range(count):
            h = moments_of(e)
            with keep_factors():
                for name, one in each.items():
                    receive(name, round_matrix(matrices[name], one[e], h, near[name][e]))
    else:
        with SharedFolder("rounding-", scratch) as folder:
            errands: list[Errand] = []
            for e in range(count):
                h = moments_of(e)
                path = None if h is None else folder.store(h)
                for name, one in each.items():
                    errands.append(Errand(matrices[name], folder.store(one[e]), path))
            results = spread(round_errand, errands, held=2)
            for errand, rounded in zip(errands, results, strict=True):
                name = errand.matrix.name
                near[name][len(found[name])] = errand.matrix.rows.decode(rounded.data)
                receive(name, rounded)
    return {name: one.reshape(weights[name].shape) for name, one in near.items()}


def round_matrix(
    matrix: Matrix, weight: Floats, moments: Floats | None, near: Floats | None = None
) -> RoundedMatrix:
    """Round a matrix [out, in], its rows making up for each other where gradients are known.

    near: is filled with what its bytes stand for, [out, in]. Rows that know nothing of each other,
    of a head perhaps more than fit twice, are rounded a piece at a time.
    """
    begun, rows = time.monotonic(), matrix.rows
    pieces = [slice(*some) for some in cut_rows(*weight.shape)]
    try:
        with keep_factors():
            if matrix.slopes is None or moments is None:
                data = np.concatenate([rows.encode(weight[piece], moments) for piece in pieces])
            else:
                slopes: Floats = np.load(matrix.slopes, allow_pickle=False)
                with one_blas_thread():
                    data = round_in_parts(
                        weight,
                        slopes,
                        lambda some: rows.encode(some, moments, part=True),
                        rows.decode,
                        parts=matrix.parts,
                    )
    except ValueError as broken:
        message = f"{matrix.name} cannot be rounded to {rows.kind}: {broken}"
        raise UnusableModel(message) from broken
    error = power = 0.0
    for piece in pieces:
        values = rows.decode(data[piece])
        some = relative_error(weight[piece], values, moments)
        error, power = error + some[0], power + some[1]
        if near is not None:
            near[piece] = values
    return RoundedMatrix(data, error, power, time.monotonic() - begun)


@dataclass(frozen=True)
class Errand:
    """A matrix that is rounded elsewhere. weight, moments: files that NumPy reads."""

    matrix: Matrix
    weight: Path
    moments: Path | None


def round_errand(errand: Errand) -> RoundedMatrix:
    """Round a matrix that lies in files. Nothing that is read is changed."""
    try:
        weight, moments = (
            None if path is None else np.load(path, allow_pickle=False)
            for path in (errand.weight, errand.moments)
        )
        assert weight is not None
        return round_matrix(errand.matrix, weight, moments)
    except OSError as lost:
        raise cannot_share(errand.weight.parent, lost) from lost
