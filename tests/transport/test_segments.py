from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

from packlight.errors import UnusablePack
from packlight.transport.codes import Layout
from packlight.transport.segments import (
    FLOATS,
    LZMA,
    METHOD_NAMES,
    SCALED,
    STORED,
    TABLE,
    VALUES,
    WALK,
    ZEROS,
    Form,
    decode_segment,
    encode_segment,
)
from packlight.transport.tables import decode_bytes, encode_bytes

RNG = np.random.default_rng(0)
SPARSE = (RNG.laplace(0, 0.4, (30, 50))).round()
PRUNED = RNG.normal(0, 1, (30, 100)).astype(np.float32) * (RNG.random((30, 100)) < 0.4)
SCALES = RNG.random(40).astype(np.float32) + np.float32(0.5)

CASES = [
    ("stored", STORED, RNG.bytes(300), Form("b", 8, Layout(1, 300))),
    ("zeros", LZMA, bytes(50_000), Form("b", 8, Layout(1, 50_000))),
    ("bytes", TABLE, RNG.normal(100, 9, 20_000).astype(np.uint8).tobytes(),
     Form("b", 8, Layout(1, 20_000))),
    ("int8", WALK, SPARSE.astype(np.int8).tobytes(), Form("i", 8, Layout(30, 50))),
    ("uint8", WALK, (SPARSE + 128).astype(np.uint8).tobytes(), Form("u", 8, Layout(30, 50))),
    ("int4", WALK, bytes((RNG.random(75) < 0.1).astype(np.uint8) * 15),
     Form("i", 4, Layout(10, 15))),
    ("int32", WALK, (SPARSE * 5).astype(np.int32).tobytes(), Form("i", 32, Layout(30, 50))),
    ("int64", WALK, (SPARSE * 5).astype(np.int64).tobytes(), Form("i", 64, Layout(30, 50))),
    ("floats", FLOATS, RNG.normal(0, 1, 3000).astype(np.float32).tobytes(),
     Form("f", 32, Layout(3, 1000))),
    ("few floats", FLOATS, SCALES.tobytes(), Form("f", 32, Layout(1, 40))),
    ("halves", FLOATS, RNG.normal(0, 1, 3000).astype(np.float16).tobytes(),
     Form("f", 16, Layout(3, 1000))),
    ("values", VALUES, (SPARSE * 0.37).astype(np.float32).tobytes(), Form("f", 32, Layout(30, 50))),
    ("pruned", ZEROS, PRUNED.astype(np.float32).tobytes(), Form("f", 32, Layout(30, 100))),
    ("pruned halves", ZEROS, PRUNED.astype(np.float16).tobytes(), Form("f", 16, Layout(30, 100))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "content", "form"), CASES, ids=[c[0] for c in CASES])
def test_each_kind_comes_back_by_its_method(
    name: str, method: int, content: bytes, form: Form
) -> None:
    if name == "int4":
        content = content[: form.length]
    coded = encode_segment(content, form)
    assert METHOD_NAMES[coded[0]] == METHOD_NAMES[method]
    assert decode_segment(coded, form) == content
    assert len(coded) <= len(content) + 1


@pytest.mark.parametrize(("name", "method", "content", "form"), CASES, ids=[c[0] for c in CASES])
def test_damage_is_an_error_or_harmless(name: str, method: int, content: bytes, form: Form) -> None:
    coded = encode_segment(content[: form.length], form)
    draw = random.Random(0)
    for _ in range(4):
        at = draw.randrange(len(coded))
        broken = coded[:at] + bytes([coded[at] ^ 1 << draw.randrange(8)]) + coded[at + 1 :]
        for one in (broken, coded[:at]):
            with contextlib.suppress(UnusablePack):
                assert len(decode_segment(one, form)) == form.length


def test_scales_that_are_a_multiple_of_others_take_six_bytes() -> None:
    form = Form("f", 32, Layout(1, 40))
    content = (SCALES * np.float32(0.00731)).tobytes()
    earlier = (RNG.bytes(160), SCALES.tobytes(), RNG.bytes(8))
    coded = encode_segment(content, form, earlier)
    assert coded[0] == SCALED and len(coded) == 6
    assert decode_segment(coded, form, earlier) == content
    for known in ((), (b"",) * 3):
        with pytest.raises(UnusablePack, match="not there"):
            decode_segment(coded, form, known)


def test_nan_infinity_and_negative_zero_survive() -> None:
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -3.4e38] * 20, np.float32)
    odd.view(np.uint32)[2] = 0x7FC12345
    form = Form("f", 32, Layout(1, len(odd)))
    assert decode_segment(encode_segment(odd.tobytes(), form), form) == odd.tobytes()


def test_a_half_byte_that_is_not_zero_survives() -> None:
    content = bytes([0x11, 0x11, 0xF1] * 20)[:8]
    form = Form("i", 4, Layout(1, 15))
    assert decode_segment(encode_segment(content, form), form) == content


def test_a_bomb_of_lzma_stops_at_its_length() -> None:
    huge = encode_segment(bytes(30_000_000 // 8), Form("b", 8, Layout(1, 30_000_000 // 8)))
    assert huge[0] == LZMA
    with pytest.raises(UnusablePack):
        decode_segment(huge, Form("b", 8, Layout(1, 100)))


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 3000])
def test_byte_tables_come_back(length: int) -> None:
    content = np.random.default_rng(length).geometric(0.2, length).astype(np.uint8).tobytes()
    assert decode_bytes(encode_bytes(content), length) == content


def test_zeros_cost_what_it_takes_to_say_where_they_are() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (100, 200)).astype(np.float32)
    form = Form("f", 32, Layout(100, 200))
    whole = len(encode_segment(values.tobytes(), form))
    for share in (0.25, 0.5, 0.9):
        pruned = np.where(rng.random(values.shape) < share, np.float32(0), values)
        # The sign of a zero comes back too.
        pruned[3, 5] = -0.0
        coded = encode_segment(pruned.tobytes(), form)
        assert decode_segment(coded, form) == pruned.tobytes()
        bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
        ideal = (1 - share) * whole + bits * values.size / 8
        assert len(coded) < 1.03 * ideal + 600
