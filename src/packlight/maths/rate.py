"""Rounding that pays for bits: least error at a given code length, for entropy-coded files.

A layer's codes on a uniform grid of step s minimise

    tr((W - sQ) H (W - sQ)^T) + price * sum_ij bits(q_ij),    bits(q) = -log2 p(q),

where p is the distribution of the codes themselves: it is counted, and the codes are chosen
again. Most codes of a layer that can spare it become 0 (entropy-constrained quantization: Chou,
Lookabaugh and Gray 1989; with the layer's second moments: error-compensated as in GPTQ, then
coordinate descent). At the full price at once nearly everything would become 0, and no single
code could come back: so the price rises from sweep to sweep, and each time the codes that stay
take over from those that go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from packlight.maths.entropy import ideal_bits
from packlight.maths.factor import Factor, factor_moments
from packlight.maths.grids import Array
from packlight.maths.layer import LARGE, Precision, check_moments, row_slices

LARGEST = 127
"""Codes are held as int8."""

PRICE = 0.1
"""price = PRICE * step^2 * what an error of 1 costs. At high rates ln(2) / 6 = 0.116 balances the
two (the rate falls by a bit as the error step^2 / 12 grows fourfold); measured on trained layers
with correlated inputs 0.05 to 0.1 is best from 0.3 bits on."""

_RISE = ((0.05, 2), (0.15, 2), (0.4, 2))
"""Shares of the price that are asked first, and sweeps at each."""

_SMOOTHING = 0.5
_BLOCK = 64  # inputs between two matrix products
_SAMPLE = 1 << 17
"""Weights that the search for a step looks at; rows know of each other only by their counts."""

_STILL = 2e-4
"""Sweeps end where a smaller share of the codes than this moves."""


@dataclass(frozen=True)
class RateRounded:
    """Codes that are short once entropy coded.

    codes: int32 [out, in], -127 to 127. scale: the step, one for the whole layer.
    bits: ideal bits a weight (order 0, without the table). error: tr((W - V) H (W - V)^T).
    """

    codes: Array
    scale: float
    bits: float
    error: float


@dataclass(frozen=True)
class _Problem:
    """A weight [in, out], damped second moments [in, in] and their factor, in one type."""

    weight: Array
    moments: Array
    factor: Factor
    places: Sequence[int]

    def rows(self, chosen: Array) -> _Problem:
        """The same for some outputs only."""
        xp = array_namespace(self.weight)
        part = xp.take(self.weight, chosen, axis=1)
        return _Problem(part, self.moments, self.factor, self.places)


def round_to_rate(
    weight: Array,
    second_moments: Array | None,
    *,
    bits: float,
    damping: float = 0.03,
    sweeps: int = 4,
    tolerance: float = 0.02,
    precision: Precision | None = None,
) -> RateRounded:
    """Round a weight so that entropy coding takes about `bits` a weight, with the least error.

    The step is searched for on some rows of a large weight; the price of a bit follows from it.
    weight: [out, in]. second_moments: [in, in], or None: every input alike.
    bits: above 0. damping: share of the mean second moment added to each.
    tolerance: share of `bits` that the result may differ by (where codes of -127 to 127 can
    have so many at all). sweeps, precision: as in `round_with_rate`.
    Returns RateRounded. Raises ValueError for bits that are not above 0, or second moments that
    are not finite.
    """
    if not bits > 0:
        raise ValueError(f"bits a weight are above 0, not {bits}")
    xp = array_namespace(weight)
    largest = float(xp.max(xp.abs(weight))) if weight.shape[0] * weight.shape[1] else 0.0
    if largest == 0:
        return RateRounded(xp.zeros(weight.shape, dtype=xp.int32), 1.0, 0.0, 0.0)
    problem = _state(xp, weight, second_moments, damping, precision)
    unit = PRICE * float(xp.mean(xp.linalg.diagonal(problem.moments)))
    found: dict[float, Array] = {}

    def rate(part: _Problem) -> Callable[[float], float]:
        def of(step: float) -> float:
            codes = _round(xp, part, step, unit * step * step, sweeps)
            found[step] = codes
            return ideal_bits(codes) / int(codes.shape[0] * codes.shape[1])

        return of

    low, high = largest / LARGEST, 4 * largest  # finest and coarsest step
    outputs, inputs = weight.shape
    count = max(8, _SAMPLE // inputs)
    guess = float(xp.std(problem.weight)) * 2 ** (2 - bits)
    tries = 2
    if count < outputs:
        chosen = xp.asarray([i * outputs // count for i in range(count)], device=device(weight))
        guess = _search(rate(problem.rows(chosen)), bits, guess, low, high, tolerance / 2, 10)
        found.clear()
    else:
        tries = 12
    step = _search(rate(problem), bits, guess, low, high, tolerance, tries)
    return _result(xp, weight, second_moments, found[step], step)


def round_with_rate(
    weight: Array,
    second_moments: Array | None,
    step: float,
    price: float,
    *,
    damping: float = 0.03,
    sweeps: int = 4,
    precision: Precision | None = None,
) -> RateRounded:
    """Round to multiples of `step`, paying `price` for each bit that a code takes.

    weight: [out, in]. second_moments: [in, in], or None: every input alike.
    price: of a bit, in units of the error tr((W - V) H (W - V)^T).
    sweeps: of coordinate descent at the full price.
    precision: of the large arrays; by itself "float32" for more than 1024 inputs.
    Returns RateRounded. Raises ValueError for second moments that are not finite.
    """
    xp = array_namespace(weight)
    problem = _state(xp, weight, second_moments, damping, precision)
    codes = _round(xp, problem, step, price, sweeps)
    return _result(xp, weight, second_moments, codes, step)


def _state(
    xp: Any,
    weight: Array,
    second_moments: Array | None,
    damping: float,
    precision: Precision | None,
) -> _Problem:
    inputs = weight.shape[1]
    if precision is None:
        precision = "float32" if inputs > LARGE else "float64"
    dtype = getattr(xp, precision)
    if second_moments is None:
        h = xp.eye(inputs, dtype=dtype, device=device(weight))
    else:
        check_moments(second_moments, inputs)
        h = xp.astype(second_moments, dtype)
        h = (h + h.T) / 2
    diagonal = xp.linalg.diagonal(h)
    order = xp.flip(xp.argsort(diagonal, descending=True))
    factor = factor_moments(h, order, damping=damping, dtype=dtype)
    alive = diagonal > 0
    mean = float(xp.sum(diagonal)) / max(int(xp.count_nonzero(alive)), 1)
    # What was always 0 stays exactly so: its weights cost nothing, and become 0.
    added = xp.where(alive, xp.full_like(diagonal, factor.damping * mean), 0 * diagonal)
    flat = xp.reshape(h, (-1,))  # a view, and so is every (inputs + 1)-th element
    flat[:: inputs + 1] += added
    turned = xp.asarray(xp.astype(weight, dtype).T, copy=True)
    return _Problem(turned, h, factor, [int(place) for place in order])


def _result(
    xp: Any, weight: Array, second_moments: Array | None, codes: Array, step: float
) -> RateRounded:
    whole = xp.asarray(xp.astype(codes.T, xp.int32), copy=True)
    error = 0.0
    h = None if second_moments is None else xp.astype(second_moments, xp.float64, copy=False)
    for rows in row_slices(whole.shape[0], 1024):
        off = xp.astype(weight[rows, :], xp.float64) - xp.astype(whole[rows, :], xp.float64) * step
        error += float(xp.sum((off if h is None else xp.matmul(off, h)) * off))
    size = max(whole.shape[0] * whole.shape[1], 1)
    return RateRounded(whole, step, ideal_bits(whole) / size, error)


def _search(
    rate: Callable[[float], float],
    bits: float,
    guess: float,
    low: float,
    high: float,
    tolerance: float,
    tries: int,
) -> float:
    """Give the step, from low to high, whose rate was nearest to `bits`.

    Inside a bracket by the line through its ends in log(step), log(rate), outside by factors.
    """
    ends: dict[bool, tuple[float, float]] = {}  # is the rate too high -> log(step), log(rate)
    best, least = guess, math.inf
    goal = math.log2(bits)
    step = min(max(guess, low), high)
    for _ in range(tries):
        found = rate(step)
        if abs(found - bits) < least:
            best, least = step, abs(found - bits)
        if least <= tolerance * bits:
            break
        above = found > bits
        if (above and step >= high) or (not above and step <= low):
            break
        ends[above] = (math.log2(step), math.log2(max(found, bits / 64)))
        if len(ends) < 2:
            factor = 2.0 ** min(max(abs(ends[above][1] - goal), 0.03), 2.0)
            step = step * factor if above else step / factor
        else:
            (left, upper), (right, lower) = ends[True], ends[False]
            share = (upper - goal) / max(upper - lower, 1e-9)
            step = 2.0 ** (left + (right - left) * min(max(share, 0.1), 0.9))
        step = min(max(step, low), high)
    return best


def _round(xp: Any, problem: _Problem, step: float, price: float, sweeps: int) -> Array:
    """Give codes [in, out]: error-compensated at a low price, then descent as it rises."""
    nearest = xp.clip(xp.round(problem.weight / step), -LARGEST, LARGEST)
    stages = [(share * price, count) for share, count in _RISE]
    codes = _compensate(xp, problem, step, stages[0][0], _Rates(xp, nearest))
    pull = xp.matmul(problem.moments, problem.weight - codes * step)
    for paid, count in [*stages, (price, sweeps)]:
        for _ in range(count):
            if not _sweep(xp, codes, pull, problem.moments, step, paid):
                break
    return codes


def _compensate(xp: Any, problem: _Problem, step: float, price: float, rates: _Rates) -> Array:
    """Round one input at a time at the target that makes up for those before it.

    The targets are those of `round_with_compensation`. Returns codes [in, out].
    """
    factor, places = problem.factor, problem.places
    u, pivots = factor.upper, factor.pivots
    index = xp.asarray(places, device=device(problem.weight))
    left = xp.take(problem.weight, index, axis=0)
    codes = xp.zeros_like(left)
    unit = math.ldexp(step * step, factor.exponent)
    for stop in range(len(places), 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        carried = xp.matmul(u[start:stop, stop:], left[stop:, :])
        for p in range(stop - 1, start - 1, -1):
            carry = carried[p - start, :] + xp.matmul(u[p, p + 1 : stop], left[p + 1 : stop, :])
            target = (left[p, :] + carry / pivots[p]) / step
            weight = 0.0 if factor.dead[p] else pivots[p] ** 2 * unit
            code = rates.pick(target, weight, price)
            codes[places[p], :] = code
            left[p, :] -= code * step
    return codes


def _sweep(xp: Any, codes: Array, pull: Array, h: Array, step: float, price: float) -> bool:
    """Move each code [in, out] once to where error and code length together are least, in place.

    pull: [in, out] H (W - V)^T, changed along. Says whether it is worth while to go on.
    """
    rates = _Rates(xp, codes)
    curvature = [float(value) for value in xp.linalg.diagonal(h)]
    inputs, outputs = codes.shape
    moved = 0
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        near = pull[start:stop, :]  # a view, kept up to date; the rest follows in one product
        before = xp.asarray(codes[start:stop, :], copy=True)
        for i in range(start, stop):
            now, bend = codes[i, :], curvature[i]
            target = now if bend <= 0 else now + near[i - start, :] / (bend * step)
            change = rates.pick(target, bend * step * step, price) - now
            count = int(xp.count_nonzero(change))
            if count:
                moved += count
                codes[i, :] += change
                near -= h[start:stop, i][:, None] * (change * step)[None, :]
        steps = (codes[start:stop, :] - before) * step
        if bool(xp.any(steps != 0)):
            for first, last in ((0, start), (stop, inputs)):
                for piece in row_slices(last - first, 1024):
                    far = slice(first + piece.start, first + piece.stop)
                    pull[far, :] -= xp.matmul(h[far, start:stop], steps)
    return moved > _STILL * int(inputs * outputs)


class _Rates:
    """Bits of each code by how often it is used, and which code a target gets for them."""

    def __init__(self, xp: Any, codes: Array) -> None:
        values, found = xp.unique_counts(xp.reshape(xp.astype(codes, xp.int64), (-1,)))
        used = {int(v): int(n) for v, n in zip(values, found, strict=True)}
        # Codes somewhat beyond those in use may be had too.
        reach = min(LARGEST, 2 + max(-min(used), max(used)) * 5 // 4)
        # Far codes are rarer still: smoothing falls off, so that they never look cheap.
        counts = {k: used.get(k, 0) + _SMOOTHING * 0.7 ** abs(k) for k in range(-reach, reach + 1)}
        total = math.fsum(counts.values())
        self._bits = [(k, math.log2(total / count)) for k, count in counts.items()]
        self._xp = xp

    def pick(self, target: Array, weight: float, price: float) -> Array:
        """Give, for each target, the code k of least weight * (k - target)^2 + price * bits(k).

        Less weight * target^2, which is common to all, the cost of k is a straight line in the
        target: those that are least somewhere are corners of the lower convex hull of the points
        (k, weight * k^2 + price * bits(k)), and each of them holds a range of targets.
        """
        xp = self._xp
        if weight <= 0:
            return xp.zeros_like(target)
        ratio = price / weight
        hull: list[tuple[int, float]] = []
        edges: list[float] = []  # targets at which one code gives way to the next
        for k, bits in self._bits:
            height = k * k + ratio * bits
            while hull:
                edge = (height - hull[-1][1]) / (2 * (k - hull[-1][0]))
                if not edges or edge > edges[-1]:
                    edges.append(edge)
                    break
                hull.pop()
                edges.pop()
            hull.append((k, height))
        place = device(target)
        found = xp.searchsorted(xp.asarray(edges, dtype=target.dtype, device=place), target)
        kept = xp.asarray([k for k, _ in hull], dtype=target.dtype, device=place)
        return xp.take(kept, found)
