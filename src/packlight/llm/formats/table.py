"""GGUF's formats as a table, which of them fit a width, and bytes of a whole weight to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.llm.formats import codebooks, legacy, onebit, plain, superblocks
from packlight.llm.formats.bits import Bytes
from packlight.llm.storage import TYPES
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks, values_of
from packlight.nearest import did_you_mean

CHUNK = 1 << 18
"""Weights that are encoded or decoded at a time: what is computed of them stays in the cache."""


class Layout(Protocol):
    """How numbers of blocks become bytes: a grid, and functions that are each other's inverse."""

    @property
    def grid(self) -> SuperBlockGrid:
        """What weights may be. Raises MissingExtra for a codebook that cannot be read."""

    @property
    def encode(self) -> Callable[[SuperBlocks], Bytes]:
        """Numbers to bytes."""

    @property
    def decode(self) -> Callable[[Bytes], SuperBlocks]:
        """The way back."""


@dataclass(frozen=True)
class BlockLayout:
    """A `Layout` whose levels any input may have."""

    grid: SuperBlockGrid
    encode: Callable[[SuperBlocks], Bytes]
    decode: Callable[[Bytes], SuperBlocks]


@dataclass(frozen=True)
class BlockFormat:
    """A format of GGUF.

    block: weights of a block, along the inputs. block_bytes: what they take. gguf_type: the
    number that files know it by. narrower: the next format, for widths that `block` does not
    divide. layout: None for plain numbers.
    """

    name: str
    block: int
    block_bytes: int
    gguf_type: int
    narrower: str | None = None
    layout: Layout | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each weight, scales included."""
        return 8 * self.block_bytes / self.block


def _layouts() -> dict[str, Layout]:
    old, new = legacy, superblocks
    return {
        **codebooks.LAYOUTS,
        **onebit.LAYOUTS,
        "Q8_0": BlockLayout(old.Q8_0, old.encode_q8_0, old.decode_q8_0),
        "Q4_0": BlockLayout(old.Q4_0, old.encode_q4, old.decode_q4_0),
        "Q4_1": BlockLayout(old.Q4_1, old.encode_q4, old.decode_q4_1),
        "Q5_0": BlockLayout(old.Q5_0, old.encode_q5, old.decode_q5_0),
        "Q5_1": BlockLayout(old.Q5_1, old.encode_q5, old.decode_q5_1),
        "IQ4_NL": BlockLayout(old.IQ4_NL, old.encode_q4, old.decode_q4_0),
        "Q2_K": BlockLayout(new.Q2_K, new.encode_q2_k, new.decode_q2_k),
        "Q3_K": BlockLayout(new.Q3_K, new.encode_q3_k, new.decode_q3_k),
        "Q4_K": BlockLayout(new.Q4_K, new.encode_q4_k, new.decode_q4_k),
        "Q5_K": BlockLayout(new.Q5_K, new.encode_q5_k, new.decode_q5_k),
        "Q6_K": BlockLayout(new.Q6_K, new.encode_q6_k, new.decode_q6_k),
        "IQ4_XS": BlockLayout(new.IQ4_XS, new.encode_iq4_xs, new.decode_iq4_xs),
    }


def _formats() -> Iterator[BlockFormat]:
    layouts = _layouts()
    # What is narrower is what llama.cpp falls back to.
    for name, narrower in (
        ("F32", None),
        ("F16", None),
        ("BF16", None),
        ("Q8_0", "F16"),
        ("Q4_0", "F16"),
        ("Q4_1", "F16"),
        ("Q5_0", "F16"),
        ("Q5_1", "F16"),
        ("IQ4_NL", "F16"),
        *((name, "IQ4_NL") for name in (*onebit.LAYOUTS, *codebooks.LAYOUTS)),
        ("Q2_K", "IQ4_NL"),
        ("Q3_K", "IQ4_NL"),
        ("IQ4_XS", "IQ4_NL"),
        ("Q4_K", "Q5_0"),
        ("Q5_K", "Q5_1"),
        ("Q6_K", "Q8_0"),
    ):
        kind = TYPES[name]
        yield BlockFormat(
            name, kind.block, kind.block_bytes, kind.gguf_type, narrower, layouts.get(name)
        )


FORMATS: Mapping[str, BlockFormat] = MappingProxyType({f.name: f for f in _formats()})


def format_of(name: str) -> BlockFormat:
    """Look a format up; raises WrongUsage for a name that is none."""
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise WrongUsage(
            f"{name!r} is no block format of GGUF{did_you_mean(name, FORMATS)}: use one of {known}"
        )
    return FORMATS[name]


def fits(name: str, inputs: int) -> bool:
    """Tell whether rows of so many inputs are whole blocks."""
    return inputs > 0 and inputs % format_of(name).block == 0


def fallback(name: str, inputs: int) -> str:
    """Give the format itself if it fits rows of so many inputs, else the next that does."""
    chosen = format_of(name)
    while chosen.narrower is not None and inputs % chosen.block:
        chosen = FORMATS[chosen.narrower]
    return chosen.name


def row_bytes(name: str, inputs: int) -> int:
    """Give the bytes of a row; raises WrongUsage where the inputs are not whole blocks."""
    chosen = format_of(name)
    if not fits(name, inputs):
        raise WrongUsage(
            f"{name} stores blocks of {chosen.block} weights, which rows of {inputs} are not: "
            f"use {fallback(name, inputs)}"
        )
    return inputs // chosen.block * chosen.block_bytes


def decode(name: str, data: Bytes) -> NDArray[np.float32]:
    """Give the weight [rows, inputs] that bytes [rows, row_bytes] stand for.

    Bit for bit what llama.cpp's own reader computes. Raises WrongUsage for bytes that are not
    rows of whole blocks.
    """
    chosen = format_of(name)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % chosen.block_bytes:
        raise WrongUsage(
            f"{name} is read from bytes [rows, n * {chosen.block_bytes}], "
            f"not from {data.dtype} of shape {list(data.shape)}"
        )
    rows, blocks = data.shape[0], data.shape[1] // chosen.block_bytes
    layout = chosen.layout
    if layout is None:
        return _PLAIN[name][1](np.ascontiguousarray(data))
    weight = np.empty((rows * blocks, chosen.block), np.float32)
    flat = np.ascontiguousarray(data).reshape(rows * blocks, chosen.block_bytes)
    for some in _chunks(rows * blocks, chosen.block):
        weight[some] = values_of(layout.decode(flat[some]), layout.grid)
    return weight.reshape(rows, blocks * chosen.block)


def encode(name: str, blocks: SuperBlocks) -> Bytes:
    """Give the bytes [out, row_bytes] of a layer on the grid of a block format."""
    chosen = format_of(name)
    layout = chosen.layout
    if layout is None:
        raise WrongUsage(f"{name} has no blocks: only block formats are encoded from codes")
    grid = layout.grid
    outputs, inputs = blocks.codes.shape
    width = row_bytes(name, inputs)
    count = outputs * (inputs // grid.size)
    one_a_row = SuperBlocks(
        *(
            None if part is None else part.reshape(count, -1)
            for part in (
                blocks.codes,
                blocks.sub_scales,
                blocks.scales,
                blocks.sub_offsets,
                blocks.offsets,
            )
        )
    )
    data = np.empty((count, chosen.block_bytes), np.uint8)
    for some in _chunks(count, chosen.block):
        data[some] = layout.encode(_rows(one_a_row, some))
    return data.reshape(outputs, width)


def encode_plain(name: str, weight: NDArray[np.float32]) -> Bytes:
    """Give the bytes of numbers in F32, F16 or BF16, [rows, row_bytes]."""
    return _PLAIN[name][0](np.ascontiguousarray(weight))


_PLAIN: dict[
    str,
    tuple[Callable[[NDArray[np.float32]], Bytes], Callable[[Bytes], NDArray[np.float32]]],
] = {
    "F32": (plain.encode_f32, plain.decode_f32),
    "F16": (plain.encode_f16, plain.decode_f16),
    "BF16": (plain.encode_bf16, plain.decode_bf16),
}


def _chunks(count: int, size: int) -> Iterator[slice]:
    step = max(CHUNK // size, 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _rows(blocks: SuperBlocks, some: slice) -> SuperBlocks:
    if blocks.offsets is None:
        return SuperBlocks(blocks.codes[some], blocks.sub_scales[some], blocks.scales[some][:, 0])
    assert blocks.sub_offsets is not None
    return SuperBlocks(
        blocks.codes[some],
        blocks.sub_scales[some],
        blocks.scales[some][:, 0],
        blocks.sub_offsets[some],
        blocks.offsets[some][:, 0],
    )
