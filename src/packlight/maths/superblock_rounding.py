"""One super-block: scales by the price of each input's error, codes with compensation.

Sub-blocks are taken in order. Each is rounded with several scales, every input at the target
that makes up for the errors before it, and keeps the scales whose error is least.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from packlight.maths.codewords import GROUP, Words, nearest_words
from packlight.maths.grids import Array
from packlight.maths.superblock_moves import Columns, Scales, choose, pick_rows, try_scales
from packlight.maths.superblock_search import round_to_levels, search_scales
from packlight.maths.superblocks import SuperBlockGrid

SPREAD = (-0.3, -0.2, -0.1, -0.04, 0.04, 0.1, 0.2, 0.3)
"""By which share a sub-block's step is tried smaller and larger than what the search found."""


def round_super_block(
    target: Array, mixing: Array, columns: Columns, start: int, grid: SuperBlockGrid
) -> Array:
    """Minimise |M (T - V)|^2 for a super-block: fills the columns, and gives V [size, n].

    target: T [size, n]. mixing: M [size, size], lower triangular. start: its first input.
    """
    xp = array_namespace(target)
    count = target.shape[1]
    pivots = xp.linalg.diagonal(mixing)
    prices = xp.reshape(pivots * pivots, (grid.sub_blocks, grid.sub_size, 1))
    cube = xp.reshape(target, (grid.sub_blocks, grid.sub_size, count))
    swap = (1, 0, 2)
    cube = xp.asarray(xp.permute_dims(cube, swap), copy=True)
    found = search_scales(cube, xp.permute_dims(prices, swap), grid, rounds=2)
    block, first = start // grid.size, start // grid.sub_size
    columns.scale[block, :] = found.scale
    columns.sub_scale[first : first + grid.sub_blocks, :] = found.sub_scale
    if columns.offset is not None and columns.sub_offset is not None:
        columns.offset[block, :] = found.offset
        columns.sub_offset[first : first + grid.sub_blocks, :] = found.sub_offset

    off = xp.empty_like(target)
    value = xp.empty_like(target)
    for number in range(grid.sub_blocks):
        begin, end = number * grid.sub_size, (number + 1) * grid.sub_size
        aim = target[begin:end, :]
        if begin:
            carried = xp.matmul(mixing[begin:end, :begin], off[:begin, :])
            aim = aim + xp.linalg.solve(mixing[begin:end, begin:end], carried)
        tried = try_scales(columns.part(first + number, grid), grid, SPREAD)
        levels, errors = round_tries(aim, mixing[begin:end, begin:end], tried, grid)
        best = xp.argmin(errors, axis=0)
        kept = choose(tried, best)
        columns.write(first + number, grid, kept)
        chosen = pick_rows(levels, best)
        columns.levels[start + begin : start + end, :] = chosen
        value[begin:end, :] = kept.values(chosen)
        # against the target that knows nothing of other sub-blocks: M carries all errors on
        off[begin:end, :] = target[begin:end, :] - value[begin:end, :]
    return value


def round_tries(
    target: Array, mixing: Array, tried: Scales, grid: SuperBlockGrid
) -> tuple[Array, Array]:
    """Round a sub-block with compensation, once for each try.

    target: [sub_size, n]. mixing: [sub_size, sub_size], lower triangular.
    Returns levels [sub_size, tries, n] and |M (T - V)|^2 [tries, n].
    """
    if grid.codebook is not None:
        return _round_tries_to_words(target, mixing, tried, grid.codebook)
    xp = array_namespace(target)
    step, shift = tried.step, tried.shift
    tries, count = step.shape
    usable = step != 0
    inverse = xp.where(usable, 1 / xp.where(usable, step, xp.ones_like(step)), xp.zeros_like(step))
    size = target.shape[0]
    levels = xp.empty((size, tries, count), dtype=target.dtype)
    off = xp.empty((size, tries * count), dtype=target.dtype)
    errors = xp.zeros_like(step)
    unit = mixing / xp.linalg.diagonal(mixing)[:, None]
    pivots = [float(pivot) for pivot in xp.linalg.diagonal(mixing)]
    for i in range(size):
        aim = target[i, :]
        if i:
            aim = aim + xp.reshape(xp.matmul(unit[i, :i], off[:i, :]), (tries, count))
        ratio = (aim + shift if shift is not None else aim) * inverse
        level = round_to_levels(ratio, grid)
        levels[i, ...] = level
        value = level * step
        if shift is not None:
            value -= shift
        off[i, :] = xp.reshape(target[i, :] - value, (-1,))
        value -= aim
        value *= pivots[i]
        value *= value
        errors += value
    return levels, errors


def _round_tries_to_words(
    target: Array, mixing: Array, tried: Scales, codebook: Words
) -> tuple[Array, Array]:
    """The same, eight inputs at a time, which then make up for those before them together.

    With A = M_jj^T M_jj of the eight, words are first the nearest under A's diagonal, for every
    try; of the best try all words are held against A itself.
    """
    xp = array_namespace(target)
    step = tried.step
    levels, errors = _round_to_words(target, mixing, step, codebook, whole=False)
    best = xp.argmin(errors, axis=0)
    one = pick_rows(step, best)[None, :]
    better, error = _round_to_words(target, mixing, one, codebook, whole=True)
    chosen = xp.arange(step.shape[0], dtype=best.dtype)[:, None] == best
    gains = chosen & (error < errors)
    return xp.where(gains, better, levels), xp.where(gains, error, errors)


def _round_to_words(
    target: Array, mixing: Array, step: Array, codebook: Words, *, whole: bool
) -> tuple[Array, Array]:
    """Levels [sub_size, tries, n] and errors [tries, n]. whole: words are held against A."""
    xp = array_namespace(target)
    size, (tries, count) = target.shape[0], step.shape
    flat = xp.reshape(step, (1, -1))
    usable = flat != 0
    inverse = xp.where(usable, 1 / xp.where(usable, flat, xp.ones_like(flat)), 0 * flat)
    every = xp.zeros((1, tries, 1), dtype=target.dtype)
    wide = xp.reshape(target[:, None, :] + every, (size, -1))
    levels, off = xp.empty_like(wide), xp.empty_like(wide)
    errors = 0 * flat
    below = flat[0, :] < 0
    for start in range(0, size, GROUP):
        some = slice(start, start + GROUP)
        corner = mixing[some, some]
        aim = wide[some, :]
        if start:
            carried = xp.matmul(mixing[some, :start], off[:start, :])
            aim = aim + xp.linalg.solve(corner, carried)
        metric = xp.matmul(corner.T, corner)
        x = aim * inverse
        near = nearest_words(x, xp.linalg.diagonal(metric)[:, None], codebook, below)
        if whole:
            near = codebook.improve(x, metric, near, below)
        levels[some, :] = near
        value = near * flat
        off[some, :] = wide[some, :] - value
        missed = xp.matmul(corner, aim - value)
        errors += xp.sum(missed * missed, axis=0)
    return xp.reshape(levels, (size, tries, count)), xp.reshape(errors, (tries, count))
