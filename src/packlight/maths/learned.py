"""Which of its two neighbours on the grid a weight gets, learned by gradient descent.

AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
Quantization") on the layer problem, where second moments stand in for samples: no network is
run and nothing is differentiated by machine. Works on any grid, even or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from packlight.maths.grids import Array, Grid, expand_blocks
from packlight.maths.layer import block_shape_of, check_moments

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""Limits of the sigmoid before it is cut to 0..1 (gamma and zeta): both ends are then reached."""

WARM_START = 0.2
"""Share of the iterations without the pull towards whole choices."""

BETA_FIRST, BETA_LAST = 20.0, 2.0
"""The exponent of that pull: high, it only holds what is nearly decided; low, it decides all."""

SWEEPS = 20
"""At most this often over all inputs when single choices are settled at the end."""

BALANCE = 100.0
"""The unit of a row's error, in means of gap^2 H_ii: the pull must win over a weight's own
curvature in the end, or it stays undecided; from 10 on it does, and 1,000 is not better."""


@dataclass(frozen=True)
class LearnedInfo:
    """What learned rounding did.

    error: tr((T - V) H (T - V)^T) of the codes returned, T being the target.
    nearest_error: the same of rounding to nearest; never below `error`.
    fell_back: rows that stay as rounded to nearest (or as they started), as learning found
        nothing better for them; 0 where all were learned.
    undecided: share of the weights still between their two neighbours at the end, beyond 1 %.
    """

    error: float
    nearest_error: float
    fell_back: int
    undecided: float


def round_learned(
    weight: Array,
    second_moments: Array,
    scale: Array,
    zero_point: Array,
    grid: Grid,
    *,
    target: Array | None = None,
    start_codes: Array | None = None,
    group_size: int | None = None,
    iterations: int = 1000,
    strength: float = 0.01,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> tuple[Array, LearnedInfo]:
    """Choose for each weight the grid point below or above it, all of them together.

    V = below + gap * h(a), h(a) = clip(sigmoid(a) * (zeta - gamma) + gamma, 0, 1), minimises
    tr((T - V) H (T - V)^T) / unit + strength * sum(1 - |2 h - 1|^beta) over a, by Adam (Kingma
    and Ba 2015), from where V is the weight (Nagel et al. 2020, section 3.3). At first the
    second term is off, then beta falls from 20 to 2 and every h goes to 0 or 1. The unit is
    proportional to each row's mean of gap^2 H_ii, so that the same strength and rate suit
    layers of every size and scale. What learning leaves is settled by single changes of choice
    until none gains. A float32 weight is learned in float32, others in float64;
    errors are always computed in float64.

    weight: [out, in]. second_moments: [in, in], symmetric. scale, zero_point: a scalar, [out],
    [out, 1] or [out, groups] along the inputs (`group_size` where groups do not divide them).
    target: [out, in], what the output is compared with where it is not the weight itself.
    start_codes: [out, in]; each weight then chooses between its code and that code's neighbour
    on the weight's side, and no row gets worse than it started.
    seed: draws the tiny offsets that break ties.
    Returns codes [out, in], for no row worse than rounding to nearest, and LearnedInfo.
    Raises ValueError for shapes that do not fit, second moments that are not finite, start
    codes that the grid has not, or less than one iteration.
    """
    xp = array_namespace(weight)
    if iterations < 1:
        raise ValueError(f"learning takes at least one iteration, not {iterations}")
    shape = tuple(weight.shape)
    for name, array in (("target", target), ("start_codes", start_codes)):
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(array.shape)} do not fit weights {shape}")
    check_moments(second_moments, shape[1])
    h = xp.astype(second_moments, xp.float64)
    h = (h + h.T) / 2
    w = xp.astype(weight, xp.float64)
    t = w if target is None else xp.astype(target, xp.float64)
    block = block_shape_of(weight, scale, group_size)
    s, z = (
        expand_blocks(xp.astype(xp.asarray(one), xp.float64), shape, block)
        for one in (scale, zero_point)
    )

    nearest = grid.codes_of(w / s, z)
    start = nearest if start_codes is None else xp.astype(start_codes, xp.float64)
    if not bool(xp.all((start >= grid.minimum) & (start <= grid.maximum))):
        raise ValueError(f"start_codes are not from {grid.minimum} to {grid.maximum}")
    below = xp.where(grid.steps_of(start, z) <= w / s, start, start - 1)
    below, above = (xp.clip(c, grid.minimum, grid.maximum) for c in (below, below + 1))
    low = grid.steps_of(below, z) * s
    gap = grid.steps_of(above, z) * s - low
    fraction = xp.where(gap > 0, (w - low) / xp.where(gap > 0, gap, xp.ones_like(gap)), 0 * gap)
    size, length = _unit(xp, gap, h)
    precision = xp.float32 if weight.dtype == xp.float32 else xp.float64
    problem = (_invert(xp, fraction, seed), (low - t) / length, gap / length, h / size)
    choice = _learn(
        xp,
        *(xp.astype(array, precision) for array in problem),
        iterations=iterations,
        strength=strength,
        learning_rate=learning_rate,
    )

    def errors(codes: Array) -> Array:
        off = grid.steps_of(codes, z) * s - t
        return xp.sum(xp.matmul(off, h) * off, axis=1)

    best, best_errors = nearest, errors(nearest)
    nearest_error = float(xp.sum(best_errors))
    if start_codes is not None:
        better = errors(start) < best_errors
        best = xp.where(better[:, None], start, best)
        best_errors = errors(best)
    up = _settle(xp, choice >= 0.5, low - t, gap, h)
    learned = xp.where(up, above, below)
    better = errors(learned) < best_errors
    best = xp.where(better[:, None], learned, best)
    decided = (choice < 0.01) | (choice > 0.99) | (gap == 0)
    info = LearnedInfo(
        error=float(xp.sum(errors(best))),
        nearest_error=nearest_error,
        fell_back=int(xp.count_nonzero(~better & xp.any(learned != best, axis=1))),
        undecided=1 - float(xp.mean(xp.astype(decided, xp.float64))),
    )
    return xp.astype(best, getattr(xp, grid.dtype_name)), info


