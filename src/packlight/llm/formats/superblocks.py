"""Super-blocks of 256 whose sub-blocks have small scales: Q2_K to Q6_K and IQ4_XS.

Each pair of functions turns the numbers of super-blocks, `SuperBlocks` with one of them a row,
into bytes [blocks, block_bytes] and back. Layouts as in llama.cpp's ggml-common.h, with the
bytes of each field:

    Q2_K    scales:16  low:64  d:2  dmin:2        scale in the lower nibble, offset in the upper
    Q3_K    high:32  low:64  scales:12  d:2       code = low + 4 high
    Q4_K    d:2  dmin:2  scales:12  low:128
    Q5_K    d:2  dmin:2  scales:12  high:32  low:128
    Q6_K    low:128  high:64  scales:16  d:2
    IQ4_XS  d:2  scales_high:2  scales_low:4  low:128

Codes lie in runs that share bytes: of 2 bits, codes i, i + 32, i + 64 and i + 96 of each 128;
of 4 bits, codes i and i + 32 of each 64 (Q6_K: i and i + 64 of each 128; IQ4_XS: i and i + 16
of each 32); of 1 bit, codes i, i + 32, ..., i + 224.
"""

from __future__ import annotations

import numpy as np

from packlight.llm.formats.bits import (
    Bytes,
    Numbers,
    half_bytes,
    half_values,
    join_fields,
    split_fields,
)
from packlight.llm.formats.legacy import TABLE
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks

Q2_K = SuperBlockGrid(16, 16, tuple(range(4)), (0, 15), (0, 15))
Q3_K = SuperBlockGrid(16, 16, tuple(range(-4, 4)), (-32, 31))
Q4_K = SuperBlockGrid(32, 8, tuple(range(16)), (0, 63), (0, 63))
Q5_K = SuperBlockGrid(32, 8, tuple(range(32)), (0, 63), (0, 63))
Q6_K = SuperBlockGrid(16, 16, tuple(range(-32, 32)), (-128, 127))
IQ4_XS = SuperBlockGrid(32, 8, TABLE, (-32, 31))


def encode_q2_k(blocks: SuperBlocks) -> Bytes:
    """Q2_K, 84 bytes a super-block."""
    scales = blocks.sub_scales.view(np.uint8) | (_offsets(blocks) << np.uint8(4))
    low = _join(blocks.codes, 2, 32)
    return np.concatenate([scales, low, *_halves(blocks)], axis=1)


def decode_q2_k(data: Bytes) -> SuperBlocks:
    """Q2_K, 84 bytes a super-block."""
    scales, low, d, dmin = _cut(data, 16, 64, 2, 2)
    fields = split_fields(scales, 4)
    return _with_offsets(_split(low, 2, 32), fields[:, 0], fields[:, 1], d, dmin)


def encode_q3_k(blocks: SuperBlocks) -> Bytes:
    """Q3_K, 110 bytes a super-block.

    Sub-scales are stored 32 higher, the lower nibbles of the first and the last eight together,
    then the upper two bits of every fourth.
    """
    codes = blocks.codes
    stored = (blocks.sub_scales + np.int8(32)).view(np.uint8)
    scales = [
        join_fields((stored & np.uint8(15)).reshape(-1, 2, 8), 4),
        join_fields((stored >> np.uint8(4)).reshape(-1, 4, 4), 2),
    ]
    high = join_fields((codes >> np.uint8(2)).reshape(-1, 8, 32), 1)
    low = _join(codes & np.uint8(3), 2, 32)
    return np.concatenate([high, low, *scales, *_halves(blocks)], axis=1)


def decode_q3_k(data: Bytes) -> SuperBlocks:
    """Q3_K, 110 bytes a super-block."""
    high, low, lower, upper, d = _cut(data, 32, 64, 8, 4, 2)
    stored = split_fields(lower, 4).reshape(-1, 16)
    stored |= split_fields(upper, 2).reshape(-1, 16) << np.uint8(4)
    codes = _split(low, 2, 32) | (split_fields(high, 1).reshape(-1, 256) << np.uint8(2))
    return _without_offsets(codes, stored.view(np.int8) - np.int8(32), d)


def encode_q4_k(blocks: SuperBlocks) -> Bytes:
    """Q4_K, 144 bytes a super-block."""
    low = _join(blocks.codes, 4, 32)
    return np.concatenate([*_halves(blocks), _join_sixes(blocks), low], axis=1)


def decode_q4_k(data: Bytes) -> SuperBlocks:
    """Q4_K, 144 bytes a super-block."""
    d, dmin, scales, low = _cut(data, 2, 2, 12, 128)
    return _with_offsets(_split(low, 4, 32), *_split_sixes(scales), d, dmin)


def encode_q5_k(blocks: SuperBlocks) -> Bytes:
    """Q5_K, 176 bytes a super-block."""
    codes = blocks.codes
    high = join_fields((codes >> np.uint8(4)).reshape(-1, 8, 32), 1)
    low = _join(codes & np.uint8(15), 4, 32)
    return np.concatenate([*_halves(blocks), _join_sixes(blocks), high, low], axis=1)


