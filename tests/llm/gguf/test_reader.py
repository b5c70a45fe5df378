"""GGUF files, right and hostile."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.gguf import Kind, read_gguf
from packlight.llm.gguf.values import Value, value_of

Info = tuple[str, Sequence[int], int, int]  # name, axes innermost first, type, offset


def text(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, value: Value) -> bytes:
    return text(key) + struct.pack("<I", value.kind) + value.raw


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    infos: Sequence[Info] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors, keys = counts or (len(infos), len(pairs))
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + b"".join(pairs)
    for name, axes, kind, offset in infos:
        head += text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)
    return head + b"\0" * (-len(head) % 32) + data


PAIRS = [
    pair("general.architecture", value_of("llama")),
    pair("a.list", value_of(["one", "two", ""])),
    pair("a.numbers", value_of([1, -2, 3], Kind.I64)),
    pair("a.real", value_of(0.5)),
    pair("a.truth", value_of(True)),
]
TENSORS: list[Info] = [("x", (4, 2), 0, 0), ("y", (32,), 8, 32)]
DATA = np.arange(8, dtype=np.float32).tobytes() + b"\0\x3c" + bytes(range(32)) + b"\0" * 30


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_what_stands_in_it(tmp_path: Path, version: int):
    file = read_gguf(write(tmp_path / "m.gguf", gguf_bytes(PAIRS, TENSORS, DATA, version)))
    assert {key: value.content for key, value in file.metadata.items()} == {
        "general.architecture": "llama",
        "a.list": ["one", "two", ""],
        "a.numbers": [1, -2, 3],
        "a.real": 0.5,
        "a.truth": True,
    }
    assert file.metadata["a.numbers"] == value_of([1, -2, 3], Kind.I64)
    assert file.tensors["x"].shape == (2, 4) and file.tensors["x"].dtype == "F32"
    assert file.tensors["y"].size_bytes == 34
    assert file.tensors["y"].offset == file.head_bytes + 32


LYING_FILES = [
    (b"", "is not a GGUF file"),
    (b"GGML" + b"\0" * 40, "is not a GGUF file"),
    (b"GGUF\3\0\0\0", "is cut short"),
    (gguf_bytes(version=1), "of version 1"),
    (gguf_bytes(version=4), "of version 4"),
    (gguf_bytes(version=0x03000000), "big-endian"),
    (gguf_bytes(counts=(0, 1 << 62)), "holds 4611686018427387904 pairs"),
    (gguf_bytes(counts=(1 << 62, 0)), "4611686018427387904 tensors"),
    (gguf_bytes(counts=(0, 65536)), "cut short or damaged|twice"),
    (gguf_bytes(counts=(1 << 20, 0)), "cut short or damaged|axes"),
    (gguf_bytes([struct.pack("<Q", 1 << 63)]), "a key is said to have"),
    (gguf_bytes([struct.pack("<Q", 60000)]), "a key is said to take 60000 bytes"),
    (gguf_bytes([text("a") + struct.pack("<I", 13)]), "unknown kind 13"),
    (gguf_bytes([PAIRS[1], PAIRS[1]]), "'a.list' twice"),
    (gguf_bytes([text("a") + struct.pack("<IQ", 8, 1 << 60)]), "text of 'a' is said to"),
    (gguf_bytes([text("a") + struct.pack("<IIQ", 9, 9, 1)]), "arrays within an array"),
    (gguf_bytes([text("a") + struct.pack("<IIQ", 9, 14, 1)]), "unknown kind 14"),
    (gguf_bytes([text("a") + struct.pack("<IIQ", 9, 8, 1 << 62)]), "array of 46116860184"),
    (gguf_bytes([text("a") + struct.pack("<IIQ", 9, 4, 1 << 24)]), "'a' is said to take"),
    (gguf_bytes([text("a") + struct.pack("<IIQ", 9, 8, 1 << 24)]), "a text of 'a'"),
    (gguf_bytes([pair("general.alignment", value_of(0))]), "general.alignment is 0"),
    (gguf_bytes([pair("general.alignment", value_of(24))]), "general.alignment is 24"),
    (gguf_bytes([pair("general.alignment", value_of("32"))]), "must be a power of two"),
    (gguf_bytes([], [("n" * 64, (4,), 0, 0)]), "at most 63 are allowed"),
    (gguf_bytes([], [("n", (), 0, 0)]), "n is said to have 0 axes"),
    (gguf_bytes([], [("n", (1, 1, 1, 1, 1), 0, 0)]), "n is said to have 5 axes"),
    (gguf_bytes([], [("n", (4,), 99, 0)]), "n in the unknown type 99"),
    (gguf_bytes([], [("n", (4,), 4, 0)]), "n in the unknown type 4"),
    (gguf_bytes([], [("n", (4, 0), 0, 0)]), r"n has the shape \(4, 0\)"),
    (gguf_bytes([], [("n", (1 << 40, 1 << 40), 0, 0)]), "n has the shape"),
    (gguf_bytes([], [("n", (40,), 8, 0)]), "rows of 40 weights, and Q8_0 stores blocks of 32"),
    (gguf_bytes([], [("n", (8,), 0, 4)], DATA), "not a multiple of the alignment 32"),
    (gguf_bytes([], [("n", (800,), 0, 0)], DATA), "n ends at byte"),
    (gguf_bytes([], [("n", (8,), 0, 1 << 63)], DATA), "n ends at byte"),
    (gguf_bytes([], [("n", (4,), 0, 0), ("n", (4,), 0, 32)], DATA), "tensor n twice"),
    (gguf_bytes([], [("a", (16,), 0, 0), ("b", (4,), 0, 32)], DATA), "a and b overlap"),
    (gguf_bytes([], [("a", (4,), 0, 0), ("b", (4,), 0, 0)], DATA), "a and b overlap"),
]


@pytest.mark.parametrize(("content", "message"), LYING_FILES, ids=[text for _, text in LYING_FILES])
def test_a_lying_file_is_refused(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(UnusableModel, match=message):
        read_gguf(write(tmp_path / "m.gguf", content))


def test_every_cut_is_noticed(tmp_path: Path):
    content = gguf_bytes(PAIRS, TENSORS, DATA)
    needed = len(content) - 30  # the padding of the last tensor
    for end in range(0, needed, 5):
        with pytest.raises(UnusableModel):
            read_gguf(write(tmp_path / "m.gguf", content[:end]))
    read_gguf(write(tmp_path / "m.gguf", content[:needed]))


def test_a_flipped_byte_never_crashes(tmp_path: Path):
    content = gguf_bytes(PAIRS, TENSORS, DATA)
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        wrong = bytearray(content)
        wrong[int(draw.integers(len(content) - len(DATA)))] = int(draw.integers(256))
        path = write(tmp_path / "m.gguf", bytes(wrong))
        try:
            for value in read_gguf(path).metadata.values():
                assert value.content is not None
            open_checkpoint(path)
        except UnusableModel:
            refused += 1
    assert refused > 200


def test_text_that_is_not_utf8_keeps_its_bytes(tmp_path: Path):
    tokens = value_of([b"\xff\xfe", b"ok"])
    file = read_gguf(write(tmp_path / "m.gguf", gguf_bytes([pair("t", tokens)])))
    assert file.metadata["t"] == tokens
    assert value_of(file.metadata["t"].content) == tokens


def test_what_is_no_file_is_said(tmp_path: Path):
    with pytest.raises(UnusableModel, match="There is no file"):
        read_gguf(tmp_path / "m.gguf")
    with pytest.raises(UnusableModel, match="not an ordinary file"):
        read_gguf(tmp_path)


def test_a_model_in_parts_is_to_be_joined_first(tmp_path: Path):
    pairs = [PAIRS[0], pair("split.count", value_of(3, Kind.U16))]
    with pytest.raises(UnusableModel, match="one of 3 parts"):
        open_checkpoint(write(tmp_path / "m.gguf", gguf_bytes(pairs)))


def test_metadata_that_say_too_little(tmp_path: Path):
    with pytest.raises(UnusableModel, match="does not say what model it is"):
        open_checkpoint(write(tmp_path / "m.gguf", gguf_bytes(PAIRS[1:], TENSORS, DATA)))
    with pytest.raises(UnusableModel, match=r"llama\.attention\.head_count = None"):
        open_checkpoint(write(tmp_path / "m.gguf", gguf_bytes(PAIRS, TENSORS, DATA)))
    counts = dict.fromkeys(
        ["attention.head_count", "embedding_length", "context_length", "block_count"], 1 << 30
    )
    pairs = [PAIRS[0], *(pair(f"llama.{key}", value_of(one)) for key, one in counts.items())]
    with pytest.raises(UnusableModel, match=r"block_count = 1073741824, .* up to 512"):
        open_checkpoint(write(tmp_path / "m.gguf", gguf_bytes(pairs, TENSORS, DATA)))
