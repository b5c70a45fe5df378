"""Number formats for weights that are decoded to floats: one literal table.

A format is a grid, a block shape and the way its scales are stored, and a weight in it is
levels[codes] * scale. The table carries all differences: `quantize_to_format` runs the same
lines for each.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from packlight.maths.grids import (
    Array,
    Grid,
    IntegerGrid,
    LevelGrid,
    block_counts,
    expand_blocks,
    split_blocks,
)
from packlight.maths.levels import (
    E2M1,
    E4M3,
    E5M2,
    E8M0,
    float_levels,
    normal_levels,
    power_levels,
)
from packlight.maths.rounding import (
    RoundingInfo,
    coordinate_descent,
    round_to_nearest,
    round_with_compensation,
)
from packlight.maths.scales import (
    FitScale,
    Store,
    block_errors,
    importance_of,
    refit_scales,
    scale_by_search,
    scale_of_binary,
    scale_of_ternary,
)

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
_LARGEST_SCALE = float(np.finfo(np.float32).max)
_ELEMENTS_IN_CACHE = 1 << 16  # for what goes over the same weights again and again
_ELEMENTS_IN_MEMORY = 1 << 19


@dataclass(frozen=True)
class ScaleStorage:
    """How the scales of blocks are stored.

    bits: of one scale. grid: the scales there are; None is any float32.
    shared: the blocks' scales are relative to one float32 a tensor, which puts the tensor's
        largest scale at the grid's end.
    """

    bits: int
    grid: LevelGrid | None = None
    shared: bool = False


FLOAT32 = ScaleStorage(32)
POWER = ScaleStorage(8, LevelGrid("e8m0", float_levels(E8M0)))
SMALL_FLOAT = ScaleStorage(
    8, LevelGrid("e4m3", tuple(x for x in float_levels(E4M3) if x > 0)), shared=True
)


@dataclass(frozen=True)
class Format:
    """What a weight is stored as.

    grid: the levels. bits: of one code. block_shape: elements that share a scale, along the
    outputs and the inputs. storage: of the scales. fit: finds the scales.
    """

    grid: Grid
    bits: int
    block_shape: tuple[int, int]
    storage: ScaleStorage
    fit: FitScale


def _ratios(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.geomspace(highest, lowest, count))


def _integers(bits: int) -> Format:
    # The lowest code, left out of symmetric grids by custom, is worth having at few bits.
    lowest = -(1 << (bits - 1)) if bits < 8 else -127
    grid = IntegerGrid(bits, signed=True, symmetric=True, low=lowest)
    # Few levels clip much: down to a tenth of the largest weight at 2 bits.
    fit = partial(scale_by_search, factors=_ratios(0.1 * (bits - 1), 1.0, 40 - 3 * bits))
    return Format(grid, bits, (1, -1), FLOAT32, fit)


# Above 1 the highest levels idle, which small blocks of floats often gain by.
_PHASES = partial(scale_by_search, factors=_ratios(0.5, 2.1, 28), refinements=0)
_POWERS = partial(scale_by_search, factors=(2.0, 1.0, 0.5, 0.25), refinements=0)
# A fine float grid looks alike from one power of two to the next.
_OCTAVE = partial(scale_by_search, factors=_ratios(0.5, 1.0, 8), refinements=1)
_WIDE = partial(scale_by_search, factors=_ratios(0.2, 1.5, 20), refinements=1)
_NARROW = partial(scale_by_search, factors=_ratios(0.5, 1.5, 12), refinements=1)
_FP4 = LevelGrid("e2m1", float_levels(E2M1))

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "int2": _integers(2),
        "int3": _integers(3),
        "int4": _integers(4),
        "int5": _integers(5),
        "int6": _integers(6),
        "int7": _integers(7),
        "int8": _integers(8),
        "ternary": Format(
            LevelGrid("ternary", (-1.0, 0.0, 1.0)), 2, (1, -1), FLOAT32, scale_of_ternary
        ),
        "binary": Format(LevelGrid("binary", (-1.0, 1.0)), 1, (1, -1), FLOAT32, scale_of_binary),
        "fp8": Format(LevelGrid("e4m3", float_levels(E4M3)), 8, (1, -1), FLOAT32, _OCTAVE),
        "fp8-e5m2": Format(LevelGrid("e5m2", float_levels(E5M2)), 8, (1, -1), FLOAT32, _OCTAVE),
        "fp4": Format(_FP4, 4, (1, -1), FLOAT32, _WIDE),
        "mxfp4": Format(_FP4, 4, (1, 32), POWER, _POWERS),
        "nvfp4": Format(_FP4, 4, (1, 16), SMALL_FLOAT, _PHASES),
        "nf4": Format(LevelGrid("nf4", normal_levels(4)), 4, (1, 64), FLOAT32, _NARROW),
        "pow2": Format(LevelGrid("pow2", power_levels(4)), 4, (1, -1), FLOAT32, _WIDE),
    }
)


@dataclass(frozen=True)
class Formatted:
    """A weight [out, in] in a format: levels[codes] * expand_blocks(scale).

    codes: uint8 [out, in]. levels: float32 [K]. scale: float32, one a block, in the shape
    that `block_counts` gives. tensor_scale: where a format stores scales relative to one
    number a tensor, that number; scale / tensor_scale is then what a block stores.
    info: what error-compensated rounding did; None where it was not used.
    """

    codes: Array
    levels: Array
    scale: Array
    block_shape: tuple[int, int]
    tensor_scale: float = 1.0
    info: RoundingInfo | None = None


def quantize_to_format(
    weight: Array,
    name: str,
    *,
    second_moments: Array | None = None,
    block_shape: tuple[int, int] | None = None,
    sweeps: int = 0,
) -> Formatted:
    """Bring a weight into a format: scales first, as they are stored, then codes.

    weight: [out, in], finite. name: a key of FORMATS. block_shape: other than the format's.
    second_moments: [in, in]: the scales are found for errors weighted by its diagonal, the
    codes by error-compensated rounding (`round_with_compensation`), after which the scales are
    fitted once more. Blocks of rows for which that gives a larger tr((W - Q) H (W - Q)^T) than
    rounding to nearest keep the nearest codes. Or only its diagonal [in]: the codes are then
    the nearest ones, as without. sweeps: of `coordinate_descent` after the rounding; a few
    tenths of a decibel for several times the time.
    Raises ValueError for an unknown name, a weight that is not finite or not a matrix, and
    second moments of another size.
    """
    format_ = format_of(name)
    xp = array_namespace(weight)
    importance = _importance(xp, weight, second_moments)
    block = format_.block_shape if block_shape is None else block_shape
    tensor_scale = _tensor_scale(xp, weight, format_)
    store = partial(_stored, format_.storage, tensor_scale)
    scale = xp.reshape(
        _fit_in_parts(weight, importance, format_, block, store), block_counts(weight.shape, block)
    )
    codes, info = _nearest(weight, scale, format_.grid, block), None
    if second_moments is not None and len(second_moments.shape) == 2:
        codes, scale, info = _compensate(
            weight, codes, scale, second_moments, format_.grid, block, store, sweeps
        )
    grid = format_.grid
    whole = xp.asarray(np.arange(grid.minimum, grid.maximum + 1), device=device(weight))
    return Formatted(
        codes=xp.astype(xp.astype(codes, xp.int16) - grid.minimum, xp.uint8),
        levels=xp.astype(grid.steps_of(whole), xp.float32),
        scale=xp.astype(scale, xp.float32),
        block_shape=block,
        tensor_scale=tensor_scale,
        info=info,
    )


def dequantize_format(formatted: Formatted) -> Array:
    """Give the float32 weight [out, in] that is stored: levels[codes] * scale."""
    codes = formatted.codes
    xp = array_namespace(codes)
    values = xp.reshape(
        xp.take(formatted.levels, xp.reshape(xp.astype(codes, xp.int64), (-1,))), codes.shape
    )
    return values * expand_blocks(formatted.scale, codes.shape, formatted.block_shape)


def stored_bits(name: str, shape: tuple[int, int]) -> int:
    """Count the bits of a weight of shape [out, in] in a format, codes and scales, packed."""
    format_ = format_of(name)
    blocks = math.prod(block_counts(shape, format_.block_shape))
    scales = blocks * format_.storage.bits + 32 * format_.storage.shared
    return math.prod(shape) * format_.bits + scales


def format_of(name: str) -> Format:
    """Look a format up; raises ValueError with the nearest name where there is none."""
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FORMATS)}"
    raise ValueError(f"there is no number format named {name!r}: {hint}")


def _importance(xp: Any, weight: Array, second_moments: Array | None) -> Array:
    """Check the arguments and give the importance of each input, float64 [in]."""
    if len(weight.shape) != 2 or not math.prod(weight.shape):
        raise ValueError(f"a weight is a matrix [out, in], not of shape {tuple(weight.shape)}")
    if not bool(xp.all(xp.isfinite(weight))):
        raise ValueError("the weight is not finite: it holds NaN or infinity")
    if second_moments is None:
        return xp.ones_like(weight[0, :], dtype=xp.float64)
    return importance_of(second_moments, weight.shape[1])


def _tensor_scale(xp: Any, weight: Array, format_: Format) -> float:
    storage = format_.storage
    if not storage.shared or storage.grid is None:
        return 1.0
    highest = float(format_.grid.steps_of(np.asarray([format_.grid.maximum]))[0])
    peak = float(xp.max(abs(weight))) / (highest * storage.grid.levels[-1])
    return float(np.float32(max(peak, _SMALLEST_SCALE))) if peak else 1.0


def _stored(storage: ScaleStorage, tensor_scale: float, scale: Array) -> Array:
    """Give the scales that a format holds in place of these, as float64."""
    xp = array_namespace(scale)
    if storage.grid is not None:
        scale = storage.grid.steps_of(storage.grid.codes_of(scale / tensor_scale)) * tensor_scale
    scale = xp.clip(scale, _SMALLEST_SCALE, _LARGEST_SCALE)
    return xp.astype(xp.astype(scale, xp.float32), xp.float64)


def _fit_in_parts(
    weight: Array, importance: Array, format_: Format, block: tuple[int, int], store: Store
) -> Array:
    """Find the scales of all blocks, some rows of the weight at a time."""
    xp = array_namespace(weight)
    found = []
    for rows in _slices(weight.shape, block, _ELEMENTS_IN_CACHE):
        part = xp.astype(weight[rows, :], xp.float64)
        blocks = split_blocks(part, block)
        shares = split_blocks(xp.broadcast_to(importance, part.shape), block)
        # Where nothing ever arrives all weights count alike, padding excepted.
        alike = split_blocks(xp.ones_like(part), block)
        shares = xp.where(xp.sum(shares, axis=1, keepdims=True) > 0, shares, alike)
        found.append(format_.fit(blocks, shares, format_.grid, store))
    return xp.concat(found)


def _nearest(weight: Array, scale: Array, grid: Grid, block: tuple[int, int]) -> Array:
    by_row, group_size = _by_row(weight, scale, block)
    return round_to_nearest(weight, by_row, 0, grid, group_size=group_size)


def _compensate(
    weight: Array,
    nearest: Array,
    scale: Array,
    second_moments: Array,
    grid: Grid,
    block: tuple[int, int],
    store: Store,
    sweeps: int,
) -> tuple[Array, Array, RoundingInfo]:
    """Round with compensation and refit the scales; keep nearest where that is better."""
    xp = array_namespace(weight)
    h = xp.astype(second_moments, xp.float64, copy=False)
    by_row, group_size = _by_row(weight, scale, block)
    codes, info = round_with_compensation(
        weight, second_moments, by_row, 0, grid, group_size=group_size, order="descending"
    )
    scale = xp.asarray(scale, copy=True)
    height = weight.shape[0] if block[0] == -1 else block[0]
    for rows in _slices(weight.shape, block, _ELEMENTS_IN_MEMORY):
        bands = slice(rows.start // height, -(-rows.stop // height))
        part = xp.astype(weight[rows, :], xp.float64)
        refit = partial(refit_scales, part, second_moments=h, block_shape=block, store=store)
        error = partial(block_errors, part, second_moments=h, block_shape=block)
        found = codes[rows, :]
        fitted = refit(grid.steps_of(found), scale=scale[bands, :])
        if sweeps:
            # After the fit, so that neither can undo what the other has gained.
            by_row, _ = _by_row(part, fitted, block)
            found = coordinate_descent(
                part, found, h, by_row, 0, grid, group_size=group_size, sweeps=sweeps
            )
            fitted = refit(grid.steps_of(found), scale=fitted)
        before = error(grid.steps_of(nearest[rows, :]), scale=scale[bands, :])
        worse = error(grid.steps_of(found), scale=fitted) > before
        scale[bands, :] = xp.where(worse, scale[bands, :], fitted)
        keep = expand_blocks(worse, (part.shape[0], 1), (block[0], 1))
        codes[rows, :] = xp.where(keep, nearest[rows, :], found)
    return codes, scale, info


def _by_row(weight: Array, scale: Array, block: tuple[int, int]) -> tuple[Array, int]:
    """Give scales [out, groups] and the group size, as rounding takes them."""
    xp = array_namespace(weight)
    outputs, inputs = weight.shape
    wide = expand_blocks(scale, (outputs, scale.shape[1]), (block[0], 1))
    by_row = xp.broadcast_to(wide, (outputs, scale.shape[1]))
    return by_row, inputs if block[1] == -1 else block[1]


def _slices(shape: tuple[int, int], block: tuple[int, int], elements: int) -> Iterator[slice]:
    """Cut the outputs into slices of whole blocks of about so many elements."""
    outputs, inputs = shape
    height = outputs if block[0] == -1 else block[0]
    stride = height * max(1, elements // (height * inputs))
    for start in range(0, outputs, stride):
        yield slice(start, min(start + stride, outputs))