def decode_q5_k(data: Bytes) -> SuperBlocks:
    """Q5_K, 176 bytes a super-block."""
    d, dmin, scales, high, low = _cut(data, 2, 2, 12, 32, 128)
    codes = _split(low, 4, 32) | (split_fields(high, 1).reshape(-1, 256) << np.uint8(4))
    return _with_offsets(codes, *_split_sixes(scales), d, dmin)


def encode_q6_k(blocks: SuperBlocks) -> Bytes:
    """Q6_K, 210 bytes a super-block."""
    codes = blocks.codes
    low = _join(codes & np.uint8(15), 4, 64)
    high = _join(codes >> np.uint8(4), 2, 32)
    scales = blocks.sub_scales.view(np.uint8)
    return np.concatenate([low, high, scales, *_halves(blocks)], axis=1)


def decode_q6_k(data: Bytes) -> SuperBlocks:
    """Q6_K, 210 bytes a super-block."""
    low, high, scales, d = _cut(data, 128, 64, 16, 2)
    codes = _split(low, 4, 64) | (_split(high, 2, 32) << np.uint8(4))
    return _without_offsets(codes, scales.view(np.int8), d)


def encode_iq4_xs(blocks: SuperBlocks) -> Bytes:
    """IQ4_XS, 136 bytes a super-block; sub-scales are stored 32 higher."""
    stored = (blocks.sub_scales + np.int8(32)).view(np.uint8)
    pairs = (stored & np.uint8(15)).reshape(-1, 4, 2)
    upper = (stored >> np.uint8(4)).reshape(-1, 2, 4)
    head = [
        half_bytes(blocks.scales),
        join_fields(upper.transpose(0, 2, 1), 2),
        join_fields(pairs.transpose(0, 2, 1), 4),
    ]
    return np.concatenate([*head, _join(blocks.codes, 4, 16)], axis=1)


def decode_iq4_xs(data: Bytes) -> SuperBlocks:
    """IQ4_XS, 136 bytes a super-block."""
    d, upper, lower, low = _cut(data, 2, 2, 4, 128)
    stored = split_fields(lower, 4).transpose(0, 2, 1).reshape(-1, 8)
    stored = stored | (split_fields(upper, 2).transpose(0, 2, 1).reshape(-1, 8) << np.uint8(4))
    return _without_offsets(_split(low, 4, 16), stored.view(np.int8) - np.int8(32), d)


def _join(codes: Bytes, bits: int, run: int) -> Bytes:
    """Codes [blocks, 256] of a few bits in bytes, those `run` apart in the same one."""
    fields = codes.reshape(-1, 8 // bits, run)
    return join_fields(fields, bits).reshape(len(codes), -1)


def _split(data: Bytes, bits: int, run: int) -> Bytes:
    return split_fields(data.reshape(-1, run), bits).reshape(len(data), -1)


def _join_sixes(blocks: SuperBlocks) -> Bytes:
    """Eight sub-scales and eight sub-offsets of 6 bits in 12 bytes.

    The first four of each fill the lower bits of a byte, whose upper two are bits 4 and 5 of
    the last four; the lower nibbles of those lie together in the last four bytes.
    """
    scales, offsets = blocks.sub_scales.view(np.uint8), _offsets(blocks)
    parts = [n[:, :4] | ((n[:, 4:] >> np.uint8(4)) << np.uint8(6)) for n in (scales, offsets)]
    nibbles = np.stack([scales[:, 4:] & np.uint8(15), offsets[:, 4:] & np.uint8(15)], axis=1)
    return np.concatenate([*parts, join_fields(nibbles, 4)], axis=1)


def _split_sixes(data: Bytes) -> tuple[Bytes, Bytes]:
    first, second, nibbles = _cut(data, 4, 4, 4)
    fields = split_fields(nibbles, 4)
    scales, offsets = (
        np.concatenate(
            [part & np.uint8(63), fields[:, i] | (part >> np.uint8(6) << np.uint8(4))], 1
        )
        for i, part in enumerate((first, second))
    )
    return scales, offsets


def _offsets(blocks: SuperBlocks) -> Bytes:
    assert blocks.sub_offsets is not None
    offsets: Bytes = blocks.sub_offsets.view(np.uint8)
    return offsets


def _halves(blocks: SuperBlocks) -> list[Bytes]:
    given = [blocks.scales] if blocks.offsets is None else [blocks.scales, blocks.offsets]
    return [half_bytes(values) for values in given]


def _cut(data: Bytes, *widths: int) -> list[Bytes]:
    """Give the fields of blocks [blocks, bytes], each in memory of its own."""
    ends = np.cumsum(widths)
    return [
        np.ascontiguousarray(data[:, end - width : end])
        for width, end in zip(widths, ends, strict=True)
    ]


def _with_offsets(
    codes: Bytes, scales: Bytes, offsets: Bytes, d: Bytes, dmin: Bytes
) -> SuperBlocks:
    return SuperBlocks(
        codes,
        np.ascontiguousarray(scales).view(np.int8),
        half_values(d)[:, None],
        np.ascontiguousarray(offsets).view(np.int8),
        half_values(dmin)[:, None],
    )


def _without_offsets(codes: Bytes, scales: Numbers, d: Bytes) -> SuperBlocks:
    return SuperBlocks(codes, scales, half_values(d)[:, None])
