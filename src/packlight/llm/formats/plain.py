"""Formats without blocks: F32, F16 and BF16, one number after another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from packlight.llm.formats.bits import Bytes


def encode_f32(values: NDArray[np.float32]) -> Bytes:
    """Numbers [rows, inputs] as bytes [rows, 4 * inputs]."""
    return values.astype("<f4", copy=False).view(np.uint8)


def decode_f32(data: Bytes) -> NDArray[np.float32]:
    """Bytes [rows, 4 * inputs] as numbers [rows, inputs]."""
    return data.view("<f4").astype(np.float32)


def encode_f16(values: NDArray[np.float32]) -> Bytes:
    """Numbers [rows, inputs] in half precision, [rows, 2 * inputs]; too large ones are infinite."""
    with np.errstate(over="ignore"):
        return values.astype("<f2").view(np.uint8)


def decode_f16(data: Bytes) -> NDArray[np.float32]:
    """Bytes [rows, 2 * inputs] in half precision as numbers [rows, inputs]."""
    return data.view("<f2").astype(np.float32)


def encode_bf16(values: NDArray[np.float32]) -> Bytes:
    """Numbers [rows, inputs] cut to the upper half of float32, halves to even, [rows, 2 * inputs].

    A NaN stays one: rounding could carry into its sign, so it is made quiet instead.
    """
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> 16
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").view(np.uint8)


def decode_bf16(data: Bytes) -> NDArray[np.float32]:
    """Bytes [rows, 2 * inputs] of bfloat16 as numbers [rows, inputs]."""
    wide = data.view("<u2").astype("<u4") << np.uint32(16)
    return wide.view("<f4").astype(np.float32)
