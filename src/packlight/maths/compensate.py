"""One input of a layer after another gets its final value, and those still free make up for it.

What rounding and pruning have in common: only what value an input gets differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from array_api_compat import array_namespace, device

from packlight.maths.factor import Factor, factor_moments
from packlight.maths.grids import Array
from packlight.maths.layer import row_slices

INNER = 16
"""Inputs between two small matrix products."""

Waiting: TypeAlias = Callable[[int], "Array | None"]
"""Gives the weight [out] of an input that has no final value yet, otherwise None."""

Pick: TypeAlias = Callable[[int, Array, Waiting], Array]
"""Gives the final value [out] of an input for its target [out]."""

Look: TypeAlias = Callable[[Sequence[int], Array, Sequence[float]], None]
"""Sees inputs before they are picked: their numbers, their targets [inputs, out] if all of them
stayed free, and what the square of an error costs at the output (0 for inputs that never came)."""


@dataclass(frozen=True)
class Compensation:
    """The factor that was used, and tr((W - V) H (W - V)^T) with its damped H.

    Inputs that never came are left out of the error.
    """

    factor: Factor
    error: float


def compensate_inputs(
    weight: Array,
    second_moments: Array,
    pick: Pick,
    *,
    damping: float,
    dtype: Any,
    block: int = 128,
    order: Literal["given", "descending"] = "given",
    look: Look | None = None,
    stretch: int = 0,
    inner: int = INNER,
) -> Compensation:
    """Pick the value of one input at a time at the target that makes up for those before it.

    With H = R R^T, R upper triangular, tr((W - V) H (W - V)^T) = |(W - V) R|^2, whose
    column i holds inputs up to i only: the target of input i is
    t_i = w_i + sum_{j < i} (w_j - v_j) R_ji / R_ii, and a value costs ((t_i - v_i) R_ii)^2. As
    R_ii = 1 / U_ii for the upper Cholesky factor U of H^-1, these are the targets of GPTQ
    (Frantar et al. 2022, algorithm 1) without an inverse.

    weight: [out, in]. second_moments: [in, in]. order: "descending" takes the inputs of largest
    second moment first. damping: as in `factor_moments`. dtype: of the large arrays.
    block, inner: inputs between two large and two small matrix products.
    look: is called before each `stretch` of inputs, in the order in which they are picked; a
    stretch is a block, or divides `inner`, which divides the block.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    if look is not None and stretch != block and (inner % stretch or block % inner):
        raise ValueError(f"{stretch} inputs don't divide {inner}, or these a block of {block}")
    # Everything is stored last input first: R is then an ordinary Cholesky factor's transpose.
    index = xp.arange(inputs - 1, -1, -1, device=device(weight))
    if order == "descending":
        wide = xp.astype(xp.linalg.diagonal(second_moments), xp.float64)
        index = xp.flip(xp.argsort(wide, descending=True))
    places = [int(place) for place in index]
    position = {place: p for p, place in enumerate(places)}
    factor = factor_moments(second_moments, index, damping=damping, dtype=dtype)
    u, pivots = factor.upper, factor.pivots
    unit = math.ldexp(1.0, factor.exponent)
    prices = [0.0 if none else p * p * unit for p, none in zip(pivots, factor.dead, strict=True)]

    # Inputs are rows: the inner loop reads and writes contiguous memory.
    left = xp.empty((inputs, outputs), dtype=dtype, device=device(weight))
    for rows in row_slices(inputs):  # w, and w - v once an input is picked
        left[rows, :] = xp.astype(xp.take(weight, index[rows], axis=1), dtype).T
    total = 0.0
    for stop in range(inputs, 0, -block):
        start = max(stop - block, 0)
        carried = xp.matmul(u[start:stop, stop:], left[stop:, :])
        for end in range(stop, start, -inner):
            begin = max(end - inner, start)
            for p in range(end - 1, begin - 1, -1):
                if look is not None and (inputs - 1 - p) % stretch == 0:
                    low = max(p + 1 - stretch, 0)
                    near = u[low : p + 1, p + 1 : end]
                    ahead = carried[low - start : p + 1 - start, :]
                    ahead = ahead + xp.matmul(near, left[p + 1 : end, :])
                    corner = xp.triu(u[low : p + 1, low : p + 1])
                    ahead = left[low : p + 1, :] + xp.linalg.solve(corner, ahead)
                    look(places[low : p + 1], ahead, prices[low : p + 1])
                place = places[p]
                carry = carried[p - start, :] + xp.matmul(u[p, p + 1 : end], left[p + 1 : end, :])
                target = left[p, :] + carry / pivots[p]

                def waiting(other: int, p: int = p) -> Array | None:
                    return left[position[other], :] if position[other] < p else None

                value = pick(place, target, waiting)
                left[p, :] -= xp.astype(value, dtype)
                if not factor.dead[p]:
                    total += float(xp.sum((target - value) ** 2)) * pivots[p] ** 2
            carried[: begin - start, :] += xp.matmul(u[start:begin, begin:end], left[begin:end, :])
    return Compensation(factor, math.ldexp(total, factor.exponent))
