"""Which grid point a weight gets: the nearest, error-compensated, coordinate descent.

A layer is weight W [out, in] with the second moments H = E[x x^T] [in, in] of what
reaches it. All of these minimise the error at the layer's output,
tr((W - V) H (W - V)^T), over the grid's points V.

Limits on pairs: x86 kernels without VNNI add two products of an unsigned activation
and a signed weight in a saturating 16-bit integer, 255 * (c0 + c1) <= 32767. With a pair
limit of 128 on the codes of inputs (2j, 2j + 1) nothing can saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from packlight.maths.grids import Array, IntegerGrid, dequantize, expand_blocks, quantize


@dataclass(frozen=True)
class RoundingInfo:
    """What error-compensated rounding did.

    damping: what was added to the diagonal, as a share of its mean; above what was asked
        for where the second moments had to be made positive definite.
    error: tr((W - Q) H (W - Q)^T) with the damped H.
    dead_inputs: inputs that were always 0; their weights are rounded to nearest.
    limited: codes that the pair limit moved.
    """

    damping: float
    error: float
    dead_inputs: int
    limited: int


def round_to_nearest(
    weight: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    group_size: int | None = None,
) -> Array:
    """Give the nearest codes of a weight [out, in].

    scale, zero_point: a scalar, [out] or [out, 1], or [out, groups] along the inputs
    (`group_size` is needed where groups do not divide the inputs).
    Returns codes [out, in].
    """
    block = _block_shape(weight, scale, group_size)
    return quantize(weight, scale, zero_point, grid, block_shape=block)


def round_with_compensation(
    weight: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Literal["given", "descending"] = "given",
    pair_limit: int | None = None,
    group_size: int | None = None,
) -> tuple[Array, RoundingInfo]:
    """Round one input at a time and let the inputs still free make up for the error.

    With H = R R^T, R upper triangular, tr((W - Q) H (W - Q)^T) = |(W - Q) R|^2, whose
    column i holds inputs up to i only: input i is rounded at the target
    t_i = w_i + sum_{j < i} (w_j - q_j) R_ji / R_ii, and costs ((t_i - q_i) R_ii)^2. As
    R_ii = 1 / U_ii for the upper Cholesky factor U of H^-1, these are the targets of GPTQ
    (Frantar et al. 2022, algorithm 1) without an inverse.

    weight: [out, in]. second_moments: [in, in], symmetric. scale, zero_point: as in
    `round_to_nearest`. damping: share of the mean diagonal added to it, raised tenfold as
    often as the factorization fails. block: inputs between two matrix products.
    order: "descending" rounds the inputs of largest second moment first.
    pair_limit: of two codes at inputs (2j, 2j + 1) with the same sign |c0 + c1| <= pair_limit;
    the earlier one leaves the later its share of the excess, the later one gets what the
    earlier left, and both errors are compensated as any other.
    Returns codes [out, in] and RoundingInfo.
    Raises ValueError for second moments that are not finite or of another size.
    """
    xp = array_namespace(weight)
    inputs = weight.shape[1]
    w = xp.astype(weight, xp.float64)
    shape = _block_shape(weight, scale, group_size)
    s = _columns(xp, scale, weight.shape, shape)
    z = _columns(xp, zero_point, weight.shape, shape)
    h = _checked(xp, second_moments, inputs)
    diagonal = xp.linalg.diagonal(h)
    permutation = list(range(inputs))
    if order == "descending":
        permutation = [int(i) for i in xp.argsort(diagonal, descending=True)]
    index = xp.asarray(permutation)
    r, damping = _upper_factor(xp, xp.take(xp.take(h, index, axis=0), index, axis=1), damping)
    w = xp.take(w, index, axis=1)
    position = {place: i for i, place in enumerate(permutation)}

    lowest, highest = _code_limits(grid, pair_limit)
    # Inputs first: the inner loop then reads and writes contiguous rows.
    w_t = xp.asarray(w.T, copy=True)
    left = xp.zeros_like(w_t)  # w - q of the inputs rounded so far
    codes = xp.zeros_like(w_t)  # by their original place
    rounded = [False] * inputs
    total, limited = 0.0, 0
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        carried = xp.matmul(r[:start, start:stop].T, left[:start, :])
        for i in range(start, stop):
            place = permutation[i]
            carry = carried[i - start, :] + xp.matmul(r[start:i, i], left[start:i, :])
            target = w_t[i, :] + carry / r[i, i]
            scale_i, zero_i = s[min(place, s.shape[0] - 1), :], z[min(place, z.shape[0] - 1), :]
            code = xp.round(target / scale_i) + zero_i
            code = code.clip(lowest, highest)
            partner = place ^ 1
            if pair_limit is not None and partner < inputs:
                if rounded[partner]:
                    fitting = _fit_partner(xp, code, codes[partner, :], pair_limit)
                else:
                    scale_j, zero_j = (
                        s[min(partner, s.shape[0] - 1), :],
                        z[min(partner, z.shape[0] - 1), :],
                    )
                    ahead = w_t[position[partner], :] / scale_j + zero_j
                    fitting = _leave_room(xp, code, target / scale_i + zero_i, ahead, pair_limit)
                limited += int(xp.count_nonzero(fitting != code))
                code = fitting.clip(lowest, highest)
            codes[place, :] = code
            rounded[place] = True
            value = (code - zero_i) * scale_i
            left[i, :] = w_t[i, :] - value
            total += float(xp.sum((target - value) ** 2) * r[i, i] ** 2)
    dead = int(xp.count_nonzero(diagonal == 0))
    return _typed(xp, codes.T, grid), RoundingInfo(damping, total, dead, limited)


def limit_pairs(codes: Array, target: Array, grid: IntegerGrid, *, pair_limit: int) -> Array:
    """Move the pairs of codes that break the pair limit to the nearest ones that keep it.

    codes: [out, in], the nearest to target. target: [out, in], weight / scale + zero_point.
    Minimises (c0 - t0)^2 + (c1 - t1)^2 over integers. Returns codes [out, in].
    """
    xp = array_namespace(codes)
    lowest, highest = _code_limits(grid, pair_limit)
    wide = xp.astype(codes, xp.float64)
    wide = wide.clip(lowest, highest)
    even = 2 * (codes.shape[1] // 2)
    first, second = wide[:, 0:even:2], wide[:, 1:even:2]
    gap = xp.astype(target, xp.float64)[:, 0:even:2] - xp.astype(target, xp.float64)[:, 1:even:2]
    total = first + second
    # The nearest pair lies on the line c0 + c1 = +-limit, at the foot of its perpendicular.
    bound = xp.sign(total) * pair_limit
    foot = xp.round((bound + gap) / 2)
    foot = xp.maximum(foot, xp.maximum(bound - highest, xp.minimum(bound, 0 * bound)))
    foot = xp.minimum(foot, xp.minimum(bound - lowest, xp.maximum(bound, 0 * bound)))
    foot = foot.clip(lowest, highest)
    broken = xp.abs(total) > pair_limit
    wide = xp.asarray(wide, copy=True)
    wide[:, 0:even:2] = xp.where(broken, foot, first)
    wide[:, 1:even:2] = xp.where(broken, bound - foot, second)
    return _typed(xp, wide, grid)


def coordinate_descent(
    weight: Array,
    codes: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    sweeps: int = 10,
    pair_limit: int | None = None,
    group_size: int | None = None,
) -> Array:
    """Move single codes to their best value until none is left that would gain.

    With E = W - Q, moving code i by d changes the error by s^2 d^2 H_ii - 2 s d (E H)_i, least
    at d = round((E H)_i / (s H_ii)). Where a pair limit holds, codes of a pair also move against
    each other, since neither may be able to move alone. Never raises tr(E H E^T).
    weight, codes: [out, in]; the codes must keep the pair limit. second_moments: [in, in].
    sweeps: at most this often over all inputs. Returns codes [out, in].
    """
    xp = array_namespace(weight)
    inputs = weight.shape[1]
    shape = _block_shape(weight, scale, group_size)
    s = _columns(xp, scale, weight.shape, shape)
    h = _checked(xp, second_moments, inputs)
    values = dequantize(codes, scale, zero_point, block_shape=shape)
    q = xp.asarray(xp.astype(codes, xp.float64).T, copy=True)
    error = xp.astype(weight, xp.float64) - xp.astype(values, xp.float64)
    pull = xp.matmul(error, h)  # E H, kept up to date
    lowest, highest = _code_limits(grid, pair_limit)
    curvature = [float(value) for value in xp.linalg.diagonal(h)]

    def move(direction: Array, step: Array, rows: Array) -> None:
        pull[rows, :] -= step[rows][:, None] * direction[None, :]

    for _ in range(sweeps):
        moved = 0
        for i in range(inputs):
            if curvature[i] <= 0:
                continue
            scale_i = s[min(i, s.shape[0] - 1), :]
            ideal = q[i, :] + xp.round(pull[:, i] / (scale_i * curvature[i]))
            ideal = ideal.clip(lowest, highest)
            if pair_limit is not None and (i ^ 1) < inputs:
                ideal = _fit_partner(xp, ideal, q[i ^ 1, :], pair_limit)
            step = (ideal - q[i, :]) * scale_i
            rows = _nonzero(xp, _gains(step, pull[:, i], curvature[i]))
            if rows.shape[0]:
                q[i, rows] = ideal[rows]
                move(h[i, :], step, rows)
                moved += 1
            if pair_limit is None or i % 2 or i + 1 >= inputs:
                continue
            scale_j = s[min(i + 1, s.shape[0] - 1), :]
            for sign in (1.0, -1.0):
                one, two = q[i, :] + sign, q[i + 1, :] - sign
                allowed = (one >= lowest) & (one <= highest) & (two >= lowest) & (two <= highest)
                allowed &= (one * two <= 0) | (xp.abs(one + two) <= pair_limit)
                slope = sign * (scale_i * pull[:, i] - scale_j * pull[:, i + 1])
                bend = scale_i**2 * curvature[i] + scale_j**2 * curvature[i + 1]
                bend = bend - 2 * scale_i * scale_j * h[i, i + 1]
                rows = _nonzero(xp, allowed & (bend - 2 * slope < -1e-9 * abs(bend)))
                if rows.shape[0]:
                    q[i, rows], q[i + 1, rows] = one[rows], two[rows]
                    move(h[i, :], sign * scale_i, rows)
                    move(h[i + 1, :], -sign * scale_j, rows)
                    moved += 1
        if not moved:
            break
    return _typed(xp, q.T, grid)


def output_error(weight: Array, other: Array, second_moments: Array) -> float:
    """Give the mean squared error at a layer's output: tr((W - V) H (W - V)^T).

    weight, other: [out, in]. second_moments: [in, in]. Summed over the outputs.
    """
    xp = array_namespace(weight)
    off = xp.astype(weight, xp.float64) - xp.astype(other, xp.float64)
    return float(xp.sum(xp.matmul(off, xp.astype(second_moments, xp.float64)) * off))


def _gains(step: Array, pull: Array, curvature: float) -> Array:
    """Say which moves lower the error by more than rounding noise."""
    change = step * step * curvature - 2 * step * pull
    return change < -1e-9 * step * step * curvature


def _upper_factor(xp: Any, h: Array, damping: float) -> tuple[Array, float]:
    """Factor H + damping * mean(diagonal) * I as R R^T with R upper triangular.

    It is the Cholesky factor of H read backwards. Returns R and the damping that worked.
    """
    diagonal = xp.linalg.diagonal(h)
    dead = diagonal <= 0
    alive = int(xp.count_nonzero(~dead))
    mean = float(xp.sum(diagonal)) / alive if alive else 1.0
    identity = xp.eye(h.shape[0], dtype=h.dtype)
    h = h + mean * identity * xp.astype(dead, h.dtype)
    for attempt in range(12):
        used = damping if not attempt else max(damping, 1e-7) * 10**attempt
        backwards = xp.flip(h + used * mean * identity)
        try:
            r = xp.flip(xp.linalg.cholesky(backwards))
        except (np.linalg.LinAlgError, RuntimeError):  # RuntimeError: PyTorch's own
            continue
        if bool(xp.all(xp.isfinite(r))):
            return r, used
    raise ValueError("the second moments are not positive definite, whatever the damping")


def _checked(xp: Any, second_moments: Array, inputs: int) -> Array:
    if tuple(second_moments.shape) != (inputs, inputs):
        raise ValueError(
            f"second moments of shape {tuple(second_moments.shape)} do not fit {inputs} inputs"
        )
    h = xp.astype(second_moments, xp.float64)
    if not bool(xp.all(xp.isfinite(h))):
        raise ValueError("the second moments are not finite: look for NaN in the samples")
    return (h + h.T) / 2


def _block_shape(weight: Array, scale: Array, group_size: int | None) -> tuple[int, int]:
    """Tell from a scale's shape how a weight [out, in] is cut into blocks."""
    outputs, inputs = weight.shape
    shape = tuple(getattr(scale, "shape", ()))
    if group_size is not None:
        return (1, group_size)
    if len(shape) == 2 and shape[0] == outputs and shape[1] > 1:
        if inputs % shape[1]:
            raise ValueError(f"{shape[1]} groups do not divide {inputs} inputs: say the group_size")
        return (1, inputs // shape[1])
    return (1, -1) if outputs in shape else (-1, -1)


def _columns(xp: Any, values: Array, shape: tuple[int, int], block: tuple[int, int]) -> Array:
    """Give [in or 1, out or 1] values of each column, for one value a block."""
    wide = expand_blocks(xp.astype(xp.asarray(values), xp.float64), shape, block)
    return xp.asarray(wide.T, copy=True)


def _code_limits(grid: IntegerGrid, pair_limit: int | None) -> tuple[int, int]:
    if pair_limit is None:
        return grid.minimum, grid.maximum
    if pair_limit < 1:
        raise ValueError(f"a pair limit is above 0, not {pair_limit}")
    return max(grid.minimum, -pair_limit), min(grid.maximum, pair_limit)


def _fit_partner(xp: Any, code: Array, partner: Array, pair_limit: int) -> Array:
    """Clamp codes to what their partners leave of the pair limit."""
    nothing = xp.zeros_like(partner)
    code = xp.minimum(code, pair_limit - xp.maximum(partner, nothing))
    return xp.maximum(code, -pair_limit - xp.minimum(partner, nothing))


def _leave_room(xp: Any, code: Array, target: Array, ahead: Array, pair_limit: int) -> Array:
    """Take a code back by half the excess that its partner, not yet rounded, would bring."""
    total = target + ahead
    bound = xp.sign(total) * pair_limit
    half = xp.round((bound + target - ahead) / 2)
    broken = (target * ahead > 0) & (xp.abs(xp.round(total)) > pair_limit)
    inside = xp.sign(total) * (xp.sign(total) * half).clip(0, pair_limit)
    return xp.where(broken, inside, code)


def _typed(xp: Any, codes: Array, grid: IntegerGrid) -> Array:
    return xp.asarray(xp.astype(codes, getattr(xp, grid.dtype_name)), copy=True)


def _nonzero(xp: Any, mask: Array) -> Array:
    return xp.nonzero(mask)[0]
