"""Weight sharing: a layer's weights take one of a few values, the codebook.

With E = W - V and second moments H, the error at the layer's output is tr(E H E^T). Three
moves lower it, and none raises it: giving one weight another value (coordinate descent over
codes), giving a weight the nearest value where H is diagonal (Lloyd 1982), and giving the codebook
the least-squares values for the codes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from packlight.maths.grids import Array

_ROUNDS = 100
_STARTS = 8
_MOST_TRIED = 1 << 16


@dataclass(frozen=True)
class Shared:
    """A weight [out, in] as codes and the values they stand for.

    codes: uint8 [out, in]. codebook: float32 [count], ascending; [groups, count] where each
    `group` rows have their own. error: tr((W - V) H (W - V)^T) with H = I where none was given.
    """

    codes: Array
    codebook: Array
    error: float


def share_weights(
    weight: Array,
    *,
    count: int,
    second_moments: Array | None = None,
    seed: int = 0,
    group: int | None = None,
    sweeps: int = 4,
) -> Shared:
    """Give the codes and the codebook of `count` values that change the output least.

    weight: [out, in]. second_moments: [in, in] or its diagonal [in]; None: all inputs alike.
    count: values, 2 to 256. group: so many rows share a codebook (1: one a row); None: all.
    seed: of the k-means++ start (Arthur and Vassilvitskii 2007), tried beside quantiles
        and even steps.
    sweeps: rounds of coordinate descent and least squares after k-means. Works in float64.
    Raises ValueError for a count out of range, or moments that do not fit or are not finite.
    """
    xp = array_namespace(weight)
    if not 2 <= count <= 256:
        raise ValueError(f"a codebook has from 2 to 256 values, not {count}")
    outputs, inputs = weight.shape
    w = xp.astype(weight, xp.float64)
    diagonal, full = _moments(xp, second_moments, inputs, w)
    size = outputs if group is None else group
    if size < 1:
        raise ValueError(f"a group has at least one row, not {size}")
    codes, books, error = [], [], 0.0
    for top in range(0, outputs, size):
        rows = w[top : top + size, :]
        book = _start(_numpy(rows), _numpy(diagonal), count, seed)
        own = xp.asarray(book)
        code = nearest_codes(rows, own)
        if full is not None:
            code, own = _descend(rows, code, own, full, sweeps)
        own = xp.astype(xp.astype(own, xp.float32), xp.float64)
        off = rows - xp.reshape(xp.take(own, xp.reshape(code, (-1,))), rows.shape)
        error += float(xp.sum((xp.matmul(off, full) if full is not None else off * diagonal) * off))
        codes.append(xp.astype(code, xp.uint8))
        books.append(xp.astype(own, xp.float32))
    codebook = books[0] if group is None else xp.stack(books)
    return Shared(xp.concat(codes), codebook, error)


def nearest_codes(weight: Array, codebook: Array) -> Array:
    """Give for each weight the index of the nearest value of an ascending codebook."""
    xp = array_namespace(weight)
    middles = (codebook[1:] + codebook[:-1]) / 2
    return xp.reshape(xp.searchsorted(middles, xp.reshape(weight, (-1,))), weight.shape)


def improve_codes(weight: Array, codes: Array, codebook: Array, second_moments: Array) -> Array:
    """Give every weight in turn its best value, the others as they are: one sweep.

    Value v instead of q changes the error by (v - q)^2 H_ii - 2 (v - q) (E H)_i, least for the
    v nearest to q + (E H)_i / H_ii. weight, codes: [out, in]. codebook: [count], ascending.
    Never raises tr(E H E^T).
    """
    xp = array_namespace(weight)
    codes = xp.asarray(xp.astype(codes, xp.int64), copy=True)
    middles = (codebook[1:] + codebook[:-1]) / 2
    values = xp.asarray(xp.reshape(xp.take(codebook, xp.reshape(codes, (-1,))), codes.shape))
    pull = xp.matmul(weight - values, second_moments)
    for i in range(int(weight.shape[1])):
        bend = float(second_moments[i, i])
        if bend <= 0:
            continue
        now = values[:, i]
        found = xp.searchsorted(middles, now + pull[:, i] / bend)
        step = xp.take(codebook, found) - now
        gain = step * step * bend - 2 * step * pull[:, i]
        rows = xp.nonzero(gain < -1e-9 * step * step * bend)[0]
        if rows.shape[0]:
            codes[rows, i] = found[rows]
            values[rows, i] += step[rows]
            pull[rows, :] -= step[rows][:, None] * second_moments[i, :][None, :]
    return codes


def refit_codebook(weight: Array, codes: Array, codebook: Array, second_moments: Array) -> Array:
    """Give the least-squares values for codes as they are; values of no weight stay.

    The error is quadratic in the codebook c: with indicators Z_k = [codes == k], [out, in],
    A c = b, A_kl = sum(Z_k H * Z_l), b_k = sum(W H * Z_k). Returns float64 [count], in the order
    given (it may cross over).
    """
    xp = array_namespace(weight)
    count = int(codebook.shape[0])
    kinds = [xp.astype(codes == k, xp.float64) for k in range(count)]
    used = [k for k in range(count) if float(xp.sum(kinds[k])) > 0]
    pulled = xp.matmul(weight, second_moments)
    a = np.zeros((len(used), len(used)))
    b = np.zeros(len(used))
    for row, k in enumerate(used):
        spread = xp.matmul(kinds[k], second_moments)
        b[row] = float(xp.sum(pulled * kinds[k]))
        # Sum of the spread over the weights of each value: one pass, not one a value.
        sums = np.bincount(
            _numpy(codes).ravel().astype(np.int64), _numpy(spread).ravel(), minlength=count
        )
        a[row] = sums[used]
    # Least change from where it is: moments without rank leave some directions free.
    start = _numpy(codebook)[used]
    move = np.linalg.lstsq((a + a.T) / 2, b - a @ start, rcond=1e-10)[0]
    fitted = _numpy(codebook).copy()
    fitted[used] = start + move
    return xp.asarray(fitted)


def lloyd(
    values: NDArray[np.float64], importance: NDArray[np.float64], codebook: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the codebook that nearest assignment and weighted means lead to from `codebook`.

    values: [n] ascending, importance: [n] of at least 0. Minimises
    sum(importance (value - nearest)^2); no round raises it. Values that no weight takes stay.
    """
    total = np.concatenate([[0.0], np.cumsum(importance)])
    moment = np.concatenate([[0.0], np.cumsum(importance * values)])
    book = np.sort(codebook)
    for _ in range(_ROUNDS):
        ends = np.searchsorted(values, (book[1:] + book[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(values)]])
        share = total[edges[1:]] - total[edges[:-1]]
        mean = (moment[edges[1:]] - moment[edges[:-1]]) / np.where(share > 0, share, 1.0)
        moved = np.where(share > 0, mean, book)
        if np.array_equal(moved, book):
            break
        book = np.sort(moved)
    return book


