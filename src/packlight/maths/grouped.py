"""Rounding of layers whose channels are in groups: many small layer problems side by side.

A group is a layer of its own, weight W_g [out, in] with the second moments H_g [in, in] of the
channels it reads. A depthwise convolution has as many groups as channels and nine inputs in
each: one after another they would take longer than all the rest of a model, so that every step
here is taken for all groups at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from packlight.maths.grids import Array, Grid
from packlight.maths.pairs import code_limits, fit_partner, leave_room
from packlight.maths.rounding import RoundingInfo

STARTS = (1.0, 0.7, 0.8, 0.9, 1.12)
"""Scales from which a few inputs' codes are sought, in those that were given."""


def round_groups(
    weight: Array,
    codes: Array,
    second_moments: Array,
    scale: Array,
    grid: Grid,
    *,
    fit_scale: bool = True,
    rounds: int = 4,
    sweeps: int = 4,
    damping: float = 0.01,
    pair_limit: int | None = None,
) -> tuple[Array, Array, RoundingInfo]:
    """Round with compensation and coordinate descent, refit the scales, and again.

    The same solvers as `round_with_compensation` and `coordinate_descent`, inputs in the given
    order and zero points 0, with the scale of an output that fits its codes best,
    s = (q H w) / (q H q). With `fit_scale` each output is rounded from several scales (`STARTS`).
    weight: [groups, out, in]. codes: of the same shape, what to improve on; they keep the pair
    limit. second_moments: [groups, in, in], symmetric. scale: [groups, out].
    rounds: of codes and scales in turn, one without `fit_scale`. pair_limit: as in
    `round_with_compensation`, on inputs of the same group.
    Returns codes, float32 scales and RoundingInfo, whose error is tr((W - Q) H (W - Q)^T), not
    damped and summed over the groups; that of no output is above what it was for the codes given.
    Raises ValueError for second moments that are not finite or of another size.
    """
    xp = array_namespace(weight)
    groups, outputs, inputs = weight.shape
    if tuple(second_moments.shape) != (groups, inputs, inputs):
        raise ValueError(
            f"second moments of shape {tuple(second_moments.shape)} do not fit {groups} groups "
            f"of {inputs} inputs"
        )
    if not bool(xp.all(xp.isfinite(second_moments))):
        raise ValueError("the second moments are not finite: look for NaN in the samples")
    w = xp.astype(weight, xp.float64)
    h = xp.astype(second_moments, xp.float64)
    h = (h + xp.matrix_transpose(h)) / 2
    unit = _mean_of_alive(xp, xp.linalg.diagonal(h))
    h = h / unit[:, None, None]
    dead = xp.linalg.diagonal(h) <= 0
    upper, damping = _factor(xp, h, dead, damping)
    problem = _Problem(xp, h, upper, grid, pair_limit, code_limits(grid, pair_limit))

    best, best_scale = xp.astype(codes, xp.float64), xp.astype(scale, xp.float64)
    least = problem.errors(w, best, best_scale)
    # The starts stand below each other as more outputs: one pass serves them all.
    starts = STARTS if fit_scale else (1.0,)
    many = xp.concat([w] * len(starts), axis=1)
    trial = xp.concat([best_scale * factor for factor in starts], axis=1)
    trial = xp.astype(xp.astype(trial, xp.float32), xp.float64)
    found, limited = problem.compensate(many, trial)
    found = problem.descend(many, found, trial, sweeps)
    for _ in range(rounds if fit_scale else 0):
        trial = problem.fit(many, found, trial)
        found = problem.descend(many, found, trial, sweeps)
    if fit_scale:
        trial = problem.fit(many, found, trial)
    errors = problem.errors(many, found, trial)
    for number in range(len(starts)):
        rows = slice(number * outputs, (number + 1) * outputs)
        better = errors[:, rows] < least
        least = xp.where(better, errors[:, rows], least)
        best = xp.where(better[:, :, None], found[:, rows, :], best)
        best_scale = xp.where(better, trial[:, rows], best_scale)
    pivots = xp.where(dead, xp.ones_like(unit)[:, None], xp.linalg.diagonal(upper) ** 2)
    info = RoundingInfo(
        damping=damping,
        error=float(xp.sum(least * unit[:, None])),
        dead_inputs=int(xp.count_nonzero(dead)),
        limited=limited,
        least_pivot=float(xp.min(pivots)),
    )
    return xp.astype(best, codes.dtype), xp.astype(best_scale, xp.float32), info


def output_error_of_groups(weight: Array, other: Array, second_moments: Array) -> float:
    """Give tr((W - V) H (W - V)^T), summed over the groups.

    weight, other: [outputs, in], one group below the other. second_moments: [groups, in, in].
    """
    xp = array_namespace(weight)
    groups, inputs, _ = second_moments.shape
    off = xp.astype(weight, xp.float64) - xp.astype(other, xp.float64)
    off = xp.reshape(off, (groups, -1, inputs))
    return float(xp.sum(xp.matmul(off, xp.astype(second_moments, xp.float64)) * off))


