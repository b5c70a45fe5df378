"""Super-blocks of 256 in less than two bits a weight: IQ1_S and IQ1_M.

Layouts as in llama.cpp's ggml-common.h, with the bytes of each field:

    IQ1_S  d:2  words:32  8 x (high:12 bits  scale:3  shift:1)
    IQ1_M  words:32  16 x (high:3 bits  shift:1  high:3  shift:1)  4 x (scales:12 bits  d:4)

A word is eight of -1, 0 and 1, one of 2048. A shift of an eighth is added to all of its levels,
or taken away: of 32 inputs together in IQ1_S, of each word in IQ1_M. A scale of 3 bits s stands
for d (2 s + 1).

In IQ1_S the shift's sign is kept as that of the sub-scale: with w a word, d > 0 and s < 0,

    d |s| (w - 1/8) = d s (-w + 1/8),

so that all sub-blocks have the levels -7/8, 1/8 and 9/8, and other words where s is below 0.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from packlight.llm.formats.bits import Bytes, half_bytes, half_values
from packlight.llm.formats.codebooks import words_of
from packlight.maths.codewords import SignedCodebook
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks

SHIFT = 0.125

_THREES = 3 ** np.arange(8)
_FIELDS = np.array([0, 3, 6, 9], np.uint16)
"""Where four numbers of three bits begin in sixteen."""


class _Ternary:
    """The words of both formats, by their levels read as a number to base three."""

    name: str

    @cached_property
    def words(self) -> NDArray[np.int8]:
        """[2048, 8]: -1, 0 and 1."""
        return words_of(self.name).astype(np.int8)

    @cached_property
    def numbers(self) -> NDArray[np.int16]:
        """The number of each word; -1 where there is none."""
        found = np.full(3**8, -1, np.int16)
        found[(self.words.astype(np.int64) + 1) @ _THREES] = range(len(self.words))
        return found

    def find(self, levels: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Numbers [blocks, 32] of levels [blocks, 256]; those of blocks of scale 0 say nothing."""
        keys = (levels.reshape(len(levels), 32, 8).astype(np.int64) + 1) @ _THREES
        found = np.where(scales.reshape(-1, 1) == 0, np.int16(0), self.numbers[keys])
        if (found < 0).any():
            raise ValueError(f"some levels are no word of {self.name}'s codebook")
        return found.astype(np.uint16)


class OneBitSmall(_Ternary):
    """IQ1_S, 50 bytes a block; a `Layout`."""

    name = "IQ1_S"

    @cached_property
    def grid(self) -> SuperBlockGrid:
        """What weights may be. Raises MissingExtra where the package gguf is not installed."""
        words = self.words.astype(np.float32)
        book = SignedCodebook(words + np.float32(SHIFT), np.float32(SHIFT) - words)
        return SuperBlockGrid(32, 8, (SHIFT - 1, SHIFT, SHIFT + 1), (-15, 15), None, book)

    def encode(self, blocks: SuperBlocks) -> Bytes:
        """Bytes of super-blocks. Raises ValueError for levels that are no word."""
        scales = blocks.scales.reshape(-1, 1)
        sub_scales = blocks.sub_scales.reshape(len(scales), 8)
        below = sub_scales < 0
        levels = blocks.codes.reshape(len(scales), 8, 32).astype(np.int8) - np.int8(1)
        levels = np.where(below[:, :, None], -levels, levels).reshape(len(scales), 256)
        numbers = self.find(levels, scales)
        high = (numbers >> np.uint16(8)).reshape(-1, 8, 4) << _FIELDS
        rest = np.bitwise_or.reduce(high, axis=2)
        rest |= (np.abs(sub_scales).astype(np.uint16) >> np.uint16(1)) << np.uint16(12)
        rest |= below.astype(np.uint16) << np.uint16(15)
        tail = np.ascontiguousarray(rest.astype("<u2")).view(np.uint8)
        return np.concatenate([half_bytes(scales), numbers.astype(np.uint8), tail], axis=1)

    def decode(self, data: Bytes) -> SuperBlocks:
        """The numbers of super-blocks."""
        rest = np.ascontiguousarray(data[:, 34:]).view("<u2")
        high = (rest[:, :, None] >> _FIELDS) & np.uint16(7)
        numbers = data[:, 2:34] | (high.reshape(len(data), 32) << np.uint16(8))
        below = rest >> np.uint16(15) == 1
        levels = self.words[numbers].reshape(len(data), 8, 32)
        levels = np.where(below[:, :, None], -levels, levels)
        codes = (levels + np.int8(1)).astype(np.uint8).reshape(len(data), 256)
        sizes = (2 * ((rest >> np.uint16(12)) & np.uint16(7)) + 1).astype(np.int8)
        return SuperBlocks(codes, np.where(below, -sizes, sizes), half_values(data[:, :2])[:, None])


