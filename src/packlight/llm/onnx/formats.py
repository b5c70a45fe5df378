"""What a weight of an ONNX decoder may be stored as, as a table: floats, or codes in blocks.

A weight in blocks is kept in rows of bytes, [out, row_bytes]: the row's codes, its scales in half
precision, its zero points. `parts_of` says how they lie in the file of a model, where onnxruntime
wants all codes together, all scales, and all zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel, WrongUsage
from packlight.llm.costs import FormatTable
from packlight.maths.blocks import block_grid, fit_blocks, pack_bits, unpack_bits
from packlight.maths.grids import dequantize
from packlight.maths.layer import row_slices
from packlight.maths.refit import round_and_refit
from packlight.maths.rounding import (
    coordinate_descent,
    round_to_nearest,
    round_with_compensation,
)
from packlight.nearest import did_you_mean

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_LEAST_SCALE = 2.0**-24
_LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class OnnxFormat:
    """bits: of a code, 32 for floats. block: weights that share a scale and a zero point.

    narrower: the format for rows that the block does not divide.
    """

    name: str
    bits: int
    block: int = 1
    narrower: str = ""

    @property
    def coded(self) -> bool:
        """Whether it is codes in blocks."""
        return self.bits < 32

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each weight, scales and zero points included."""
        return self.bits + (16 + self.bits) / self.block if self.coded else 32.0


FLOAT = "float32"
FORMATS: Mapping[str, OnnxFormat] = MappingProxyType(
    {
        one.name: one
        for one in (
            OnnxFormat(FLOAT, 32),
            OnnxFormat("int4-32", 4, 32, FLOAT),
            OnnxFormat("int4-64", 4, 64, "int4-32"),
            OnnxFormat("int4-128", 4, 128, "int4-64"),
            OnnxFormat("int8-32", 8, 32, FLOAT),
            OnnxFormat("int8-64", 8, 64, "int8-32"),
            OnnxFormat("int8-128", 8, 128, "int8-64"),
        )
    }
)
CANDIDATES = ("int4-128", "int4-64", "int4-32", "int8-128", "int8-32")
"""Formats that are weighed, fewest bits first."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a tensor's bytes in the file: all codes, all scales, or all zero points.

    word: codes, scale, zero_point or values. dtype: NumPy's. width: bytes a row. offset: from the
    tensor's first byte.
    """

    word: str
    dtype: str
    width: int
    offset: int