def _start(
    rows: NDArray[np.float64], diagonal: NDArray[np.float64], count: int, seed: int
) -> NDArray[np.float64]:
    """Give the best codebook of several starts of k-means with a diagonal H."""
    order = np.argsort(rows, axis=None, kind="stable")
    values = rows.ravel()[order]
    importance = np.broadcast_to(diagonal, rows.shape).ravel()[order]
    if not importance.any():
        importance = np.ones_like(values)
    distinct = np.unique(values)
    if len(distinct) <= count:
        more = distinct[-1] + np.arange(1, count - len(distinct) + 1) * max(abs(distinct[-1]), 1)
        return np.concatenate([distinct, more])
    quantiles = np.quantile(values, (np.arange(count) + 0.5) / count)
    spread = np.linspace(values[0], values[-1], count)
    # Few weights have bad local optima, and cheap starts.
    random = np.random.default_rng(seed)
    drawn = max(1, min(_STARTS, _MOST_TRIED // len(values)))
    starts = [quantiles, spread]
    starts += [_plus_plus(values, importance, count, random) for _ in range(drawn)]
    books = [lloyd(values, importance, start) for start in starts]
    errors = [_error(values, importance, book) for book in books]
    return books[int(np.argmin(errors))]


def _plus_plus(
    values: NDArray[np.float64],
    importance: NDArray[np.float64],
    count: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw values with probability to their weighted squared distance from those drawn."""
    book: list[float] = []
    chance = importance.copy()
    distance = np.full(len(values), np.inf)
    for _ in range(count):
        total = np.cumsum(chance)
        drawn = np.searchsorted(total, random.random() * total[-1], side="right")
        book.append(float(values[min(int(drawn), len(values) - 1)]))
        distance = np.minimum(distance, (values - book[-1]) ** 2)
        chance = importance * distance
        if not chance.any():
            chance = np.ones_like(values)
    return np.sort(np.array(book))


def _error(
    values: NDArray[np.float64], importance: NDArray[np.float64], book: NDArray[np.float64]
) -> float:
    nearest = book[np.searchsorted((book[1:] + book[:-1]) / 2, values)]
    return float(np.sum(importance * (values - nearest) ** 2))


def _descend(
    rows: Array, codes: Array, codebook: Array, h: Array, sweeps: int
) -> tuple[Array, Array]:
    """Take turns of coordinate descent and least squares while they gain."""
    xp = array_namespace(rows)
    for _ in range(sweeps):
        moved = improve_codes(rows, codes, codebook, h)
        fitted = refit_codebook(rows, moved, codebook, h)
        order = xp.argsort(fitted)
        still = not bool(xp.any(moved != codes))
        codebook = xp.take(fitted, order)
        codes = xp.reshape(xp.take(xp.argsort(order), xp.reshape(moved, (-1,))), moved.shape)
        if still:
            break
    return codes, codebook


def _moments(
    xp: Any, second_moments: Array | None, inputs: int, like: Array
) -> tuple[Array, Array | None]:
    """Give the diagonal [in], and the symmetric [in, in] where it was given."""
    if second_moments is None:
        return xp.ones(inputs, dtype=xp.float64), None
    h = xp.astype(second_moments, xp.float64)
    if tuple(h.shape) not in ((inputs,), (inputs, inputs)):
        raise ValueError(f"second moments of shape {tuple(h.shape)} do not fit {inputs} inputs")
    if not bool(xp.all(xp.isfinite(h))):
        raise ValueError("the second moments are not finite: look for NaN in the samples")
    if h.ndim == 1:
        return h, None
    h = (h + h.T) / 2
    return xp.linalg.diagonal(h), h


def _numpy(array: Array) -> NDArray[np.float64]:
    own = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    return np.ascontiguousarray(own)
