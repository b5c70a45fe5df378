"""Grids whose scales have scales: what GGUF's block formats let a weight be.

A super-block is a run of inputs of one output with a scale d, and for some formats an offset
dmin, in half precision. It is cut into sub-blocks, each with a small whole number that
multiplies d, and one that multiplies dmin:

    value = (d * sub_scale) * level[code] - dmin * sub_offset

The older formats are the case of one sub-block whose whole numbers are 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from array_api_compat import array_namespace, device

from packlight.maths.codewords import SignedCodebook, Words
from packlight.maths.grids import Array

LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class SuperBlockGrid:
    """The values that a super-block may take.

    sub_size: inputs of a sub-block. sub_blocks: of them in a super-block. levels: what codes
    0, 1, ... stand for, ascending. scale_limits: the lowest and highest sub-scale.
    offset_limits: those of the sub-offsets, or None for a grid without offsets. codebook: which
    levels neighbouring inputs may have together, where not any; sub-scales are odd then.
    """

    sub_size: int
    sub_blocks: int
    levels: tuple[float, ...]
    scale_limits: tuple[int, int] = (1, 1)
    offset_limits: tuple[int, int] | None = None
    codebook: Words | None = None

    @property
    def size(self) -> int:
        """Inputs of a super-block."""
        return self.sub_size * self.sub_blocks

    @cached_property
    def even(self) -> bool:
        """Whether each level is 1 above the one before."""
        return self.levels[-1] - self.levels[0] == len(self.levels) - 1

    @property
    def upright(self) -> bool:
        """Whether scales are above 0, since a sub-scale's sign says which words there are."""
        return isinstance(self.codebook, SignedCodebook) and self.codebook.below is not None

    def nearest_scales(self, numbers: Array) -> Array:
        """Give the nearest sub-scales, as floats."""
        xp = array_namespace(numbers)
        low, high = self.scale_limits
        whole = xp.round(numbers) if self.codebook is None else 2 * xp.round(numbers / 2 - 0.5) + 1
        return whole.clip(float(low), float(high))


@dataclass(frozen=True)
class SuperBlocks:
    """A layer on such a grid.

    codes: [out, in] uint8, each the place of a level. sub_scales: [out, in / sub_size] int8.
    scales: [out, in / size], float32 numbers that half precision holds. sub_offsets, offsets: of
    the same shapes, None where the grid has no offsets.
    """

    codes: Array
    sub_scales: Array
    scales: Array
    sub_offsets: Array | None = None
    offsets: Array | None = None


def values_of(blocks: SuperBlocks, grid: SuperBlockGrid) -> Array:
    """Give the weight [out, in] in float32, in the order of operations of llama.cpp."""
    xp = array_namespace(blocks.codes)
    outputs, inputs = blocks.codes.shape
    by_super = (outputs, inputs // grid.size, grid.sub_blocks)
    steps = xp.reshape(levels_at(blocks.codes, grid), (*by_super, grid.sub_size))
    scale = blocks.scales[:, :, None] * _spread(blocks.sub_scales, by_super)
    steps *= scale[..., None]
    if blocks.offsets is not None:
        offset = blocks.offsets[:, :, None] * _spread(blocks.sub_offsets, by_super)
        steps -= offset[..., None]
    return xp.reshape(steps, (outputs, inputs))


def levels_at(codes: Array, grid: SuperBlockGrid) -> Array:
    """Give the levels of codes in float32, in an array of their own."""
    xp = array_namespace(codes)
    if grid.even:
        return xp.astype(codes, xp.float32) + grid.levels[0]
    table = xp.asarray(grid.levels, dtype=xp.float32, device=device(codes))
    flat = xp.take(table, xp.reshape(xp.astype(codes, xp.int64), (-1,)), axis=0)
    return xp.reshape(flat, codes.shape)


def to_half(values: Array) -> Array:
    """Round to what half precision holds, in float32; what is beyond it becomes its largest."""
    xp = array_namespace(values)
    near = xp.astype(values, xp.float32).clip(-LARGEST_HALF, LARGEST_HALF)
    return xp.astype(xp.astype(near, xp.float16), xp.float32)


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    xp = array_namespace(values)
    return xp.reshape(xp.astype(values, xp.float32), shape)
