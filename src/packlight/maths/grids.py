"""Number formats: what values a weight or an activation may take.

A block shape has one entry an axis and says which elements share a scale: -1 is
the whole axis. For a weight [out, in], (-1, -1) is per tensor, (1, -1) per output
channel, (1, 32) groups of 32 along the inputs, and (16, 16) tiles. Scales then
have one entry a block, with the rank of the array: [1, 1], [out, 1], [out, in/32].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace, device

Array: TypeAlias = Any
"""An array of NumPy, PyTorch or another library that array-api-compat knows."""

MOST_LEVELS = 256

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
_LARGEST_SCALE = float(np.finfo(np.float32).max)


class Grid(Protocol):
    """The numbers a code may stand for: value = steps_of(code, zero_point) * scale.

    Rounding needs nothing else of a number format. Codes go from `minimum` to `maximum` and
    are stored as `dtype_name`.
    """

    @property
    def minimum(self) -> int:
        """The lowest code."""

    @property
    def maximum(self) -> int:
        """The highest code."""

    @property
    def dtype_name(self) -> str:
        """The integer type that holds a code: "int8", "uint8", ..."""

    def codes_of(self, steps: Array, zero_point: Array | float = 0) -> Array:
        """Give the codes nearest to steps = value / scale: whole numbers as float64."""

    def steps_of(self, codes: Array, zero_point: Array | float = 0) -> Array:
        """Give value / scale of codes, as float64."""


@dataclass(frozen=True)
class IntegerGrid:
    """Evenly spaced integers: value = (code - zero_point) * scale.

    bits: width of a stored code, 1 to 32.
    signed: two's complement, otherwise from 0.
    symmetric: the zero point is fixed in the middle (0, or 2^(bits-1) when not signed).
    low, high: narrower limits of the codes, for example -63 and 63 where a runtime's
        kernels saturate with full 8-bit weights.

    Raises ValueError for limits that do not fit the bits or leave out the middle.
    """

    bits: int
    signed: bool
    symmetric: bool
    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise ValueError(f"an integer grid has 1 to 32 bits, not {self.bits}")
        lowest = -(1 << (self.bits - 1)) if self.signed else 0
        highest = lowest + (1 << self.bits) - 1
        if not lowest <= self.minimum < self.maximum <= highest:
            raise ValueError(
                f"codes from {self.minimum} to {self.maximum} do not fit "
                f"{'signed' if self.signed else 'unsigned'} {self.bits}-bit integers, "
                f"which reach from {lowest} to {highest}"
            )
        if self.symmetric and not self.minimum < self.middle < self.maximum:
            raise ValueError(
                f"a symmetric grid needs codes on both sides of {self.middle}, "
                f"not {self.minimum} to {self.maximum}"
            )

    @property
    def middle(self) -> int:
        """The code that stands for 0 on a symmetric grid."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def minimum(self) -> int:
        """The lowest code in use; symmetric signed int8 leaves out -128."""
        if self.low is not None:
            return self.low
        half = 1 << (self.bits - 1)
        if self.symmetric and self.bits > 1:
            return self.middle - half + 1
        return -half if self.signed else 0

    @property
    def maximum(self) -> int:
        """The highest code in use."""
        if self.high is not None:
            return self.high
        half = 1 << (self.bits - 1)
        return half - 1 if self.signed else 2 * half - 1

    @property
    def dtype_name(self) -> str:
        """The smallest ordinary integer type that holds a code: "int8", "uint16", ..."""
        width = next(width for width in (8, 16, 32) if self.bits <= width)
        return f"{'int' if self.signed else 'uint'}{width}"

    def codes_of(self, steps: Array, zero_point: Array | float = 0) -> Array:
        """Give clip(round(steps) + zero_point, minimum, maximum) as float64.

        steps: value / scale, any shape. zero_point: broadcasts against it. Halves go to the
        even integer before the zero point is added.
        """
        xp = _namespace(steps)
        codes = xp.round(xp.astype(xp.asarray(steps), xp.float64)) + zero_point
        return codes.clip(self.minimum, self.maximum)

    def steps_of(self, codes: Array, zero_point: Array | float = 0) -> Array:
        """Give codes - zero_point as float64."""
        xp = _namespace(codes)
        return xp.astype(xp.asarray(codes), xp.float64) - zero_point