def format_of(name: str) -> OnnxFormat:
    """Look a format up; raises WrongUsage for a name that is none."""
    if name not in FORMATS:
        raise WrongUsage(
            f"{name!r} is no format of weights in onnxruntime{did_you_mean(name, FORMATS)}: use "
            f"one of {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def fits(name: str, inputs: int) -> bool:
    """Tell whether rows of so many inputs are whole blocks."""
    return inputs > 0 and inputs % format_of(name).block == 0


def fallback(name: str, inputs: int) -> str:
    """Give the format itself if it fits rows of so many inputs, else the next that does."""
    while not fits(name, inputs):
        name = FORMATS[name].narrower
    return name


def row_bytes(name: str, inputs: int) -> int:
    """Give the bytes of a row; raises WrongUsage where the inputs are not whole blocks."""
    if not fits(name, inputs):
        raise WrongUsage(
            f"{name} stores blocks of {FORMATS[name].block} weights, which rows of {inputs} are "
            f"not: use {fallback(name, inputs)}"
        )
    return sum(_widths(FORMATS[name], inputs))


def pieces_of(name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """How a tensor [.., in] lies in the file: its pieces one behind the other."""
    chosen = format_of(name)
    if not chosen.coded:
        return (Piece("values", "float32", 4 * shape[-1], 0),)
    rows, found, offset = prod(shape[:-1]), [], 0
    words = (("codes", "uint8"), ("scale", "float16"), ("zero_point", "uint8"))
    for (word, dtype), width in zip(words, _widths(chosen, shape[-1]), strict=True):
        found.append(Piece(word, dtype, width, offset))
        offset += rows * width
    return tuple(found)


def _widths(chosen: OnnxFormat, inputs: int) -> tuple[int, ...]:
    """Bytes of a row's codes, scales and zero points."""
    if not chosen.coded:
        return (4 * inputs,)
    blocks = inputs // chosen.block
    return (inputs * chosen.bits // 8, 2 * blocks, -(-blocks * chosen.bits // 8))


def quantize(
    name: str,
    weight: Floats,
    second_moments: NDArray[Any] | None = None,
    *,
    damping: float = 0.01,
    quick: bool = False,
) -> Bytes:
    """Give the bytes [out, row_bytes] of a weight [out, in] in a format.

    second_moments: E[x x^T] [in, in] of what reaches the layer: tr((W - V) H (W - V)^T) is
    minimised by compensation, descent and refitted scales; quick: by compensation alone. Or its
    diagonal [in]: each input's squared error has that weight. None: all count alike, and unless
    quick more is tried for each block.
    Raises UnusableModel for a weight that is not finite.
    """
    chosen = format_of(name)
    row_bytes(name, weight.shape[1])
    if not np.isfinite(weight).all():
        raise UnusableModel(
            "the weight has NaN or infinity: no block format can hold them; convert the model "
            "again from its source"
        )
    if not chosen.coded:
        return np.ascontiguousarray(weight, np.float32).view(np.uint8)
    grid, block = block_grid(chosen.bits), chosen.block
    whole = second_moments is not None and second_moments.ndim == 2
    importance: NDArray[Any] | None = second_moments
    if second_moments is not None and whole:
        importance = np.diag(second_moments)
    if quick and importance is None:  # the same errors, without what is tried for each block
        importance = np.ones(weight.shape[1])
    fitted, zero = fit_blocks(weight, chosen.bits, block, importance)
    scale = _stored(fitted)
    if whole and quick:
        codes, _ = round_with_compensation(
            weight, second_moments, scale, zero, grid,
            damping=damping, order="descending", group_size=block,
        )  # fmt: skip
    elif whole:
        codes, fitted, _ = round_and_refit(
            weight, second_moments, scale, zero, grid,
            damping=damping, order="descending", group_size=block,
        )  # fmt: skip
        # Scales come back in float32; the file has them in half precision.
        scale = _stored(fitted)
        codes = coordinate_descent(
            weight, codes, second_moments, scale, zero, grid, group_size=block
        )
    else:
        codes = round_to_nearest(weight, scale, zero, grid, group_size=block)
    parts = (
        pack_bits(np.asarray(codes, np.uint8), chosen.bits),
        np.ascontiguousarray(scale, np.float16).view(np.uint8),
        pack_bits(np.asarray(zero, np.uint8), chosen.bits),
    )
    return np.concatenate(parts, axis=1)


def decode(name: str, data: Bytes) -> Floats:
    """Give the weight [rows, in] that bytes [rows, row_bytes] stand for."""
    chosen = format_of(name)
    if not chosen.coded:
        return np.ascontiguousarray(data).view(np.float32)
    inputs = _inputs_of(chosen, data.shape[1])
    blocks = inputs // chosen.block
    ends = np.cumsum(_widths(chosen, inputs))
    weight = np.empty((len(data), inputs), np.float32)
    for rows in row_slices(len(data)):
        codes, scale, zero = np.split(data[rows], ends[:-1], axis=1)
        weight[rows] = dequantize(
            unpack_bits(codes, chosen.bits, inputs),
            np.ascontiguousarray(scale).view(np.float16).astype(np.float32),
            unpack_bits(zero, chosen.bits, blocks).astype(np.float32),
            block_shape=(1, chosen.block),
        )
    return weight


def _inputs_of(chosen: OnnxFormat, width: int) -> int:
    blocks = next(n for n in range(1, width) if sum(_widths(chosen, n * chosen.block)) >= width)
    return blocks * chosen.block


def _stored(scale: NDArray[Any]) -> Floats:
    """The scales that half precision holds, above 0."""
    half = np.clip(np.asarray(scale), _LEAST_SCALE, _LARGEST_SCALE).astype(np.float16)
    stored: Floats = half.astype(np.float32)
    return stored


def _round_quickly(kind: str, weight: Floats, moments: Floats | None, damping: float) -> Floats:
    return decode(kind, quantize(kind, weight, moments, damping=damping, quick=True))


ONNX = FormatTable(
    {name: one.block for name, one in FORMATS.items()},
    fits,
    fallback,
    row_bytes,
    _round_quickly,
    quantize,
    decode,
)
