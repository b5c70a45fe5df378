"""One scale a block for any grid: exact where that is easy, otherwise by search.

The functions see blocks as rows [blocks, elements], each element with an importance, and
minimise sum_j importance_j (w_j - s steps(w_j / s))^2 for each row by itself. `store` maps
a scale to the nearest one that the format can hold, before anything is compared: what is
measured is what a file will say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from array_api_compat import array_namespace, device

from packlight.maths.grids import Array, Grid, expand_blocks, split_blocks

Store: TypeAlias = Callable[[Array], Array]
"""Gives for positive scales (float64) the ones that are stored in their place (float64)."""

FitScale: TypeAlias = Callable[[Array, Array, Grid, Store], Array]
"""Gives stored scales [blocks] for rows and importance [blocks, elements], float64."""

# Stands for 0 on a grid without 0: no denormal even times an activation, yet nothing.
_ALMOST_NOTHING = 2.0**-64


def importance_of(second_moments: Array, inputs: int) -> Array:
    """Give the importance of each input: the diagonal of the second moments, float64 [in].

    second_moments: [in, in], or only its diagonal [in].
    Raises ValueError for another size, or a diagonal that is negative or not finite.
    """
    xp = array_namespace(second_moments)
    if tuple(second_moments.shape) not in ((inputs, inputs), (inputs,)):
        raise ValueError(
            f"second moments of shape {tuple(second_moments.shape)} do not fit {inputs} inputs"
        )
    diagonal = second_moments
    if len(second_moments.shape) == 2:
        diagonal = xp.linalg.diagonal(second_moments)
    diagonal = xp.astype(diagonal, xp.float64)
    if not bool(xp.all(xp.isfinite(diagonal) & (diagonal >= 0))):
        raise ValueError("the diagonal of the second moments is negative or not finite somewhere")
    return diagonal


def scale_by_search(
    rows: Array,
    importance: Array,
    grid: Grid,
    store: Store,
    *,
    factors: Sequence[float],
    refinements: int = 2,
) -> Array:
    """Find scales by trying, then by alternating codes and the least-squares scale.

    The start is absmax scaling, s = max |w| / min(-lowest level, highest level), which
    reaches every weight; `factors` multiply it. Each refinement tries steps a third as wide
    around the best so far. Last, s = sum(h w l) / sum(h l^2) for the levels l in use,
    three times over. Nothing worse than absmax scaling is ever returned.
    Returns float64 [blocks].
    """
    xp = array_namespace(rows)
    base = largest_scale(rows, grid)
    best = store(base)
    least = scaled_error(rows, importance, grid, best)

    def attempt(candidate: Array) -> None:
        nonlocal best, least
        candidate = store(candidate)
        errors = scaled_error(rows, importance, grid, candidate)
        better = errors < least
        best, least = xp.where(better, candidate, best), xp.where(better, errors, least)

    for factor in factors:
        attempt(base * factor)
    ratio = (max(factors) / min(factors)) ** (1 / max(len(factors) - 1, 1))
    for _ in range(refinements):
        ratio **= 1 / 3
        middle = best
        for power in (-2, -1, 1, 2):
            attempt(middle * ratio**power)
    for _ in range(3 if refinements else 0):
        steps = _steps(rows, grid, best)
        size = xp.sum(importance * steps * steps, axis=1)
        fitted = xp.sum(importance * steps * rows, axis=1) / xp.where(size > 0, size, 1.0)
        attempt(xp.where(fitted > 0, fitted, best))
    return best


def scale_of_ternary(rows: Array, importance: Array, grid: Grid, store: Store) -> Array:
    """Find the best scale of the levels -1, 0, 1, exactly.

    Whatever the scale, the weights that are not rounded to 0 are the k largest in magnitude;
    for these the best scale is their weighted mean magnitude, which takes
    (sum h |w|)^2 / sum h off the error: k is the one that takes most
    (Li and Liu 2016, "Ternary Weight Networks", whose threshold approximates this one).
    Returns float64 [blocks].
    """
    xp = array_namespace(rows)
    sizes = abs(rows)
    order = xp.argsort(sizes, axis=1, descending=True)
    number = xp.arange(rows.shape[0], device=device(rows))
    weights = importance[number[:, None], order]
    mass = xp.cumulative_sum(weights * sizes[number[:, None], order], axis=1)
    weights = xp.cumulative_sum(weights, axis=1)
    means = xp.where(weights > 0, mass / xp.where(weights > 0, weights, 1.0), 0.0)
    found = means[number, xp.argmax(mass * means, axis=1)]
    return store(xp.where(found > 0, found, largest_scale(rows, grid)))


def scale_of_binary(rows: Array, importance: Array, grid: Grid, store: Store) -> Array:
    """Give the best scale of the levels -1, 1: the weighted mean magnitude.

    (Rastegari et al. 2016, "XNOR-Net", equation 6.) Returns float64 [blocks].
    """
    xp = array_namespace(rows)
    found = xp.sum(importance * abs(rows), axis=1) / xp.sum(importance, axis=1)
    return store(xp.where(found > 0, found, largest_scale(rows, grid)))


def largest_scale(rows: Array, grid: Grid) -> Array:
    """Absmax scaling: the least scale whose grid reaches as far as every weight, both ways.

    Rows of nothing but 0 get 1, or what is next to nothing on a grid without 0.
    Returns float64 [blocks].
    """
    xp = array_namespace(rows)
    ends = grid.steps_of(np.asarray([grid.minimum, grid.maximum]))
    peak = xp.max(abs(rows), axis=1) / float(min(-ends[0], ends[1]))
    holds_zero = float(grid.steps_of(grid.codes_of(np.zeros(1)))[0]) == 0
    return xp.where(peak > 0, peak, 1.0 if holds_zero else _ALMOST_NOTHING)


def scaled_error(rows: Array, importance: Array, grid: Grid, scale: Array) -> Array:
    """Give sum_j importance_j (w_j - s steps(w_j / s))^2 of each row: float64 [blocks]."""
    xp = array_namespace(rows)
    off = rows - _steps(rows, grid, scale) * scale[:, None]
    return xp.sum(importance * off * off, axis=1)


def refit_scales(
    weight: Array,
    steps: Array,
    second_moments: Array,
    scale: Array,
    *,
    block_shape: tuple[int, int],
    store: Store,
) -> Array:
    """Fit the scales to given codes, block after block along the inputs.

    With E = W - Q, moving the scale of a block with steps l by d changes tr(E H E^T) by
    d^2 (l H l^T) - 2 d (l H E^T), least at d = (l H E^T) / (l H l^T), summed over the rows of
    the block. Only what lowers it after storing is taken, so that the error never rises.
    weight, steps: [out, in]. second_moments: [in, in]. scale: one a block, as `block_counts`
    says. Returns float64 of the scale's shape.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    height = (block_shape[0], 1)
    width = inputs if block_shape[1] == -1 else block_shape[1]
    h = xp.astype(second_moments, xp.float64, copy=False)
    scale = xp.asarray(scale, copy=True)
    wide = expand_blocks(scale, weight.shape, block_shape)
    pull = xp.matmul(xp.astype(weight, xp.float64) - steps * wide, h)  # E H, kept up to date
    for number, start in enumerate(range(0, inputs, width)):
        part = slice(start, start + width)
        levels = steps[:, part]
        reach = xp.matmul(levels, h[part, :])
        slope = xp.sum(levels * pull[:, part], axis=1, keepdims=True)
        bend = xp.sum(levels * reach[:, part], axis=1, keepdims=True)
        slope, bend = (xp.sum(split_blocks(x, height), axis=1) for x in (slope, bend))
        old = scale[:, number]
        new = old + slope / xp.where(bend > 0, bend, 1.0)
        step = store(xp.where(new > 0, new, old)) - old
        step = xp.where(step * step * bend - 2 * step * slope < 0, step, 0.0)
        scale[:, number] = old + step
        pull = pull - expand_blocks(step, (outputs, 1), height) * reach
    return scale


def block_errors(
    weight: Array,
    steps: Array,
    second_moments: Array,
    scale: Array,
    *,
    block_shape: tuple[int, int],
) -> Array:
    """Give tr((W - Q) H (W - Q)^T) of each row of blocks: float64 [blocks along the outputs, 1].

    weight, steps: [out, in]. second_moments: [in, in]. scale: one a block.
    """
    xp = array_namespace(weight)
    h = xp.astype(second_moments, xp.float64, copy=False)
    off = weight - steps * expand_blocks(scale, weight.shape, block_shape)
    of_rows = xp.sum(xp.matmul(off, h) * off, axis=1, keepdims=True)
    return xp.sum(split_blocks(of_rows, (block_shape[0], 1)), axis=1, keepdims=True)


def _steps(rows: Array, grid: Grid, scale: Array) -> Array:
    return grid.steps_of(grid.codes_of(rows / scale[:, None]))