class OneBitMedium(_Ternary):
    """IQ1_M, 56 bytes a block; a `Layout`."""

    name = "IQ1_M"

    @cached_property
    def grid(self) -> SuperBlockGrid:
        """What weights may be. Raises MissingExtra where the package gguf is not installed."""
        words = self.words.astype(np.float32)
        book = SignedCodebook(
            np.concatenate([words + np.float32(SHIFT), words - np.float32(SHIFT)])
        )
        levels = tuple(whole + shift for whole in (-1, 0, 1) for shift in (-SHIFT, SHIFT))
        return SuperBlockGrid(16, 16, levels, (1, 15), None, book)

    def encode(self, blocks: SuperBlocks) -> Bytes:
        """Bytes of super-blocks. Raises ValueError for levels that are no word."""
        count = len(blocks.codes)
        shifts = (blocks.codes & np.uint8(1)).reshape(count, 32, 8)
        if (shifts != shifts[:, :, :1]).any():
            raise ValueError(
                f"the levels of eight weights are not shifted alike, as in {self.name}"
            )
        levels = (blocks.codes >> np.uint8(1)).astype(np.int8) - np.int8(1)
        numbers = self.find(levels, blocks.scales)
        half = (numbers >> np.uint16(8)).astype(np.uint8) | ((shifts[:, :, 0] ^ 1) << np.uint8(3))
        joined = half[:, 0::2] | (half[:, 1::2] << np.uint8(4))
        sizes = (blocks.sub_scales.reshape(count, 4, 4).astype(np.uint16) - 1) >> np.uint16(1)
        scales = np.bitwise_or.reduce(sizes << _FIELDS, axis=2)
        d = half_bytes(blocks.scales).view("<u2")  # a nibble of it in each
        scales |= ((d >> np.array([0, 4, 8, 12], np.uint16)) & np.uint16(15)) << np.uint16(12)
        tail = np.ascontiguousarray(scales.astype("<u2")).view(np.uint8)
        return np.concatenate([numbers.astype(np.uint8), joined, tail], axis=1)

    def decode(self, data: Bytes) -> SuperBlocks:
        """The numbers of super-blocks."""
        halves = np.stack([data[:, 32:48] & np.uint8(15), data[:, 32:48] >> np.uint8(4)], axis=2)
        halves = halves.reshape(len(data), 32)
        numbers = data[:, :32] | ((halves & np.uint8(7)).astype(np.uint16) << np.uint16(8))
        scales = np.ascontiguousarray(data[:, 48:]).view("<u2")
        d = (scales >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
        d = np.bitwise_or.reduce(d, axis=1).astype("<u2")
        sizes = ((scales[:, :, None] >> _FIELDS) & np.uint16(7)).reshape(len(data), 16)
        codes = 2 * (self.words[numbers] + np.int8(1)).astype(np.uint8)
        codes += ((halves >> np.uint8(3)) ^ np.uint8(1))[:, :, None]
        return SuperBlocks(
            codes.reshape(len(data), 256),
            (2 * sizes + 1).astype(np.int8),
            half_values(d[:, None].view(np.uint8))[:, None],
        )


LAYOUTS = {one.name: one for one in (OneBitSmall(), OneBitMedium())}
"""By the formats' names."""