@dataclass(frozen=True)
class _Problem:
    """The layer problems of all groups.

    h: [groups, in, in]. upper: R with R R^T = damped h. limits: of a single code.
    """

    xp: Any
    h: Array
    upper: Array
    grid: Grid
    pair_limit: int | None
    limits: tuple[int, int]

    def values(self, codes: Array, scale: Array) -> Array:
        return self.grid.steps_of(codes) * scale[..., None]

    def errors(self, w: Array, codes: Array, scale: Array) -> Array:
        """Each output's error, [groups, out]."""
        off = w - self.values(codes, scale)
        return self.xp.sum(self.xp.matmul(off, self.h) * off, axis=-1)

    def fit(self, w: Array, codes: Array, scale: Array) -> Array:
        """The scales that fit codes best, as float32 holds them; where none does, the old."""
        xp = self.xp
        steps = self.grid.steps_of(codes)
        reach = xp.matmul(steps, self.h)
        above, below = xp.sum(reach * w, axis=-1), xp.sum(reach * steps, axis=-1)
        usable = (above > 0) & (below > 0)
        fitted = above / xp.where(usable, below, xp.ones_like(below))
        fitted = xp.astype(xp.astype(fitted, xp.float32), xp.float64)
        usable = usable & (fitted > 0) & xp.isfinite(fitted)
        fitted = xp.where(usable, fitted, scale)
        better = self.errors(w, codes, fitted) < self.errors(w, codes, scale)
        return xp.where(better, fitted, scale)

    def compensate(self, w: Array, scale: Array) -> tuple[Array, int]:
        """One input after another, each at the target that makes up for those before it.

        Returns codes, and how many of them the pair limit moved.
        """
        xp, limited = self.xp, 0
        codes, off = xp.zeros_like(w), xp.zeros_like(w)
        for i in range(w.shape[2]):
            carried = xp.matmul(off[:, :, :i], self.upper[:, :i, i : i + 1])[:, :, 0]
            target = (w[:, :, i] + carried / self.upper[:, i, i][:, None]) / scale
            code = self.grid.codes_of(target)
            partner = i ^ 1
            if self.pair_limit is not None and partner < w.shape[2]:
                code = code.clip(*self.limits)
                if partner < i:
                    fitting = fit_partner(xp, code, codes[:, :, partner], self.pair_limit)
                else:
                    ahead = w[:, :, partner] / scale
                    fitting = leave_room(xp, code, target, ahead, self.pair_limit)
                limited += int(xp.count_nonzero(fitting != code))
                code = fitting.clip(*self.limits)
            codes[:, :, i] = code
            off[:, :, i] = w[:, :, i] - self.grid.steps_of(code) * scale
        return codes, limited

    def descend(self, w: Array, codes: Array, scale: Array, sweeps: int) -> Array:
        """Move single codes to their best value, given all others."""
        xp = self.xp
        codes = xp.asarray(codes, copy=True)
        values = self.values(codes, scale)
        pull = xp.matmul(w - values, self.h)
        for _ in range(sweeps):
            moved = False
            for i in range(w.shape[2]):
                own = self.h[:, i, i][:, None]
                alive = own > 0
                gap = xp.where(alive, pull[:, :, i] / xp.where(alive, own, xp.ones_like(own)), 0.0)
                code = self.grid.codes_of((values[:, :, i] + gap) / scale)
                if self.pair_limit is not None and i ^ 1 < w.shape[2]:
                    code = fit_partner(xp, code, codes[:, :, i ^ 1], self.pair_limit)
                    code = code.clip(*self.limits)
                step = self.grid.steps_of(code) * scale - values[:, :, i]
                gains = alive & (step * (step - 2 * gap) < -1e-12 * scale * scale)
                if not bool(xp.any(gains)):
                    continue
                moved = True
                step = xp.where(gains, step, xp.zeros_like(step))
                codes[:, :, i] = xp.where(gains, code, codes[:, :, i])
                values[:, :, i] += step
                pull -= step[:, :, None] * self.h[:, None, i, :]
            if not moved:
                break
        return codes


def _mean_of_alive(xp: Any, diagonal: Array) -> Array:
    """The mean of what is above 0, [groups]; 1 where nothing is."""
    alive = diagonal > 0
    count = xp.sum(xp.astype(alive, xp.float64), axis=1)
    total = xp.sum(xp.where(alive, diagonal, xp.zeros_like(diagonal)), axis=1)
    return xp.where(count > 0, total / xp.where(count > 0, count, 1.0 + 0 * count), 1.0 + 0 * count)


def _factor(xp: Any, h: Array, dead: Array, damping: float) -> tuple[Array, float]:
    """R [groups, in, in], upper triangular with R R^T = h + damping, and the damping it took."""
    eye = xp.eye(h.shape[1], dtype=xp.float64, device=device(h))
    for attempt in range(12):
        used = damping if not attempt else max(damping, 1e-7) * 10**attempt
        added = (used + xp.astype(dead, xp.float64))[:, :, None] * eye
        try:
            lower = xp.linalg.cholesky(xp.flip(h + added, axis=(1, 2)))
        except (ValueError, RuntimeError):  # NumPy's and PyTorch's own
            continue
        if bool(xp.all(xp.isfinite(lower))):
            return xp.flip(lower, axis=(1, 2)), used
    raise ValueError("the second moments are not positive definite, whatever the damping")