def rectified_sigmoid(a: Array) -> Array:
    """Give h(a) = clip(sigmoid(a) * (zeta - gamma) + gamma, 0, 1)."""
    xp = array_namespace(a)
    return xp.clip((STRETCH_HIGH - STRETCH_LOW) / (1 + xp.exp(-a)) + STRETCH_LOW, 0, 1)


def objective(
    a: Array, offset: Array, gap: Array, second_moments: Array, *, strength: float, beta: float
) -> Array:
    """Give E H E^T + strength * sum(1 - |2 h(a) - 1|^beta) of each row, E = offset + gap * h(a).

    a, offset (what lies below, less the target), gap: [out, in]. Returns [out].
    """
    xp = array_namespace(a)
    chosen = rectified_sigmoid(a)
    off = offset + gap * chosen
    pull = strength * (1 - xp.abs(2 * chosen - 1) ** beta)
    return xp.sum(xp.matmul(off, second_moments) * off + pull, axis=1)


def gradient(
    a: Array, offset: Array, gap: Array, second_moments: Array, *, strength: float, beta: float
) -> Array:
    """Give the gradient of `objective` by a, [out, in].

    dL/dE = 2 E H; the second term's derivative by h is
    -2 strength beta |2 h - 1|^(beta - 1) sign(2 h - 1); dh/da is that of the sigmoid, and 0
    where it is cut.
    """
    xp = array_namespace(a)
    sigmoid = 1 / (1 + xp.exp(-a))
    stretched = (STRETCH_HIGH - STRETCH_LOW) * sigmoid + STRETCH_LOW
    chosen = xp.clip(stretched, 0, 1)
    slope = 2 * gap * xp.matmul(offset + gap * chosen, second_moments)
    if strength:
        side = 2 * chosen - 1
        slope = slope - 2 * strength * beta * xp.abs(side) ** (beta - 1) * xp.sign(side)
    inside = (stretched > 0) & (stretched < 1)
    return xp.where(inside, slope * (STRETCH_HIGH - STRETCH_LOW) * sigmoid * (1 - sigmoid), 0 * a)


def _learn(
    xp: Any,
    a: Array,
    offset: Array,
    gap: Array,
    h: Array,
    *,
    iterations: int,
    strength: float,
    learning_rate: float,
) -> Array:
    """Run Adam and give h(a) at its end."""
    mean, square = xp.zeros_like(a), xp.zeros_like(a)
    warm = int(WARM_START * iterations)
    for step in range(1, iterations + 1):
        progress = max(step - 1 - warm, 0) / max(iterations - warm, 1)
        beta = BETA_FIRST + (BETA_LAST - BETA_FIRST) * progress
        slope = gradient(a, offset, gap, h, strength=strength if step > warm else 0.0, beta=beta)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope * slope
        size = xp.sqrt(square / (1 - 0.999**step)) + 1e-8
        a = a - learning_rate / (1 - 0.9**step) * mean / size
    return rectified_sigmoid(a)


def _settle(xp: Any, up: Array, offset: Array, gap: Array, h: Array) -> Array:
    """Change single choices [out, in] until none is left that would lower the error.

    Choices freeze one after the other, the early ones before the late ones were known.
    """
    up = xp.asarray(up, copy=True)
    pull = xp.matmul(offset + gap * xp.astype(up, xp.float64), h)
    diagonal = [float(value) for value in xp.linalg.diagonal(h)]
    for _ in range(SWEEPS):
        moved = False
        for i, curvature in enumerate(diagonal):
            step = xp.where(up[:, i], -gap[:, i], gap[:, i])
            own = step * step * curvature
            rows = xp.nonzero(2 * step * pull[:, i] + own < -1e-9 * own)[0]
            if rows.shape[0]:
                up[rows, i] = ~up[rows, i]
                pull[rows, :] += step[rows][:, None] * h[i, :][None, :]
                moved = True
        if not moved:
            break
    return up


def _unit(xp: Any, gap: Array, h: Array) -> tuple[float, Array]:
    """Split the unit of error into a size of H and a length [out, 1] of the weights."""
    diagonal = xp.linalg.diagonal(h)
    size = float(xp.mean(diagonal)) or 1.0
    squared = BALANCE * xp.mean(gap * gap * (diagonal / size)[None, :], axis=1, keepdims=True)
    return size, xp.sqrt(xp.where(squared > 0, squared, xp.ones_like(squared)))


def _invert(xp: Any, fraction: Array, seed: int) -> Array:
    """Give the a whose h(a) is the fraction, with tiny offsets, as a tie at 1/2 has no slope."""
    share = (xp.clip(fraction, 0.001, 0.999) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    jitter = np.random.default_rng(seed).uniform(-1e-4, 1e-4, tuple(fraction.shape))
    return xp.log(share / (1 - share)) + xp.asarray(jitter, device=device(fraction))
