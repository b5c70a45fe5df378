"""The Cholesky factor of damped second moments, in little memory and in reversed order.

Rounding takes inputs one after another and needs H = R R^T with R upper triangular, which is
an ordinary Cholesky factor of H with its inputs in reversed order: nothing is flipped then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device
from scipy.linalg import get_lapack_funcs

from packlight.maths.grids import Array
from packlight.maths.layer import row_slices


@dataclass(frozen=True)
class Factor:
    """U with 2^exponent U^T U = H + damping * mean(diagonal of H) * I, inputs in given order.

    upper: [in, in]; what stands below its diagonal is no part of it.
    pivots: U's diagonal, of every input. damping: the share that worked.
    dead: which inputs were always 0; they got the mean for their diagonal.
    least_pivot: smallest 2^exponent U_ii^2 of inputs that are not dead, over the mean diagonal.
    """

    upper: Array
    pivots: tuple[float, ...]
    exponent: int
    damping: float
    dead: tuple[bool, ...]
    least_pivot: float


_KEPT = 3

_Known: TypeAlias = "dict[tuple[Any, ...], tuple[Array, Factor]]"

_known: ContextVar[_Known | None] = ContextVar("known", default=None)


@contextmanager
def keep_factors() -> Iterator[None]:
    """Within, the factor of one array is computed once for each order, damping and type.

    Of use where the rows of a weight are worked on in parts, or again and again. Second moments
    must stay as they are until the outermost of nested ones ends. The last `_KEPT` are held.
    """
    if _known.get() is not None:
        yield
        return
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def factor_moments(second_moments: Array, order: Array, *, damping: float, dtype: Any) -> Factor:
    """Factor damped second moments with the inputs taken in an order.

    second_moments: [in, in], symmetric. order: [in] indices. damping: share of the mean
    diagonal that is added to it, raised tenfold as often as the factorization fails.
    dtype: of the factor; where float32 fails, float64 is tried before the damping is raised.
    Needs memory for one array [in, in] of that type besides (NumPy), two otherwise.
    Raises ValueError where no damping helps.
    """
    known = _known.get()
    if known is None:
        return _factor(second_moments, order, damping, dtype)
    key = (id(second_moments), tuple(order.tolist()), damping, dtype)
    if key not in known:
        while len(known) >= _KEPT:
            known.pop(next(iter(known)))
        known[key] = second_moments, _factor(second_moments, order, damping, dtype)
    return known[key][1]


def _factor(second_moments: Array, order: Array, damping: float, dtype: Any) -> Factor:
    xp = array_namespace(second_moments)
    diagonal = xp.take(xp.linalg.diagonal(second_moments), order)
    diagonal = [float(value) for value in diagonal]
    dead = tuple(value <= 0 for value in diagonal)
    alive = [value for value in diagonal if value > 0]
    mean = math.fsum(alive) / len(alive) if alive else 1.0
    # A power of two changes no digit and keeps float32 from over- and underflow.
    exponent = math.frexp(mean)[1]
    unit = math.ldexp(mean, -exponent)
    types = (dtype,) if dtype == xp.float64 else (dtype, xp.float64)
    for attempt in range(12):
        used = damping if not attempt else max(damping, 1e-7) * 10**attempt
        added = xp.asarray(
            [unit * (used + none) for none in dead], dtype=xp.float64, device=device(order)
        )
        for kind in types:
            upper = _cholesky(xp, _reordered(xp, second_moments, order, -exponent, added, kind))
            if upper is None:
                continue
            pivots = tuple(float(value) for value in xp.linalg.diagonal(upper))
            kept = [p * p for p, none in zip(pivots, dead, strict=True) if not none]
            least = min(kept, default=unit) / unit
            upper = xp.astype(upper, dtype, copy=False)
            return Factor(upper, pivots, exponent, used, dead, least)
    raise ValueError("the second moments are not positive definite, whatever the damping")


def damp_moments(second_moments: Array, *, damping: float) -> Array:
    """Give second moments as `factor_moments` damps them, float64 [in, in] and symmetric."""
    xp = array_namespace(second_moments)
    count = second_moments.shape[0]
    order = xp.arange(count, device=device(second_moments))
    factor = _factor(second_moments, order, damping, xp.float64)
    diagonal = xp.astype(xp.linalg.diagonal(second_moments), xp.float64)
    alive = diagonal > 0
    mean = xp.sum(xp.where(alive, diagonal, 0 * diagonal)) / max(int(xp.count_nonzero(alive)), 1)
    added = xp.where(alive, factor.damping * mean, (1 + factor.damping) * mean)
    if not bool(xp.any(alive)):
        added = xp.ones_like(diagonal) * (1 + factor.damping)
    nothing = xp.zeros((count,), dtype=xp.float64, device=device(second_moments))
    damped = _reordered(xp, second_moments, order, 0, nothing, xp.float64)
    flat = xp.reshape(damped, (-1,))
    flat[:: count + 1] += added
    return damped


def invert_moments(second_moments: Array, *, damping: float) -> Array:
    """Give the inverse of second moments, damped as in `factor_moments`, float64 [in, in].

    An input that was always 0 stands alone, with the mean for its diagonal.
    """
    xp = array_namespace(second_moments)
    count = second_moments.shape[0]
    order = xp.arange(count, device=device(second_moments))
    factor = _factor(second_moments, order, damping, xp.float64)
    if isinstance(factor.upper, np.ndarray):
        # As for the factor: what is upper for C is lower for Fortran.
        invert = get_lapack_funcs("potri", (factor.upper,))
        found = invert(factor.upper.T, lower=1, overwrite_c=1)[0].T
        for rows in row_slices(count):
            corner = xp.triu(found[rows, rows])
            found[rows, rows] = corner + xp.triu(corner, k=1).T
            found[rows.stop :, rows] = found[rows, rows.stop :].T
    else:
        found = xp.cholesky_inverse(factor.upper, upper=True)
    return found * 2.0**-factor.exponent


def _reordered(xp: Any, h: Array, order: Array, exponent: int, added: Array, dtype: Any) -> Array:
    """Give 2^exponent H in an order and exactly symmetric, with `added` on its diagonal."""
    count = h.shape[0]
    out = xp.empty((count, count), dtype=dtype, device=device(h))
    factor = 2.0**exponent
    for rows in row_slices(count):
        out[rows, :] = xp.take(xp.take(h, order[rows], axis=0), order, axis=1) * factor
    for rows in row_slices(count):
        mean = (out[rows, rows.start :] + out[rows.start :, rows].T) / 2
        out[rows, rows.start :] = mean
        out[rows.start :, rows] = mean.T
    flat = xp.reshape(out, (-1,))  # a view, and so is every (count + 1)-th element
    flat[:: count + 1] += xp.astype(added, dtype)
    return out


def _cholesky(xp: Any, h: Array) -> Array | None:
    """Give upper triangular U with H = U^T U, overwriting H where it can; None if it fails."""
    if isinstance(h, np.ndarray):
        # Fortran sees a C array transposed: its lower factor is the upper one here.
        factor, failed = get_lapack_funcs("potrf", (h,))(h.T, lower=1, overwrite_a=1, clean=0)
        upper = None if failed else factor.T
    else:
        try:
            upper = xp.linalg.cholesky(h, upper=True)
        except RuntimeError:  # PyTorch's own
            upper = None
    if upper is None or not bool(xp.all(xp.isfinite(xp.linalg.diagonal(upper)))):
        return None
    return upper
