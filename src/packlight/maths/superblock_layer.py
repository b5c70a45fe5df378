"""Super-blocks for a layer under full second moments: compensation first, then descent.

min tr((W - V) H (W - V)^T) over V on a `SuperBlockGrid`. Super-blocks are taken in the order of
their inputs; each gets its scales and codes for the targets that make up for those before it
(`superblock_rounding`), and then all are improved in turn with everything else fixed
(`superblock_descent`). Arrays are [inputs, outputs]: a row is contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from packlight.maths.factor import factor_moments
from packlight.maths.grids import Array
from packlight.maths.layer import check_moments, row_slices
from packlight.maths.superblock_descent import sweep_blocks
from packlight.maths.superblock_moves import Columns, empty_columns, side_by_side
from packlight.maths.superblock_rounding import round_super_block
from packlight.maths.superblock_search import GREATEST, codes_of_levels
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks

OUTPUTS = 512
"""Outputs that are worked on at a time: trials of a sub-block then stay in the cache."""


@dataclass(frozen=True)
class SuperBlockInfo:
    """How it went.

    error: tr((W - V) H (W - V)^T). reference: tr(W H W^T). damping: the share of the mean
    diagonal of H that compensation took. dead_inputs: how many never came. sweeps: of descent,
    the most of any part of the outputs.
    """

    error: float
    reference: float
    damping: float
    dead_inputs: int
    sweeps: int

    @property
    def relative_error(self) -> float:
        """The error's share of what the layer puts out."""
        return self.error / self.reference if self.reference > 0 else 0.0


def solve_super_blocks(
    weight: Array,
    second_moments: Array,
    grid: SuperBlockGrid,
    *,
    damping: float = 0.01,
    sweeps: int = 6,
    starts: int = 1,
    threads: int = 1,
) -> tuple[SuperBlocks, SuperBlockInfo]:
    """Give the layer's super-blocks, and how it went.

    weight: [out, in], the inputs whole super-blocks. second_moments: [in, in], symmetric; in
    float32 they are not copied. damping: as in `factor_moments`, for compensation only. sweeps: of
    descent, at most. starts: compensations with more and more damping, each three times that of
    the one before; every output keeps the best. threads: parts of the outputs side by side,
    which changes no result.
    Raises ValueError for second moments that are not finite or of another size.
    """
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    if inputs % grid.size:
        raise ValueError(f"{inputs} inputs are not whole super-blocks of {grid.size}")
    check_moments(second_moments, inputs)
    h, exponent = _moderate(xp, second_moments)
    backwards = xp.arange(inputs - 1, -1, -1, device=device(weight))
    factors = [
        factor_moments(h, backwards, damping=damping * 3.0**start, dtype=xp.float32)
        for start in range(starts)
    ]
    uppers = [factor.upper for factor in factors]
    parts = row_slices(outputs, max(OUTPUTS // starts, 1))
    with ThreadPoolExecutor(threads) as pool:
        solved = [
            *pool.map(lambda some: _solve(xp, weight[some, :], h, uppers, grid, sweeps), parts)
        ]
    info = SuperBlockInfo(
        math.ldexp(math.fsum(part.error for part in solved), exponent),
        math.ldexp(math.fsum(part.reference for part in solved), exponent),
        factors[0].damping,
        sum(factors[0].dead),
        max(part.sweeps for part in solved),
    )
    return _join(xp, [_blocks_of(xp, part.columns, grid) for part in solved]), info


@dataclass(frozen=True)
class _Part:
    """Super-blocks of some outputs of a layer; figures as in `SuperBlockInfo`."""

    columns: Columns
    error: float
    reference: float
    sweeps: int


def _solve(
    xp: Any, weight: Array, h: Array, uppers: Sequence[Array], grid: SuperBlockGrid, sweeps: int
) -> _Part:
    """Some outputs, from each factor once, all descending together."""
    w = xp.asarray(xp.astype(weight, xp.float32).T, copy=True)
    w = w.clip(-GREATEST, GREATEST)
    columns = side_by_side([_compensate(xp, w, upper, grid) for upper in uppers])
    starts = len(uppers)
    errors, done = sweep_blocks(xp.tile(w, (1, starts)), h, columns, grid, sweeps=sweeps)
    errors = xp.reshape(errors, (starts, -1))
    if starts > 1:
        columns = columns.best_of(starts, xp.argmin(errors, axis=0))
    reference = float(xp.sum(xp.astype(xp.matmul(h, w) * w, xp.float64)))
    return _Part(columns, float(xp.sum(xp.min(errors, axis=0))), reference, done)


def _moderate(xp: Any, second_moments: Array) -> tuple[Array, int]:
    """Give 2^-exponent H in float32, and the exponent: near 1, where it would overflow."""
    diagonal = xp.astype(xp.linalg.diagonal(second_moments), xp.float64)
    exponent = math.frexp(float(xp.max(diagonal)))[1]
    if second_moments.dtype == xp.float32 and abs(exponent) < 30:
        return second_moments, 0
    h = xp.empty(second_moments.shape, dtype=xp.float32, device=device(second_moments))
    unit = 2.0**-exponent
    for rows in row_slices(second_moments.shape[0]):
        h[rows, :] = xp.astype(second_moments[rows, :] * unit, xp.float32)
    return h, exponent


def _compensate(xp: Any, w: Array, u: Array, grid: SuperBlockGrid) -> Columns:
    """One super-block after another. w: [in, n]. u: the factor, inputs in reversed order."""
    inputs = w.shape[0]
    columns = empty_columns(w, grid)
    left = xp.empty_like(w)  # w - v of the super-blocks that are done, inputs in reversed order
    for start in range(0, inputs, grid.size):
        stop = start + grid.size
        low, high = inputs - stop, inputs - start
        corner = xp.triu(u[low:high, low:high])
        target = w[start:stop, :]
        if start:
            carried = xp.matmul(u[low:high, high:], left[high:, :])
            target = target + xp.flip(xp.linalg.solve(corner, carried), axis=0)
        mixing = xp.flip(corner, axis=(0, 1))  # lower triangular, inputs in their order
        value = round_super_block(target, mixing, columns, start, grid)
        left[low:high, :] = xp.flip(w[start:stop, :] - value, axis=0)
    return columns


def _blocks_of(xp: Any, columns: Columns, grid: SuperBlockGrid) -> SuperBlocks:
    def turned(values: Array, dtype: Any) -> Array:
        return xp.asarray(xp.astype(values, dtype).T, copy=True)

    codes = turned(codes_of_levels(columns.levels, grid), xp.uint8)
    scales = turned(columns.scale, xp.float32)
    sub_scales = turned(columns.sub_scale, xp.int8)
    if columns.offset is None:
        return SuperBlocks(codes, sub_scales, scales)
    offsets = turned(columns.offset, xp.float32)
    return SuperBlocks(codes, sub_scales, scales, turned(columns.sub_offset, xp.int8), offsets)


def _join(xp: Any, parts: list[SuperBlocks]) -> SuperBlocks:
    names = ["codes", "sub_scales", "scales"]
    names += ["sub_offsets", "offsets"] if parts[0].offsets is not None else []
    joined = {name: xp.concat([getattr(part, name) for part in parts], axis=0) for name in names}
    return SuperBlocks(**joined)
