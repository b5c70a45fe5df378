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
from typing import Literal

from array_api_compat import array_namespace, device

from packlight.maths.compensate import Waiting, compensate_inputs
from packlight.maths.descent import slopes, sweep_codes
from packlight.maths.grids import Array, Grid, IntegerGrid, expand_blocks
from packlight.maths.layer import (
    Precision,
    block_shape_of,
    by_input,
    check_moments,
    one_a_block,
    row_slices,
    working_type,
)
from packlight.maths.pairs import code_limits, fit_partner, leave_room


@dataclass(frozen=True)
class RoundingInfo:
    """What error-compensated rounding did.

    damping: what was added to the diagonal, as a share of its mean; above what was asked
        for where the second moments had to be made positive definite.
    error: tr((W - Q) H (W - Q)^T) with the damped H, dead inputs left out.
    dead_inputs: inputs that were always 0; their weights are rounded to nearest.
    limited: codes that the pair limit moved.
    least_pivot: the smallest part of an input's second moment that the inputs after it do
        not explain, over the mean diagonal. Near the damping where inputs depend on each
        other linearly, as they must when there were fewer samples than inputs.
    """

    damping: float
    error: float
    dead_inputs: int
    limited: int
    least_pivot: float


def round_to_nearest(
    weight: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    group_size: int | None = None,
) -> Array:
    """Give the nearest codes of a weight [out, in].

    scale, zero_point: a scalar, [out] or [out, 1], or [out, groups] along the inputs
    (`group_size` is needed where groups do not divide the inputs).
    Returns codes [out, in].
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    block = block_shape_of(weight, scale, group_size)
    s, z = (one_a_block(xp, values, weight.shape, block) for values in (scale, zero_point))
    codes = xp.empty((outputs, inputs), dtype=getattr(xp, grid.dtype_name), device=device(weight))
    for rows in row_slices(outputs):
        part = weight[rows, :]
        wide_s, wide_z = (
            expand_blocks(v[rows, :] if v.shape[0] > 1 else v, part.shape, block) for v in (s, z)
        )
        found = grid.codes_of(part / wide_s, xp.astype(wide_z, xp.float64))
        codes[rows, :] = xp.astype(found, codes.dtype)
    return codes


def round_with_compensation(
    weight: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Literal["given", "descending"] = "given",
    pair_limit: int | None = None,
    group_size: int | None = None,
    precision: Precision | None = None,
) -> tuple[Array, RoundingInfo]:
    """Round one input at a time and let the inputs still free make up for the error.

    The targets are those of GPTQ (Frantar et al. 2022): see `compensate_inputs`.

    weight: [out, in]. second_moments: [in, in], symmetric. scale, zero_point: as in
    `round_to_nearest`. damping: share of the mean diagonal added to it, raised tenfold as
    often as the factorization fails. block: inputs between two matrix products.
    order: "descending" rounds the inputs of largest second moment first.
    pair_limit: of two codes at inputs (2j, 2j + 1) with the same sign |c0 + c1| <= pair_limit;
    the earlier one leaves the later its share of the excess, the later one gets what the
    earlier left, and both errors are compensated as any other. Integer grids only.
    precision: of the large arrays; by itself "float32" for a float32 weight of more than
    1024 inputs, otherwise "float64". Memory besides the inputs and the codes: two arrays of
    that type, [in, in] and [in, out].
    Returns codes [out, in] and RoundingInfo.
    Raises ValueError for second moments that are not finite or of another size.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    dtype = working_type(weight, precision)
    check_moments(second_moments, inputs)
    lowest, highest = code_limits(grid, pair_limit)
    shape = block_shape_of(weight, scale, group_size)
    s, z = (by_input(xp, values, weight.shape, shape) for values in (scale, zero_point))
    codes = xp.empty((inputs, outputs), dtype=getattr(xp, grid.dtype_name), device=device(weight))
    limited = 0

    def pick(place: int, target: Array, waiting: Waiting) -> Array:
        nonlocal limited
        scale_i, zero_i = s.at(place), z.at(place)
        steps = target / scale_i
        code = grid.codes_of(steps, zero_i)
        partner = place ^ 1
        if pair_limit is not None and partner < inputs:
            code = code.clip(lowest, highest)
            later = waiting(partner)
            if later is None:
                known = xp.astype(codes[partner, :], xp.float64)
                fitting = fit_partner(xp, code, known, pair_limit)
            else:
                ahead = later / s.at(partner) + z.at(partner)
                fitting = leave_room(xp, code, steps + zero_i, ahead, pair_limit)
            limited += int(xp.count_nonzero(fitting != code))
            code = fitting.clip(lowest, highest)
        codes[place, :] = xp.astype(code, codes.dtype)
        return grid.steps_of(code, zero_i) * scale_i

    found = compensate_inputs(
        weight, second_moments, pick, damping=damping, dtype=dtype, block=block, order=order
    )
    info = RoundingInfo(
        damping=found.factor.damping,
        error=found.error,
        dead_inputs=sum(found.factor.dead),
        limited=limited,
        least_pivot=found.factor.least_pivot,
    )
    return xp.asarray(codes.T, copy=True), info


