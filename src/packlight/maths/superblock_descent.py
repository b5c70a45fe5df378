"""Super-blocks improved in turn, sub-block by sub-block, with all else fixed.

With the slopes G = H (W - V), changing V by D on some inputs changes the error by
D^T H D - 2 D^T G there. A sub-block is rounded anew with several scales at the targets
V + H_jj^-1 G_j, its codes move one at a time, and the super-block's scale is solved for.
Every change is taken only where it lowers the error.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from packlight.maths.codewords import GROUP, Words, nearest_words
from packlight.maths.grids import Array
from packlight.maths.superblock_moves import Columns, Scales, choose, pick_rows, try_scales
from packlight.maths.superblock_rounding import round_tries
from packlight.maths.superblock_search import round_to_levels
from packlight.maths.superblocks import SuperBlockGrid, to_half

SPREADS = ((-0.15, -0.07, -0.03, 0.03, 0.07, 0.15), (-0.05, -0.02, 0.02, 0.05))
"""Shares by which steps are tried, in the first sweep and in the others."""

ENOUGH = 1e-3
"""A sweep that lowers the error by a smaller share of it is the last."""


def sweep_blocks(
    w: Array, h: Array, columns: Columns, grid: SuperBlockGrid, *, sweeps: int
) -> tuple[Array, int]:
    """Improve columns in place until a sweep lowers the error by less than a thousandth.

    w: [in, n]. h: [in, in]. Returns each output's error, float64 [n], and the sweeps it took.
    """
    xp = array_namespace(w)
    inputs = w.shape[0]
    last = None
    for sweep in range(sweeps + 1):
        off = w - all_values(columns, grid)
        pull = xp.matmul(h, off)
        off *= pull
        errors = xp.sum(xp.astype(off, xp.float64), axis=0)
        error = float(xp.sum(errors))
        if sweep == sweeps or (last is not None and error > last * (1 - ENOUGH)):
            break
        last = error
        for start in range(0, inputs, grid.size):
            stop = start + grid.size
            near = h[start:stop, start:stop]
            change = _improve(xp, pull[start:stop, :], near, columns, start, grid, sweep)
            if start:
                pull[:start, :] -= xp.matmul(h[:start, start:stop], change)
            if stop < inputs:
                pull[stop:, :] -= xp.matmul(h[stop:, start:stop], change)
    return errors, sweep


def all_values(columns: Columns, grid: SuperBlockGrid) -> Array:
    """The weights [in, n]."""
    xp = array_namespace(columns.levels)
    out = xp.empty_like(columns.levels)
    for place in range(columns.sub_scale.shape[0]):
        rows = slice(place * grid.sub_size, (place + 1) * grid.sub_size)
        out[rows, :] = columns.part(place, grid).values(columns.levels[rows, :])
    return out


def _improve(
    xp: Any, pull: Array, h: Array, columns: Columns, start: int, grid: SuperBlockGrid, sweep: int
) -> Array:
    """One super-block. pull: [size, n], a view that follows. Returns how its values changed."""
    total = xp.zeros_like(pull)
    spread = SPREADS[min(sweep, len(SPREADS) - 1)]
    for number in range(grid.sub_blocks):
        begin, end = number * grid.sub_size, (number + 1) * grid.sub_size
        near = h[begin:end, begin:end]
        place = start // grid.sub_size + number
        rows = slice(start + begin, start + end)
        levels = columns.levels[rows, :]
        scales = columns.part(place, grid)
        old = scales.values(levels)
        slope = xp.asarray(pull[begin:end, :], copy=True)
        scales, levels = _round_again(xp, slope, near, scales, levels, old, grid, spread)
        columns.write(place, grid, scales)
        _move_codes(xp, slope, near, columns.part(place, grid), levels, grid)
        columns.levels[rows, :] = levels
        change = scales.values(levels) - old
        total[begin:end, :] += change
        pull -= xp.matmul(h[:, begin:end], change)
    change = _refit(xp, pull, h, columns, start, grid)
    pull -= xp.matmul(h, change)
    return total + change


def _round_again(
    xp: Any,
    slope: Array,
    near: Array,
    scales: Scales,
    levels: Array,
    old: Array,
    grid: SuperBlockGrid,
    spread: Any,
) -> tuple[Scales, Array]:
    """Round a sub-block with several scales and keep what lowers the error most, if any does."""
    size = old.shape[0]
    mixing = lower_mixing(near)
    gap = xp.linalg.solve(mixing, xp.linalg.solve(mixing.T, slope))
    tried = try_scales(scales, grid, spread)
    found, _ = round_tries(old + gap, mixing, tried, grid)
    change = tried.values(found)
    change -= old[:, None, :]
    flat = xp.reshape(change, (size, -1))
    cost = xp.reshape(xp.matmul(near, flat), change.shape)
    cost -= 2 * slope[:, None, :]
    cost *= change
    cost = xp.sum(cost, axis=0)
    best = xp.argmin(cost, axis=0)
    gains = pick_rows(cost, best) < 0
    kept, new = choose(tried, best), pick_rows(found, best)
    new = xp.where(gains, new, levels)

    def merged(one: Array | None, two: Array | None) -> Array | None:
        return None if one is None else xp.where(gains, one, two)

    kept = Scales(
        merged(kept.sub_scale, scales.sub_scale),
        merged(kept.scale, scales.scale),
        merged(kept.sub_offset, scales.sub_offset),
        merged(kept.offset, scales.offset),
    )
    slope -= xp.matmul(near, kept.values(new) - old)
    return kept, new


def _move_codes(
    xp: Any, slope: Array, near: Array, scales: Scales, levels: Array, grid: SuperBlockGrid
) -> None:
    """Move each code of a sub-block once to its best value, in place; slope follows."""
    if grid.codebook is not None:
        _move_words(xp, slope, near, scales.step, levels, grid.codebook)
        return
    step = scales.step  # the shift is part of the value before and after: it drops out
    usable = step != 0
    inverse = xp.where(usable, 1 / xp.where(usable, step, xp.ones_like(step)), xp.zeros_like(step))
    own = [float(value) for value in xp.linalg.diagonal(near)]
    for i in range(levels.shape[0]):
        if own[i] <= 0:
            continue
        value = levels[i, :] * step
        ratio = slope[i, :] * (1 / own[i])
        ratio += value
        ratio *= inverse
        level = round_to_levels(ratio, grid)
        change = (level - levels[i, :]) * step
        levels[i, :] = level
        slope -= near[:, i][:, None] * change[None, :]


def _move_words(
    xp: Any, slope: Array, near: Array, step: Array, levels: Array, codebook: Words
) -> None:
    """Move the codes of eight inputs at a time to a better word, in place; slope follows."""
    usable = step != 0
    inverse = xp.where(usable, 1 / xp.where(usable, step, xp.ones_like(step)), xp.zeros_like(step))
    for start in range(0, levels.shape[0], GROUP):
        some = slice(start, start + GROUP)
        mixing = lower_mixing(near[some, some])
        metric = xp.matmul(mixing.T, mixing)
        old = levels[some, :]
        aim = old + xp.linalg.solve(mixing, xp.linalg.solve(mixing.T, slope[some, :])) * inverse
        afresh = nearest_words(aim, xp.linalg.diagonal(metric)[:, None], codebook, step < 0)
        best, least = old, 0 * step
        for words in (old, afresh):
            new = codebook.improve(aim, metric, words, step < 0)
            change = (new - old) * step
            cost = xp.matmul(near[some, some], change) - 2 * slope[some, :]
            cost = xp.sum(cost * change, axis=0)
            gains = cost < least
            best, least = xp.where(gains, new, best), xp.where(gains, cost, least)
        change = (best - old) * step
        levels[some, :] = best
        slope -= xp.matmul(near[:, some], change)


def _refit(
    xp: Any, pull: Array, h: Array, columns: Columns, start: int, grid: SuperBlockGrid
) -> Array:
    """Solve for the scale and the offset of a super-block; returns how its values changed."""
    block, first = start // grid.size, start // grid.sub_size
    subs = slice(first, first + grid.sub_blocks)
    shape = (grid.sub_blocks, grid.sub_size, pull.shape[1])
    levels = xp.reshape(columns.levels[start : start + grid.size, :], shape)
    u = xp.reshape(levels * columns.sub_scale[subs, :][:, None, :], pull.shape)
    hu = xp.matmul(h, u)
    a, c = xp.sum(u * hu, axis=0), xp.sum(u * pull, axis=0)
    scale = columns.scale[block, :]
    if columns.offset is None or columns.sub_offset is None:
        fine = a > 0
        new = to_half(scale + xp.where(fine, c / xp.where(fine, a, xp.ones_like(a)), 0 * a))
        move = new - scale
        gains = move * (move * a - 2 * c) < 0
        gains = gains & (new > 0) if grid.upright else gains
        move = xp.where(gains, move, 0 * move)
        columns.scale[block, :] = scale + move
        return u * move
    offset = columns.offset[block, :]
    m = xp.reshape(columns.sub_offset[subs, :][:, None, :] * xp.ones_like(levels), pull.shape)
    hm = xp.matmul(h, m)
    b, e, f = xp.sum(u * hm, axis=0), xp.sum(m * hm, axis=0), xp.sum(m * pull, axis=0)
    det = a * e - b * b
    fine = det > 1e-5 * a * e
    safe = xp.where(fine, det, xp.ones_like(det))
    some = xp.where(a > 0, a, xp.ones_like(a))
    lone = xp.where(a > 0, c / some, 0 * a)
    new = to_half(scale + xp.where(fine, (c * e - b * f) / safe, lone))
    other = to_half(offset + xp.where(fine, (b * c - a * f) / safe, 0 * det))
    move, turn = new - scale, other - offset
    cost = move * move * a - 2 * move * turn * b + turn * turn * e - 2 * (move * c - turn * f)
    gains = cost < 0
    move, turn = xp.where(gains, move, 0 * move), xp.where(gains, turn, 0 * turn)
    columns.scale[block, :] = scale + move
    columns.offset[block, :] = offset + turn
    return u * move - m * turn


def lower_mixing(near: Array) -> Array:
    """Lower triangular M with M^T M = H_jj, damped by what keeps float32 from failing.

    It only says which codes are tried: what becomes of the error is computed with H itself.
    """
    xp = array_namespace(near)
    wide = xp.astype(near, xp.float64)
    mean = float(xp.sum(xp.linalg.diagonal(wide))) / wide.shape[0]
    eye = xp.eye(wide.shape[0], dtype=xp.float64)
    mean = mean if mean > 0 else 1.0
    for share in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        try:
            lower = xp.linalg.cholesky(xp.flip(wide + share * mean * eye, axis=(0, 1)))
        except (ValueError, RuntimeError):  # NumPy's and PyTorch's own
            continue
        return xp.astype(xp.flip(xp.matrix_transpose(lower), axis=(0, 1)), near.dtype)
    return xp.astype(mean**0.5 * eye, near.dtype)
