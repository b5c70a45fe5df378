"""One sweep of coordinate descent over a layer's codes, in blocks of inputs.

The slope E H of the error must follow every move. Inside a block it does so at once, outside
in one matrix product a block: nearly all work is then done by matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace, device

from packlight.maths.grids import Array, Grid
from packlight.maths.layer import ByInput, row_slices
from packlight.maths.pairs import code_limits, fit_partner

_BLOCK = 128  # even, so that pairs of inputs stay together

_AHEAD = 1024
"""Codes that are looked at together: where no input wants to move, none is gone through alone."""


def slopes(
    weight: Array, codes: Array, h: Array, scale: ByInput, zero: ByInput, grid: Grid
) -> Array:
    """Give (E H)^T [in, out] of E = W - Q. weight: [out, in]. codes: [in, out]."""
    xp = array_namespace(weight)
    off = xp.empty(codes.shape, dtype=h.dtype, device=device(weight))
    for rows in row_slices(codes.shape[0]):
        value = grid.steps_of(codes[rows, :], zero.of_inputs(rows)) * scale.of_inputs(rows)
        off[rows, :] = xp.astype(xp.astype(weight[:, rows], xp.float64).T - value, h.dtype)
    return xp.matmul(h, off)


def sweep_codes(
    q: Array,
    pull: Array,
    h: Array,
    scale: ByInput,
    zero: ByInput,
    grid: Grid,
    *,
    pair_limit: int | None,
) -> Array:
    """Move each code once to its best value, in place, and say which outputs had one moved.

    q: [in, out] codes. pull: [in, out] their `slopes`, changed along with them.
    """
    xp = array_namespace(q)
    inputs, outputs = q.shape
    curvature = [float(value) for value in xp.linalg.diagonal(h)]
    lowest, highest = code_limits(grid, pair_limit)
    noise = 1e-9 if h.dtype == xp.float64 else 1e-4
    moved = xp.zeros((outputs,), dtype=xp.bool, device=device(q))
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        near = pull[start:stop, :]  # a view, kept up to date; the rest follows in one product
        steps = xp.zeros((stop - start, outputs), dtype=h.dtype, device=device(q))
        scales, zeros = (values.of_inputs(slice(start, stop)) for values in (scale, zero))
        old = xp.astype(q[start:stop, :], xp.float64)
        olds = grid.steps_of(old, zeros)
        bends = xp.asarray(curvature[start:stop], dtype=xp.float64, device=device(q))
        bends = scales * xp.where(bends > 0, bends, xp.ones_like(bends))[:, None]
        for i, best in _find_moves(near, old, olds, bends, zeros, grid, pair_limit is not None):
            i += start
            if curvature[i] <= 0:
                continue
            scale_i, zero_i = scales[i - start, :], zeros[i - start, :]
            code, now = old[i - start, :], olds[i - start, :]
            if pair_limit is not None:
                best = best.clip(lowest, highest)
                if (i ^ 1) < inputs:
                    known = xp.astype(q[i ^ 1, :], xp.float64)
                    best = fit_partner(xp, best, known, pair_limit)
            step = (grid.steps_of(best, zero_i) - now) * scale_i
            change = step * step * curvature[i] - 2 * step * near[i - start, :]
            gains = change < -noise * step * step * curvature[i]
            if bool(xp.any(gains)):
                q[i, :] = xp.astype(xp.where(gains, best, code), q.dtype)
                step = xp.astype(xp.where(gains, step, xp.zeros_like(step)), h.dtype)
                near -= h[start:stop, i][:, None] * step[None, :]
                steps[i - start, :] += step
                moved |= gains
            if pair_limit is None or i % 2 or i + 1 >= inputs:
                continue
            scale_j = scale.at(i + 1)
            bend = scale_i**2 * curvature[i] + scale_j**2 * curvature[i + 1]
            bend = bend - 2 * scale_i * scale_j * float(h[i, i + 1])
            for sign in (1.0, -1.0):
                one = xp.astype(q[i, :], xp.float64) + sign
                two = xp.astype(q[i + 1, :], xp.float64) - sign
                allowed = (one >= lowest) & (one <= highest) & (two >= lowest) & (two <= highest)
                allowed &= (one * two <= 0) | (xp.abs(one + two) <= pair_limit)
                slope = scale_i * near[i - start, :] - scale_j * near[i + 1 - start, :]
                gains = allowed & (bend - 2 * sign * slope < -noise * xp.abs(bend))
                if bool(xp.any(gains)):
                    q[i, :] = xp.astype(xp.where(gains, one, one - sign), q.dtype)
                    q[i + 1, :] = xp.astype(xp.where(gains, two, two + sign), q.dtype)
                    for k, by in ((i, sign * scale_i), (i + 1, -sign * scale_j)):
                        step = xp.astype(xp.astype(gains, xp.float64) * by, h.dtype)
                        near -= h[start:stop, k][:, None] * step[None, :]
                        steps[k - start, :] += step
                    moved |= gains
                    after = i + 1 - start
                    old[after, :] = q[i + 1, :]
                    olds[after, :] = grid.steps_of(old[after, :], zeros[after, :])
        if bool(xp.any(steps != 0)):
            for first, last in ((0, start), (stop, inputs)):
                for piece in row_slices(last - first, 1024):
                    far = slice(first + piece.start, first + piece.stop)
                    pull[far, :] -= xp.matmul(h[far, start:stop], steps)
    return moved


def _find_moves(
    near: Array, old: Array, olds: Array, bends: Array, zeros: Array, grid: Grid, every: bool
) -> Iterator[tuple[int, Array]]:
    """Yield one input after another with its best codes, where some of them are other than `old`.

    near, old: slopes and codes [inputs, out], looked at anew after each input that is yielded.
    olds: steps of the codes. bends: what a step costs, zeros: zero points. every: inputs whose
    codes are the best are yielded too.
    """
    xp = array_namespace(near)
    inputs, outputs = near.shape
    ahead = 1 if every else min(max(_AHEAD // max(outputs, 1), 1), 16)
    place = 0
    while place < inputs:
        some = slice(place, min(place + ahead, inputs))
        best = grid.codes_of(olds[some, :] + near[some, :] / bends[some, :], zeros[some, :])
        moving = xp.nonzero(xp.any(best != old[some, :], axis=1))[0]
        if every or moving.shape[0]:
            first = 0 if every else int(moving[0])
            yield place + first, best[first, :]
            place += first + 1
        else:
            place = some.stop
