"""Blocks of 32 with a scale, and a minimum in some: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.

Each pair of functions turns the numbers of blocks, `SuperBlocks` with one block a row, into
bytes [blocks, block_bytes] and back. Layouts as in llama.cpp's ggml-common.h:

    Q4_0, IQ4_NL  scale:2  low:16            code i in byte i mod 16, lower nibble first
    Q4_1          scale:2  minimum:2  low:16
    Q5_0          scale:2  high:4  low:16    bit i of `high` is the fifth of code i
    Q5_1          scale:2  minimum:2  high:4  low:16
    Q8_0          scale:2  codes:32          two's complement
"""

from __future__ import annotations

import numpy as np

from packlight.llm.formats.bits import Bytes, half_bytes, half_values, join_fields, split_fields
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL and IQ4_XS."""

Q4_0 = SuperBlockGrid(32, 1, tuple(range(-8, 8)))
Q4_1 = SuperBlockGrid(32, 1, tuple(range(16)), offset_limits=(1, 1))
Q5_0 = SuperBlockGrid(32, 1, tuple(range(-16, 16)))
Q5_1 = SuperBlockGrid(32, 1, tuple(range(32)), offset_limits=(1, 1))
Q8_0 = SuperBlockGrid(32, 1, tuple(range(-128, 128)))
IQ4_NL = SuperBlockGrid(32, 1, TABLE)


def encode_q4(blocks: SuperBlocks) -> Bytes:
    """Q4_0, Q4_1 and IQ4_NL: a minimum is written where the blocks have an offset."""
    low = join_fields(blocks.codes.reshape(-1, 2, 16), 4)
    return np.concatenate([*_head(blocks), low], axis=1)


def decode_q4_0(data: Bytes) -> SuperBlocks:
    """Q4_0 and IQ4_NL, 18 bytes a block."""
    return _blocks(split_fields(data[:, 2:], 4).reshape(-1, 32), data)


def decode_q4_1(data: Bytes) -> SuperBlocks:
    """Q4_1, 20 bytes a block."""
    return _blocks(split_fields(data[:, 4:], 4).reshape(-1, 32), data, minimum=True)


def encode_q5(blocks: SuperBlocks) -> Bytes:
    """Q5_0 and Q5_1: a minimum is written where the blocks have an offset."""
    codes = blocks.codes
    high = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    low = join_fields((codes & np.uint8(15)).reshape(-1, 2, 16), 4)
    return np.concatenate([*_head(blocks), high, low], axis=1)


def decode_q5_0(data: Bytes) -> SuperBlocks:
    """Q5_0, 22 bytes a block."""
    return _blocks(_five(data[:, 2:]), data)


def decode_q5_1(data: Bytes) -> SuperBlocks:
    """Q5_1, 24 bytes a block."""
    return _blocks(_five(data[:, 4:]), data, minimum=True)


def encode_q8_0(blocks: SuperBlocks) -> Bytes:
    """Q8_0: code 0 stands for -128, whose byte is 0x80."""
    return np.concatenate([*_head(blocks), blocks.codes ^ np.uint8(128)], axis=1)


def decode_q8_0(data: Bytes) -> SuperBlocks:
    """Q8_0, 34 bytes a block."""
    return _blocks(data[:, 2:] ^ np.uint8(128), data)


def _head(blocks: SuperBlocks) -> list[Bytes]:
    head = [half_bytes(blocks.scales)]
    if blocks.offsets is not None:
        head.append(half_bytes(-blocks.offsets))  # the file holds what is added
    return head


def _five(data: Bytes) -> Bytes:
    high = np.unpackbits(np.ascontiguousarray(data[:, :4]), axis=1, bitorder="little")
    return split_fields(data[:, 4:], 4).reshape(-1, 32) | (high << np.uint8(4))


def _blocks(codes: Bytes, data: Bytes, *, minimum: bool = False) -> SuperBlocks:
    ones = np.ones((len(data), 1), np.int8)
    scales = half_values(data[:, :2])[:, None]
    if not minimum:
        return SuperBlocks(codes, ones, scales)
    return SuperBlocks(codes, ones, scales, ones, -half_values(data[:, 2:4])[:, None])
