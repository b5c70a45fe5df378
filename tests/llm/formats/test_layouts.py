"""Bytes of GGUF's formats: as its own Python package reads them, and back without a change."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest

from packlight.errors import MissingExtra, WrongUsage
from packlight.llm.formats import (
    FORMATS,
    codebooks,
    decode,
    encode,
    fallback,
    fits,
    quantize,
    row_bytes,
)
from packlight.llm.formats.codebooks import LAYOUTS
from packlight.llm.formats.onebit import LAYOUTS as ONE_BIT
from packlight.maths.superblocks import SuperBlocks

BLOCKED = [name for name, entry in FORMATS.items() if entry.layout is not None]
PLAIN_BLOCKS = [name for name in BLOCKED if name not in {**LAYOUTS, **ONE_BIT}]

# One block, all scales 1 and offsets 0 where there is a choice, codes 0, 1, 2, ... as far as
# they go and again; written down by hand from the layouts.
HALF_ONE = "003c"
NIBBLES = "".join(f"{n:x}{n:x}" for n in range(16))  # code i and code i + 16 are alike
GOLDEN = {
    "Q4_0": HALF_ONE + NIBBLES,
    "IQ4_NL": HALF_ONE + NIBBLES,
    "Q4_1": HALF_ONE + "00bc" + NIBBLES,  # offset 1 is subtracted: -1 is stored
    "Q5_0": HALF_ONE + "0000ffff" + NIBBLES,
    "Q5_1": HALF_ONE + "00bc" + "0000ffff" + NIBBLES,
    "Q8_0": HALF_ONE + "".join(f"{n ^ 0x80:02x}" for n in range(32)),
}


def random_bytes(name: str, rows: int = 6, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, row_bytes(name, 1280)), dtype=np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_read_as_by_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    kind = gguf.GGMLQuantizationType[name]
    assert FORMATS[name].gguf_type == kind
    assert gguf.GGML_QUANT_SIZES[kind] == (FORMATS[name].block, FORMATS[name].block_bytes)
    data = random_bytes(name)
    with np.errstate(all="ignore"):
        ours = decode(name, data)
        theirs = gguf.quants.dequantize(data.copy(), kind).reshape(ours.shape)
    assert ours.dtype == np.float32
    alike = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert alike.all()


@pytest.mark.parametrize("name", BLOCKED)
def test_codes_and_scales_come_back_as_the_same_bytes(name: str) -> None:
    if name not in PLAIN_BLOCKS:
        pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    entry = FORMATS[name]
    layout = entry.layout
    assert layout is not None
    data = random_bytes(name).reshape(-1, entry.block_bytes)
    blocks = layout.decode(data)
    np.testing.assert_array_equal(layout.encode(blocks), data)
    # However the numbers lie in memory.
    other = dataclasses.replace(
        blocks,
        **{
            name: np.asfortranarray(array)
            for name, array in vars(blocks).items()
            if isinstance(array, np.ndarray)
        },
    )
    np.testing.assert_array_equal(layout.encode(other), data)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_numbers_come_back(name: str) -> None:
    weight = np.array([[0.0, -0.0, 1.5, -2.0, 65504.0, 2.0**-14]], np.float32)
    data = quantize(name, weight)
    assert data.shape == (1, row_bytes(name, 6))
    back = decode(name, data)
    if name == "BF16":
        assert back[0, 4] == 65536.0  # 8 bits of mantissa round up
        back[0, 4] = 65504.0
    np.testing.assert_array_equal(back.view(np.uint32), weight.view(np.uint32))


def test_bfloat16_rounds_halves_to_even_and_keeps_nan() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x7FFFFFFF, 0xFF800001]], np.uint32)
    stored = quantize("BF16", bits.view(np.float32)).view("<u2")[0]
    assert [int(x) for x in stored[:3]] == [0x3F80, 0x3F82, 0x3F81]
    assert np.isnan(decode("BF16", stored.view(np.uint8)[None]))[0, 3:].all()


def example(name: str) -> SuperBlocks:
    layout = FORMATS[name].layout
    assert layout is not None
    grid = layout.grid
    codes = (np.arange(grid.size) % len(grid.levels)).astype(np.uint8)[None]
    ones = np.ones((1, grid.sub_blocks), np.int8)
    one = np.ones((1, 1), np.float32)
    if grid.offset_limits is None:
        return SuperBlocks(codes, ones, one)
    return SuperBlocks(codes, ones, one, ones, one)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"])
def test_golden_bytes_of_small_blocks(name: str) -> None:
    assert encode(name, example(name)).tobytes().hex() == GOLDEN[name]


def test_golden_bytes_of_super_blocks() -> None:
    """Codes 0, 1, ... repeat with a period that divides a run, so bytes are whole runs alike."""
    found = {name: encode(name, example(name)).tobytes().hex() for name in PLAIN_BLOCKS}
    assert found["Q2_K"] == "11" * 16 + "0055aaff" * 16 + HALF_ONE * 2
    # Codes 0 to 7: low bits 0 to 3 twice, high bits 0 0 0 0 1 1 1 1; a scale of 1 is stored as 33.
    assert (
        found["Q3_K"] == "00000000ffffffff" * 4 + "0055aaff" * 16 + "11" * 8 + "aa" * 4 + HALF_ONE
    )
    sixes = "01" * 8 + "11" * 4
    assert found["Q4_K"] == HALF_ONE * 2 + sixes + NIBBLES * 8
    assert found["Q5_K"] == HALF_ONE * 2 + sixes + ("00" * 16 + "ff" * 16) + NIBBLES * 8
    sixteens = ("88" * 16 + "dd" * 16) * 2  # i, i + 32, i + 64, i + 96: 0 2 0 2, then 1 3 1 3
    assert found["Q6_K"] == NIBBLES * 8 + sixteens + "01" * 16 + HALF_ONE
    assert found["IQ4_XS"] == HALF_ONE + "aaaa" + "11" * 4 + NIBBLES * 8


def test_scales_of_six_bits_lie_as_llama_cpp_reads_them() -> None:
    """Each sub-block its own number, told apart by what a block decodes to."""
    rng = np.random.default_rng(1)
    scales = rng.integers(0, 64, (3, 8)).astype(np.int8)
    offsets = rng.integers(0, 64, (3, 8)).astype(np.int8)
    one = np.ones((3, 1), np.float32)
    for name in ("Q4_K", "Q5_K"):
        for code in (0, 1):
            codes = np.full((3, 256), code, np.uint8)
            data = encode(name, SuperBlocks(codes, scales, one, offsets, one))
            expected = np.repeat(code * scales.astype(np.float32) - offsets, 32, axis=1)
            np.testing.assert_array_equal(decode(name, data), expected)


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 96, "Q5_0"),
        ("Q5_K", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "IQ4_NL"),
        ("IQ2_XS", 96, "IQ4_NL"),
        ("IQ1_S", 96, "IQ4_NL"),
        ("IQ4_XS", 288, "IQ4_NL"),
        ("Q6_K", 50, "F16"),
        ("Q3_K", 50, "F16"),
        ("F32", 7, "F32"),
    ],
)
def test_a_width_that_does_not_fit_falls_back(name: str, inputs: int, expected: str) -> None:
    assert fallback(name, inputs) == expected
    assert fits(name, inputs) is (name == expected)
    assert row_bytes(expected, inputs) > 0


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(WrongUsage, match=r"'Q4_M' is no block format.*did you mean 'Q4_K'"):
        row_bytes("Q4_M", 256)
    with pytest.raises(WrongUsage, match=r"blocks of 256 weights.*rows of 96.*use Q5_0"):
        row_bytes("Q4_K", 96)
    with pytest.raises(WrongUsage, match=r"n \* 144\], not from uint8 of shape \[2, 145\]"):
        decode("Q4_K", np.zeros((2, 145), np.uint8))
    with pytest.raises(WrongUsage, match="F16 has no blocks"):
        encode("F16", example("Q4_K"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_golden_bytes_of_the_first_word(name: str) -> None:
    """All magnitudes those of word 0, the first input of each sub-block below 0."""
    pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    layout = LAYOUTS[name]
    data = np.zeros((1, FORMATS[name].block_bytes), np.uint8)
    data[:, :2] = np.frombuffer(bytes.fromhex(HALF_ONE), np.uint8)
    blocks = layout.decode(data)
    least = codebooks.words_of(name).min() * layout.unit
    assert (decode(name, data) == least).all()  # word 0 is the smallest everywhere
    half = len(layout.grid.levels) // 2
    codes = blocks.codes.copy()
    codes[:, :: layout.sub_size] = half - 1
    codes[:, 1 :: layout.sub_size] = half - 1
    scales = np.full_like(blocks.sub_scales, 5)  # stored as 2
    found = layout.encode(SuperBlocks(codes, scales, blocks.scales)).tobytes().hex()
    assert (
        found
        == HALF_ONE
        + {
            "IQ2_XXS": ("00" * 4 + "03000020") * 8,
            "IQ2_XS": "00060000" * 16 + "22" * 8,
            "IQ2_S": "00" * 32 + "0300" * 16 + "00" * 8 + "22" * 8,
            "IQ3_XXS": "00" * 64 + "03000020" * 8,
            "IQ3_S": "00" * 64 + "00" * 8 + "03000000" * 8 + "22" * 4,
        }[name]
    )


def test_golden_bytes_of_one_bit() -> None:
    """Written down by hand: every eighth word another one, scales and shifts in turn."""
    pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    small, medium = ONE_BIT["IQ1_S"], ONE_BIT["IQ1_M"]
    words = small.words
    assert words[0].tolist() == [-1] * 8 and words[1].tolist() == [1] + [-1] * 7
    numbers = np.array([0, 1, 256, 2047] * 8)
    signs = np.array([1, -1] * 4, np.int8)
    levels = words[numbers].reshape(8, 32) * signs[:, None]
    one = np.ones((1, 1), np.float32)
    blocks = SuperBlocks((levels + 1).astype(np.uint8).reshape(1, 256), 5 * signs[None], one)
    # High parts 0, 0, 1 and 7 from bit 0 on, then a scale of 2, then the shift: 2e40, ae40.
    tail = "402e" + "40ae"
    found = small.encode(blocks).tobytes().hex()
    assert found == HALF_ONE + "000100ff" * 8 + tail * 4
    expected = 5 * (words[numbers].reshape(8, 32) + 0.125 * signs[:, None])
    np.testing.assert_array_equal(decode("IQ1_S", small.encode(blocks)), expected.reshape(1, -1))

    shifts = np.repeat([1, 0], 8)[None]  # up and down in turn, of each word
    codes = 2 * (words[numbers] + 1).reshape(16, 16) + shifts
    sizes = np.full((1, 16), 5, np.int8)
    blocks = SuperBlocks(codes.astype(np.uint8).reshape(1, 256), sizes, one)
    # The scale 3c00 a nibble at a time from its lowest, each over four scales of 2: 492.
    tail = "9204" + "9204" + "92c4" + "9234"
    found = medium.encode(blocks).tobytes().hex()
    assert found == "000100ff" * 8 + "80f1" * 8 + tail
    expected = 5 * (words[numbers] + np.array([0.125, -0.125] * 16)[:, None])
    np.testing.assert_array_equal(decode("IQ1_M", medium.encode(blocks)), expected.reshape(1, -1))


def test_what_is_no_word_of_one_bit_is_refused() -> None:
    pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    missing = np.full(8, 1, np.int8)
    missing[0] = 0
    for name, layout in ONE_BIT.items():
        assert (layout.words == missing).all(axis=1).sum() == 0
        blocks = layout.decode(random_bytes(name).reshape(-1, FORMATS[name].block_bytes))
        step = 1 if name == "IQ1_S" else 2
        codes = blocks.codes.copy()
        codes[0, :8] = step * (missing + 1)
        ones = np.abs(blocks.sub_scales)
        with pytest.raises(ValueError, match=f"no word of {name}'s codebook"):
            layout.encode(SuperBlocks(codes, ones, np.ones_like(blocks.scales)))
    codes[0, 0] ^= 1
    with pytest.raises(ValueError, match="eight weights are not shifted alike, as in IQ1_M"):
        layout.encode(SuperBlocks(codes, ones, blocks.scales))
    # Where a block's scale is 0, its words say nothing.
    silent = ONE_BIT["IQ1_S"].encode(
        SuperBlocks(np.full((1, 256), 2, np.uint8), -np.ones((1, 8), np.int8), np.zeros((1, 1)))
    )
    assert (decode("IQ1_S", silent) == 0).all()


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_XXS"])
def test_what_no_word_says_is_refused(name: str) -> None:
    pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    layout = LAYOUTS[name]
    blocks = layout.decode(random_bytes(name).reshape(-1, FORMATS[name].block_bytes))
    half = len(layout.grid.levels) // 2
    one = blocks.codes.copy()
    one[0, 0] = 2 * half - 1 - one[0, 0]
    with pytest.raises(ValueError, match="odd number of eight weights is below 0"):
        layout.encode(SuperBlocks(one, blocks.sub_scales, blocks.scales))
    with pytest.raises(ValueError, match=f"no word of {name}'s codebook"):
        layout.encode(
            SuperBlocks(np.full_like(one, 2 * half - 1), blocks.sub_scales, blocks.scales)
        )


def test_without_the_package_a_codebook_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(codebooks, "words_of", codebooks.words_of.__wrapped__)
    fresh = codebooks.WordLayout(**vars_of(LAYOUTS["IQ2_S"]))
    with pytest.raises(MissingExtra, match=r"package gguf.*packlight\[llm\].*Q2_K"):
        fresh.decode(random_bytes("IQ2_S").reshape(-1, 82))
    assert fits("IQ2_S", 512) and row_bytes("IQ2_S", 512) == 164  # sizes need no codebook


def vars_of(layout: codebooks.WordLayout) -> dict[str, Any]:
    return {one.name: getattr(layout, one.name) for one in dataclasses.fields(layout)}
