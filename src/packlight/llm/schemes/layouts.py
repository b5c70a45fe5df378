"""How codes and scales of a weight lie in a file, in the layouts of compressed-tensors.

Source of the layouts: compressed-tensors 0.20, compressors/{pack_quantized,naive_quantized,
nvfp4}; the numbers of small floats are those of OCP and NVIDIA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.llm.formats.plain import decode_bf16, decode_f16, encode_bf16, encode_f16
from packlight.llm.schemes.table import Scheme
from packlight.maths.levels import E4M3, float_values

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1}
"""Bytes of a number, by safetensors' name of its type."""

_PATTERNS = float_values(E4M3)
_FINITE = np.flatnonzero(np.isfinite(_PATTERNS) & (np.arange(256) != 128))  # without -0
_BYTE_OF_LEVEL = _FINITE[np.argsort(_PATTERNS[_FINITE])].astype(np.uint8)
"""The byte of each level of e4m3, lowest first."""
_NIBBLE_OF_LEVEL = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)
"""The same of e2m1, which has -0 too."""


@dataclass(frozen=True)
class Coded:
    """A weight as codes of a scheme's grid: steps_of(codes) * scale.

    codes: [out, in]. scale: [out, groups]; those that the file holds. global_scale: of nvfp4,
    by which scales are multiplied before they are stored in 8 bits.
    """

    codes: NDArray[Any]
    scale: Floats
    global_scale: float = 1.0


def to_half(values: Floats, kind: str) -> Bytes:
    """Floats [rows, n] as the bytes of F16 or BF16, [rows, 2 n]."""
    values = np.ascontiguousarray(values)
    return encode_f16(values) if kind == "F16" else encode_bf16(values)


def from_half(data: Bytes, kind: str) -> Floats:
    """The floats of such bytes."""
    return decode_f16(data) if kind == "F16" else decode_bf16(data)


def list_parts(
    scheme: Scheme, shape: tuple[int, int], half: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor that a layer's weight becomes, by the end of its name.

    shape: [out, in]. half: F16 or BF16, the type of what is not rounded.
    """
    outputs, inputs = shape
    group = scheme.group_of(inputs)
    if not scheme.format or group is None:
        return {"weight": (half, shape)}
    scales = (outputs, inputs // group)
    if scheme.format == "pack-quantized":
        return {
            "weight_packed": ("I32", (outputs, -(-inputs * scheme.bits // 32))),
            "weight_scale": (half, scales),
            "weight_shape": ("I64", (2,)),
        }
    if scheme.format == "nvfp4-pack-quantized":
        return {
            "weight_packed": ("U8", (outputs, inputs // 2)),
            "weight_scale": ("F8_E4M3", scales),
            "weight_global_scale": ("F32", (1,)),
        }
    kind = "I8" if scheme.format == "int-quantized" else "F8_E4M3"
    return {"weight": (kind, shape), "weight_scale": (half, scales)}


def encode_parts(scheme: Scheme, coded: Coded, half: str) -> dict[str, Bytes]:
    """The bytes of each of a layer's tensors, by the end of its name."""
    codes, scale = coded.codes, np.ascontiguousarray(coded.scale, np.float32)
    if scheme.format == "pack-quantized":
        return {
            "weight_packed": pack_integers(codes, scheme.bits).view(np.uint8),
            "weight_scale": to_half(scale, half),
            "weight_shape": np.array(codes.shape, "<i8").view(np.uint8),
        }
    if scheme.format == "nvfp4-pack-quantized":
        nibbles = _NIBBLE_OF_LEVEL[codes]
        return {
            "weight_packed": nibbles[:, 0::2] | nibbles[:, 1::2] << 4,
            "weight_scale": encode_e4m3(scale * np.float32(coded.global_scale)),
            "weight_global_scale": np.array([coded.global_scale], "<f4").view(np.uint8),
        }
    bytes_ = codes.astype(np.int8).view(np.uint8)
    if scheme.format == "float-quantized":
        bytes_ = _BYTE_OF_LEVEL[codes]
    return {"weight": bytes_, "weight_scale": to_half(scale, half)}


def decode_parts(scheme: Scheme, parts: Mapping[str, Bytes], half: str) -> Floats:
    """What the bytes of a layer's tensors stand for: float32 [out, in]; the way back."""
    if not scheme.format:
        return from_half(parts["weight"], half)
    if scheme.format == "nvfp4-pack-quantized":
        packed = parts["weight_packed"]
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        order = np.zeros(16, np.uint8)
        order[_NIBBLE_OF_LEVEL] = np.arange(15)
        order[8] = order[0]
        codes: NDArray[Any] = order[nibbles]
        whole = parts["weight_global_scale"].view("<f4")[0]
        scale = (_PATTERNS[parts["weight_scale"]] / whole).astype(np.float32)
        return values_of(scheme, Coded(codes, scale))
    scale = from_half(parts["weight_scale"], half)
    if scheme.format == "pack-quantized":
        shape = parts["weight_shape"].view("<i8").reshape(-1)
        codes = unpack_integers(parts["weight_packed"].view("<i4"), scheme.bits, int(shape[1]))
    elif scheme.format == "int-quantized":
        codes = parts["weight"].view(np.int8)
    else:
        order = np.zeros(256, np.uint8)
        order[_BYTE_OF_LEVEL] = np.arange(len(_BYTE_OF_LEVEL))
        order[128] = order[0]
        codes = order[parts["weight"]]
    return values_of(scheme, Coded(codes, scale))


def values_of(scheme: Scheme, coded: Coded) -> Floats:
    """Steps * scale, float32 [out, in]."""
    assert scheme.grid is not None
    outputs, inputs = coded.codes.shape
    steps = np.asarray(scheme.grid.steps_of(coded.codes), np.float32)
    grouped = steps.reshape(outputs, coded.scale.shape[1], -1)
    return (grouped * coded.scale[:, :, None]).reshape(outputs, inputs)


def pack_integers(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Integers [rows, n] of 4 or 8 bits, moved up to begin at 0, from the low end of int32 on."""
    rows, count = codes.shape
    each = 32 // bits
    filled = np.zeros((rows, -(-count // each) * each), np.uint32)
    filled[:, :count] = codes.astype(np.int64) + (1 << (bits - 1))
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    words = np.bitwise_or.reduce(filled.reshape(rows, -1, each) << shifts, axis=2)
    signed: NDArray[np.int32] = words.astype("<u4").view("<i4")
    return signed


def unpack_integers(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.int8]:
    """The way back, int8 [rows, count]."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    wide = words.view("<u4")[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    codes = wide.reshape(len(words), -1)[:, :count].astype(np.int16) - (1 << (bits - 1))
    narrow: NDArray[np.int8] = codes.astype(np.int8)
    return narrow


def encode_e4m3(values: Floats) -> Bytes:
    """Numbers as the bytes of the nearest of e4m3."""
    levels = _PATTERNS[_BYTE_OF_LEVEL]
    middles = (levels[1:] + levels[:-1]) / 2
    return _BYTE_OF_LEVEL[np.searchsorted(middles, values)]