@dataclass(frozen=True)
class LevelGrid:
    """Any numbers: value = (levels[code] - zero_point) * scale.

    name: how messages call it. levels: 2 to 256 finite numbers in ascending order; 0 need
    not be one of them. A code is the index of its level, stored as uint8.

    Raises ValueError for levels that are too few, too many, not finite or not ascending.
    """

    name: str
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.levels) <= MOST_LEVELS:
            raise ValueError(
                f"the grid {self.name} has {len(self.levels)} levels, not 2 to {MOST_LEVELS}"
            )
        if not all(math.isfinite(level) for level in self.levels):
            raise ValueError(f"a level of the grid {self.name} is not finite")
        for lower, upper in zip(self.levels, self.levels[1:], strict=False):
            if not lower < upper:
                raise ValueError(
                    f"the levels of the grid {self.name} do not ascend: {lower} before {upper}"
                )

    @property
    def minimum(self) -> int:
        """The code of the lowest level: 0."""
        return 0

    @property
    def maximum(self) -> int:
        """The code of the highest level."""
        return len(self.levels) - 1

    @property
    def dtype_name(self) -> str:
        """Codes are stored as "uint8"."""
        return "uint8"

    def codes_of(self, steps: Array, zero_point: Array | float = 0) -> Array:
        """Give the codes of the levels nearest to steps + zero_point, as float64.

        steps: value / scale, any shape. zero_point: broadcasts against it. Half-way between
        two levels the one of lower magnitude is taken, and of -a and a the positive one.
        """
        xp = _namespace(steps)
        target = xp.astype(xp.asarray(steps), xp.float64) + zero_point
        thresholds = xp.asarray(self._thresholds, device=device(target))
        return xp.astype(xp.searchsorted(thresholds, target), xp.float64)

    def steps_of(self, codes: Array, zero_point: Array | float = 0) -> Array:
        """Give levels[codes] - zero_point as float64."""
        xp = _namespace(codes)
        codes = xp.asarray(codes)
        levels = xp.asarray(self._levels, device=device(codes))
        return levels[xp.astype(codes, xp.int64)] - zero_point

    @cached_property
    def _levels(self) -> Array:
        return np.asarray(self.levels, np.float64)

    @cached_property
    def _thresholds(self) -> Array:
        """What a target must be above to leave a level for the next one."""
        middles = self._levels[:-1] / 2 + self._levels[1:] / 2
        # A target on a middle goes down where that is towards 0, otherwise up. The step
        # below a middle of 0 is a normal number, as some settings flush subnormal ones.
        below = np.where(middles == 0, -np.finfo(np.float64).tiny, np.nextafter(middles, -np.inf))
        return np.where(middles > 0, middles, below)


def scale_and_zero_point(low: Array, high: Array, grid: IntegerGrid) -> tuple[Array, Array]:
    """Place the grid so that it spans [low, high] and 0, which is then exact.

    scale = (high - low) / (maximum - minimum), zero_point = round(minimum - low / scale);
    on a symmetric grid the scale is the larger of what the two ends need.
    low, high: any one shape (a scalar, or one entry a block).
    Returns scale (float32, above 0 even where low == high == 0: then 1) and zero_point
    (int32) of that shape. The zero point is found with the scale as rounded to float32,
    since that is the number a file stores.
    Raises ValueError where an end is not finite or low > high.
    """
    xp = _namespace(low, high)
    low = xp.astype(xp.asarray(low), xp.float64)
    high = xp.astype(xp.asarray(high), xp.float64)
    if not bool(xp.all(xp.isfinite(low) & xp.isfinite(high) & (low <= high))):
        raise ValueError("a range needs finite ends with low <= high")
    low = xp.minimum(low, xp.zeros_like(low))
    high = xp.maximum(high, xp.zeros_like(high))
    if grid.symmetric:
        below = -low / (grid.middle - grid.minimum)
        exact = xp.maximum(below, high / (grid.maximum - grid.middle))
    else:
        exact = (high - low) / (grid.maximum - grid.minimum)
    bounded = xp.clip(exact, _SMALLEST_SCALE, _LARGEST_SCALE)
    scale = xp.astype(xp.where(exact > 0, bounded, xp.ones_like(exact)), xp.float32)
    if grid.symmetric:
        return scale, xp.full_like(scale, grid.middle, dtype=xp.int32)
    zero = xp.round(grid.minimum - low / xp.astype(scale, xp.float64))
    return scale, xp.astype(xp.clip(zero, grid.minimum, grid.maximum), xp.int32)


def quantize(
    array: Array,
    scale: Array,
    zero_point: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int],
) -> Array:
    """Round to the nearest code: clip(round(array / scale) + zero_point, minimum, maximum).

    Halves go to the even integer before the zero point is added, as ONNX's QuantizeLinear
    does; for a float32 array the codes are those of onnxruntime, bit for bit.
    array: any shape, finite or infinite but not NaN. scale, zero_point: one entry a block.
    Returns codes in the grid's integer type, shaped as the array.
    """
    xp = array_namespace(array)
    scale = expand_blocks(xp.asarray(scale), array.shape, block_shape)
    zero = expand_blocks(xp.asarray(zero_point), array.shape, block_shape)
    steps = array / scale
    wide = xp.float64 if grid.bits > 16 else xp.result_type(steps, xp.float32)
    steps, zero = xp.astype(steps, wide, copy=False), xp.astype(zero, wide)
    # Clipped before the zero point is added, as sums of huge quotients would lose it.
    steps = xp.minimum(xp.maximum(xp.round(steps), grid.minimum - zero), grid.maximum - zero)
    return xp.astype(steps + zero, getattr(xp, grid.dtype_name))


