"""Super-blocks of 256 whose magnitudes come from a codebook: IQ2_XXS, _XS, _S, IQ3_XXS, _S.

Layouts as in llama.cpp's ggml-common.h, with the bytes of each field:

    IQ2_XXS  d:2  8 x (words:4  signs and scale:4)
    IQ2_XS   d:2  words and signs:64  scales:8       a word's number in the lower 9 bits of 16
    IQ2_S    d:2  words:32  signs:32  high:8  scales:8
    IQ3_XXS  d:2  words:64  8 x (signs and scale:4)
    IQ3_S    d:2  words:64  high:8  signs:32  scales:4

A word is the magnitudes of eight inputs, of four in IQ3. Signs are a bit an input, or seven of
eight where an even number is below 0: the eighth follows. Where seven, four times seven of them
and a scale share 32 bits. A scale of 4 bits s stands for d (2 s + 1), in eighths (IQ2) or fourths
(IQ3_XXS) of the magnitudes.

Which words there are is part of the format, a table of hundreds that llama.cpp's authors found by
trial. It is not written down here again: it is read from the package `gguf` when it is needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra
from packlight.llm.formats.bits import Bytes, half_bytes, half_values, join_fields, split_fields
from packlight.maths.codewords import Codebook
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks


@dataclass(frozen=True)
class WordLayout:
    """A format with a codebook.

    sub_size: inputs of a sub-block. unit: what a magnitude of 1 is in the file. even_signs: as in
    `Codebook`. write: puts the numbers of words [blocks, words], signs [blocks, 32] with a bit an
    input, and scales [blocks, sub_blocks] in fields of bytes; read: the way back.
    """

    name: str
    sub_size: int
    unit: float
    even_signs: bool
    write: Callable[[NDArray[np.uint16], Bytes, Bytes], list[Bytes]]
    read: Callable[[Bytes], tuple[NDArray[np.uint16], Bytes, Bytes]]

    @cached_property
    def grid(self) -> SuperBlockGrid:
        """What weights may be. Raises MissingExtra where the package gguf is not installed."""
        words = words_of(self.name) * np.float32(self.unit)
        magnitudes = np.unique(words)
        levels = tuple(float(level) for level in [*-magnitudes[::-1], *magnitudes])
        book = Codebook(words, self.even_signs)
        return SuperBlockGrid(self.sub_size, 256 // self.sub_size, levels, (1, 31), None, book)

    def encode(self, blocks: SuperBlocks) -> Bytes:
        """Bytes of super-blocks. Raises ValueError for magnitudes that are no word."""
        half = len(self.grid.levels) // 2
        signs = blocks.codes < half
        places = np.where(signs, half - 1 - blocks.codes, blocks.codes - half)
        width, base = self._width, half
        keys = places.reshape(len(places), -1, width).astype(np.int64)
        numbers = np.ascontiguousarray(self._numbers[keys @ base ** np.arange(width)])
        if (numbers < 0).any():
            raise ValueError(f"some magnitudes are no word of {self.name}'s codebook")
        bits = np.ascontiguousarray(np.packbits(signs, axis=1, bitorder="little"))
        if self.even_signs and (_PARITY[bits] != 0).any():
            raise ValueError(f"an odd number of eight weights is below 0, which {self.name} cannot")
        scales = np.ascontiguousarray(blocks.sub_scales).view(np.uint8)
        scales = (scales - np.uint8(1)) >> np.uint8(1)
        fields = self.write(numbers.astype(np.uint16), bits, scales)
        return np.concatenate([half_bytes(blocks.scales), *fields], axis=1)

    def decode(self, data: Bytes) -> SuperBlocks:
        """The numbers of super-blocks."""
        numbers, bits, scales = self.read(np.ascontiguousarray(data[:, 2:]))
        half = len(self.grid.levels) // 2
        places = self._places[numbers].reshape(len(data), 256)
        signs = np.unpackbits(bits, axis=1, bitorder="little").astype(bool)
        codes = np.where(signs, np.uint8(half - 1) - places, places + np.uint8(half))
        sub_scales = (scales * np.uint8(2) + np.uint8(1)).view(np.int8)
        return SuperBlocks(codes, sub_scales, half_values(data[:, :2])[:, None])

    @property
    def _width(self) -> int:
        return int(words_of(self.name).shape[1])

    @cached_property
    def _places(self) -> Bytes:
        """Of each word the places of its magnitudes among all, [words, width]."""
        words = words_of(self.name)
        return np.searchsorted(np.unique(words), words).astype(np.uint8)

    @cached_property
    def _numbers(self) -> NDArray[np.int32]:
        """The number of each word by its places, read as a number; -1 where there is none."""
        base, width = len(self.grid.levels) // 2, self._width
        found = np.full(base**width, -1, np.int32)
        found[self._places.astype(np.int64) @ base ** np.arange(width)] = range(len(self._places))
        return found


def has_codebooks() -> bool:
    """Whether the package that codebooks are read from is installed."""
    return importlib.util.find_spec("gguf") is not None


_PARITY = np.array([bin(byte).count("1") & 1 for byte in range(256)], np.uint8)


@cache
def words_of(name: str) -> NDArray[np.float32]:
    """The magnitudes of every word, [words, width]."""
    try:
        from gguf import quants
    except ImportError as missing:
        raise MissingExtra(
            f"{name} has a codebook that is read from the package gguf, which is not installed: "
            "pip install 'packlight[llm]', or use types without one, such as Q2_K and Q3_K"
        ) from missing
    table: Any = getattr(quants, name)
    table.init_grid()
    return np.ascontiguousarray(table.grid.reshape(table.grid_shape), np.float32)


def _write_iq2_xxs(numbers: NDArray[np.uint16], signs: Bytes, scales: Bytes) -> list[Bytes]:
    words = numbers.astype(np.uint8).reshape(-1, 8, 4)
    both = np.concatenate([words, _join_signs(signs, scales).reshape(-1, 8, 4)], axis=2)
    return [both.reshape(len(numbers), -1)]


def _read_iq2_xxs(data: Bytes) -> tuple[NDArray[np.uint16], Bytes, Bytes]:
    both = data.reshape(-1, 8, 8)
    words = both[:, :, :4].reshape(len(data), -1).astype(np.uint16)
    return words, *_split_signs(both[:, :, 4:].reshape(len(data), -1))


def _write_iq2_xs(numbers: NDArray[np.uint16], signs: Bytes, scales: Bytes) -> list[Bytes]:
    words = numbers | ((signs & np.uint8(127)).astype(np.uint16) << np.uint16(9))
    return [words.astype("<u2").view(np.uint8), _join_nibbles(scales)]


def _read_iq2_xs(data: Bytes) -> tuple[NDArray[np.uint16], Bytes, Bytes]:
    words = np.ascontiguousarray(data[:, :64]).view("<u2")
    seven = (words >> np.uint16(9)).astype(np.uint8)
    return words & np.uint16(511), _with_eighth(seven), _split_nibbles(data[:, 64:])


def _write_iq2_s(numbers: NDArray[np.uint16], signs: Bytes, scales: Bytes) -> list[Bytes]:
    high = (numbers >> np.uint16(8)).astype(np.uint8).reshape(-1, 8, 4)
    joined = join_fields(high.transpose(0, 2, 1), 2)
    return [numbers.astype(np.uint8), signs, joined, _join_nibbles(scales)]


def _read_iq2_s(data: Bytes) -> tuple[NDArray[np.uint16], Bytes, Bytes]:
    high = split_fields(np.ascontiguousarray(data[:, 64:72]), 2).transpose(0, 2, 1)
    numbers = data[:, :32] | (high.reshape(len(data), -1).astype(np.uint16) << np.uint16(8))
    return numbers, data[:, 32:64], _split_nibbles(data[:, 72:])


def _write_iq3_xxs(numbers: NDArray[np.uint16], signs: Bytes, scales: Bytes) -> list[Bytes]:
    return [numbers.astype(np.uint8), _join_signs(signs, scales)]


def _read_iq3_xxs(data: Bytes) -> tuple[NDArray[np.uint16], Bytes, Bytes]:
    return data[:, :64].astype(np.uint16), *_split_signs(data[:, 64:])


def _write_iq3_s(numbers: NDArray[np.uint16], signs: Bytes, scales: Bytes) -> list[Bytes]:
    high = np.packbits(numbers >> np.uint16(8), axis=1, bitorder="little")
    return [numbers.astype(np.uint8), high, signs, _join_nibbles(scales)]


def _read_iq3_s(data: Bytes) -> tuple[NDArray[np.uint16], Bytes, Bytes]:
    high = np.unpackbits(np.ascontiguousarray(data[:, 64:72]), axis=1, bitorder="little")
    numbers = data[:, :64] | (high.astype(np.uint16) << np.uint16(8))
    return numbers, data[:, 72:104], _split_nibbles(data[:, 104:])


def _join_signs(signs: Bytes, scales: Bytes) -> Bytes:
    """Signs [blocks, 32] and scales [blocks, 8] in 32 bits a scale: four times seven, then it."""
    seven = (signs & np.uint8(127)).reshape(len(signs), 8, 4).astype("<u4")
    joined = scales.astype("<u4") << np.uint32(28)
    for place in range(4):
        joined |= seven[:, :, place] << np.uint32(7 * place)
    return joined.view(np.uint8)


def _split_signs(data: Bytes) -> tuple[Bytes, Bytes]:
    joined = np.ascontiguousarray(data).view("<u4")
    shifts = np.array([0, 7, 14, 21], np.uint32)
    seven = ((joined[:, :, None] >> shifts) & np.uint32(127)).astype(np.uint8)
    return _with_eighth(seven.reshape(len(data), -1)), (joined >> np.uint32(28)).astype(np.uint8)


def _with_eighth(seven: Bytes) -> Bytes:
    eighth: Bytes = seven | (_PARITY[seven] << np.uint8(7))
    return eighth


def _join_nibbles(scales: Bytes) -> Bytes:
    return join_fields(scales.reshape(len(scales), -1, 2).transpose(0, 2, 1), 4)


def _split_nibbles(data: Bytes) -> Bytes:
    fields = split_fields(np.ascontiguousarray(data), 4).transpose(0, 2, 1)
    return fields.reshape(len(data), -1)


LAYOUTS = {
    one.name: one
    for one in (
        WordLayout("IQ2_XXS", 32, 1 / 8, True, _write_iq2_xxs, _read_iq2_xxs),
        WordLayout("IQ2_XS", 16, 1 / 8, True, _write_iq2_xs, _read_iq2_xs),
        WordLayout("IQ2_S", 16, 1 / 8, False, _write_iq2_s, _read_iq2_s),
        WordLayout("IQ3_XXS", 32, 1 / 4, True, _write_iq3_xxs, _read_iq3_xxs),
        WordLayout("IQ3_S", 32, 1.0, False, _write_iq3_s, _read_iq3_s),
    )
}
"""By the formats' names."""