def limit_pairs(codes: Array, target: Array, grid: IntegerGrid, *, pair_limit: int) -> Array:
    """Move the pairs of codes that break the pair limit to the nearest ones that keep it.

    codes: [out, in], the nearest to target. target: [out, in], weight / scale + zero_point.
    Minimises (c0 - t0)^2 + (c1 - t1)^2 over integers. Returns codes [out, in].
    """
    xp = array_namespace(codes)
    lowest, highest = code_limits(grid, pair_limit)
    wide = xp.astype(codes, xp.float64).clip(lowest, highest)
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
    return xp.astype(wide, getattr(xp, grid.dtype_name))


def coordinate_descent(
    weight: Array,
    codes: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    sweeps: int = 10,
    pair_limit: int | None = None,
    group_size: int | None = None,
    precision: Precision | None = None,
) -> Array:
    """Move single codes to their best value until none is left that would gain.

    With E = W - Q, moving value i by d changes the error by d^2 H_ii - 2 d (E H)_i, least at
    d = (E H)_i / H_ii: the code nearest to there is the best. Where a pair limit holds, codes
    of a pair also move against each other, since neither may be able to move alone. Never
    raises tr(E H E^T), rounding noise of the precision aside.
    weight, codes: [out, in]; the codes must keep the pair limit. second_moments: [in, in].
    sweeps: at most this often over all inputs. precision: as in `round_with_compensation`.
    Returns codes [out, in].
    """
    xp = array_namespace(weight)
    inputs = weight.shape[1]
    dtype = working_type(weight, precision)
    check_moments(second_moments, inputs)
    code_limits(grid, pair_limit)
    shape = block_shape_of(weight, scale, group_size)
    s, z = (by_input(xp, values, weight.shape, shape) for values in (scale, zero_point))
    h = xp.astype(second_moments, dtype, copy=False)
    q = xp.asarray(codes.T, copy=True)
    pull = slopes(weight, q, h, s, z, grid)
    final = xp.asarray(q, copy=True)
    rows = xp.arange(weight.shape[0], device=device(weight))  # those that may still gain
    for _ in range(sweeps):
        moved = sweep_codes(q, pull, h, s, z, grid, pair_limit=pair_limit)
        final[:, rows] = q
        kept = xp.nonzero(moved)[0]
        if not kept.shape[0]:
            break
        # Rows know nothing of each other: one that stood still in a sweep does so for ever.
        if kept.shape[0] < 0.75 * rows.shape[0]:
            rows, q, pull = rows[kept], xp.take(q, kept, axis=1), xp.take(pull, kept, axis=1)
            s, z = (values.of_outputs(kept) for values in (s, z))
    return xp.asarray(final.T, copy=True)


def output_error(weight: Array, other: Array, second_moments: Array) -> float:
    """Give the mean squared error at a layer's output: tr((W - V) H (W - V)^T).

    weight, other: [out, in]. second_moments: [in, in]. Summed over the outputs.
    """
    xp = array_namespace(weight)
    h = xp.astype(second_moments, xp.float64, copy=False)
    total = 0.0
    for rows in row_slices(weight.shape[0], 1024):
        off = xp.astype(weight[rows, :], xp.float64) - xp.astype(other[rows, :], xp.float64)
        total += float(xp.sum(xp.matmul(off, h) * off))
    return total