def dequantize(
    codes: Array, scale: Array, zero_point: Array, *, block_shape: Sequence[int]
) -> Array:
    """Give the values that codes stand for: (codes - zero_point) * scale.

    codes: integers of any shape. scale, zero_point: one entry a block.
    Returns an array of the scale's type and the codes' shape.
    """
    xp = array_namespace(codes)
    scale = xp.asarray(scale)
    zero = expand_blocks(xp.asarray(zero_point), codes.shape, block_shape)
    steps = xp.astype(codes, xp.int32) - xp.astype(zero, xp.int32)
    return xp.astype(steps, scale.dtype) * expand_blocks(scale, codes.shape, block_shape)


def block_counts(shape: Sequence[int], block_shape: Sequence[int]) -> tuple[int, ...]:
    """Count the blocks along each axis; the last one of an axis may be incomplete.

    Raises ValueError where the block shape does not have one entry an axis, each -1 or above 0.
    """
    if len(shape) != len(block_shape):
        raise ValueError(
            f"a block shape needs one entry an axis: {tuple(block_shape)} for shape {tuple(shape)}"
        )
    if any(block == 0 or block < -1 for block in block_shape):
        raise ValueError(f"a block is -1 (the whole axis) or above 0, not {tuple(block_shape)}")
    return tuple(
        1 if block == -1 else math.ceil(size / block)
        for size, block in zip(shape, block_shape, strict=True)
    )


def expand_blocks(values: Array, shape: Sequence[int], block_shape: Sequence[int]) -> Array:
    """Repeat one value a block so that it broadcasts against the array of the blocks.

    values: one entry a block, in any shape of as many elements, or one for all.
    Returns an array that broadcasts to `shape` (whole axes stay 1).
    """
    xp = array_namespace(values)
    counts = block_counts(shape, block_shape)
    if math.prod(values.shape) == 1:
        return xp.reshape(values, (1,) * len(counts))
    if math.prod(values.shape) != math.prod(counts):
        raise ValueError(
            f"{tuple(values.shape)} is not one value for each of {counts} blocks: "
            f"shape {tuple(shape)} in blocks of {tuple(block_shape)}"
        )
    values = xp.reshape(values, counts)
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        if count in (1, size):
            continue
        block = block_shape[axis]
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        wide = xp.broadcast_to(
            xp.expand_dims(values, axis=axis + 1), (*before, count, block, *after)
        )
        wide = xp.reshape(wide, (*before, count * block, *after))
        values = wide[(slice(None),) * axis + (slice(0, size),)]
    return values


def split_blocks(array: Array, block_shape: Sequence[int]) -> Array:
    """Lay the blocks of an array out as rows: [blocks, elements of a block].

    Incomplete blocks are filled with zeros, which every grid holds exactly and every
    range contains, so that neither ranges nor errors change. `join_blocks` undoes it.
    """
    xp = array_namespace(array)
    counts = block_counts(array.shape, block_shape)
    shape: list[int] = []
    for axis, count in enumerate(counts):
        block = array.shape[axis] if block_shape[axis] == -1 else block_shape[axis]
        missing = count * block - array.shape[axis]
        if missing:
            filler = list(array.shape)
            filler[axis] = missing
            array = xp.concat([array, _zeros(xp, filler, array)], axis=axis)
        shape += [count, block]
    rank = len(counts)
    order = (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
    blocks = xp.permute_dims(xp.reshape(array, tuple(shape)), order)
    return xp.reshape(blocks, (math.prod(counts), math.prod(shape[1::2])))


def join_blocks(blocks: Array, shape: Sequence[int], block_shape: Sequence[int]) -> Array:
    """Put rows of blocks back where `split_blocks` took them from.

    blocks: [blocks, elements of a block]. Returns an array of `shape`.
    """
    xp = array_namespace(blocks)
    counts = block_counts(shape, block_shape)
    sizes = [size if block == -1 else block for size, block in zip(shape, block_shape, strict=True)]
    rank = len(counts)
    order = tuple(
        axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair
    )
    array = xp.permute_dims(xp.reshape(blocks, (*counts, *sizes)), order)
    full = tuple(count * size for count, size in zip(counts, sizes, strict=True))
    return xp.reshape(array, full)[tuple(slice(0, size) for size in shape)]


def _zeros(xp: Any, shape: Sequence[int], like: Array) -> Array:
    return xp.zeros(tuple(shape), dtype=like.dtype, device=device(like))


def _namespace(*values: Array) -> Any:
    """Give the array library of the first value that is an array; NumPy for plain numbers."""
    arrays = [value for value in values if not isinstance(value, (int, float))]
    if all(type(value) is np.ndarray for value in arrays):  # at once: rounding asks at every input
        return array_api_compat.numpy
    return array_namespace(*arrays)
