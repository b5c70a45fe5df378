"""Safetensors files, right and hostile."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import safetensors_bytes

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.safetensors import read_shard
from packlight.llm.checkpoint.stored import read_rows

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.linspace(-2, 2, 8, dtype=np.float16).reshape(2, 4),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_was_written_is_read(tmp_path: Path):
    shard = read_shard(write(tmp_path / "m.safetensors", safetensors_bytes(TENSORS)))
    assert {name: one.shape for name, one in shard.tensors.items()} == {"a": (3, 4), "b": (2, 4)}
    assert np.array_equal(read_rows(shard.tensors["a"], 1, 3), TENSORS["a"][1:])
    assert np.array_equal(read_rows(shard.tensors["b"], 0, 2), TENSORS["b"].astype(np.float32))


def test_the_library_agrees(tmp_path: Path):
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    library.save_file(TENSORS, path, metadata={"format": "pt"})
    shard = read_shard(path)
    for name, array in TENSORS.items():
        found = read_rows(shard.tensors[name], 0, len(array))
        assert np.array_equal(found, array.astype(np.float32))


def test_bfloat16_is_widened_by_its_bits(tmp_path: Path):
    floats = np.array([[1.0, -2.5, 3.140625, 1e-30]], np.float32)
    upper = (floats.view(np.uint32) >> 16).astype(np.uint16)
    shard = read_shard(write(tmp_path / "m.safetensors", safetensors_bytes({"a": upper})))
    back = read_rows(shard.tensors["a"], 0, 1)
    assert np.array_equal(back, (upper.astype(np.uint32) << 16).view(np.float32))
    assert np.allclose(back, floats, rtol=2**-8)


def test_f64_becomes_float32(tmp_path: Path):
    content = safetensors_bytes({"a": np.array([[0.1, 0.2]], np.float64)})
    shard = read_shard(write(tmp_path / "m.safetensors", content))
    assert read_rows(shard.tensors["a"], 0, 1).tolist() == [[np.float32(0.1), np.float32(0.2)]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float):
    array = np.ones((5, 4), np.float32)
    array[3, 2] = bad
    content = safetensors_bytes({"layers.7.w": array})
    shard = read_shard(write(tmp_path / "m.safetensors", content))
    assert read_rows(shard.tensors["layers.7.w"], 0, 3).sum() == 12
    with pytest.raises(UnusableModel, match=r"layers\.7\.w in .* holds NaN or infinity \(1 of"):
        read_rows(shard.tensors["layers.7.w"], 0, 5)


def set_field(name: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(head: dict[str, Any]) -> None:
        head[name][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("b", "data_offsets", [40, 56]), "overlap"),
        (set_field("b", "data_offsets", [56, 72]), "cut short"),
        (set_field("a", "data_offsets", [0, 40]), "takes 48 bytes, and 40 are given"),
        (set_field("a", "data_offsets", [48, 0]), "is said to lie at"),
        (set_field("a", "data_offsets", [-48, 0]), "no list of whole numbers"),
        (set_field("a", "data_offsets", [0.0, 48.0]), "no list of whole numbers"),
        (set_field("a", "data_offsets", [0]), "is said to lie at"),
        (set_field("a", "shape", [1 << 61, 1 << 61]), "takes .* bytes, and 48 are given"),
        (set_field("a", "shape", [-3, -4]), "no list of whole numbers"),
        (set_field("a", "shape", [True, 12]), "no list of whole numbers"),
        (set_field("a", "shape", [1] * 9), "no list of whole numbers"),
        (set_field("a", "dtype", "F31"), "unknown type 'F31'"),
        (set_field("a", "dtype", "F8_E4M3"), "already compressed"),
        (set_field("a", "dtype", ["F32"]), "unknown type"),
        (lambda head: head["a"].pop("shape"), "is not described by"),
        (lambda head: head.update(a=[1]), "is not described by"),
        (lambda head: head.pop("a"), "the head and b leave a hole of 48 bytes"),
        (lambda head: head.pop("b"), "16 bytes behind its last tensor"),
        (lambda head: head.clear(), "holds 0 tensors"),
    ],
)
def test_a_lying_head_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
):
    path = write(tmp_path / "m.safetensors", safetensors_bytes(TENSORS, change))
    with pytest.raises(UnusableModel, match=message):
        read_shard(path)


DAMAGED_HEADS = [
    (b"", "placeholder or cut short"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (struct.pack("<Q", 1 << 63) + b"{}", "says that its head has"),
    (struct.pack("<Q", 200_000_000) + b" " * 64, "says that its head has"),
    (struct.pack("<Q", 2) + b"[]", "no JSON object"),
    (struct.pack("<Q", 4) + b"{\xff\xff}", "not the JSON it should be"),
    (struct.pack("<Q", 4000) + b'{"a":' * 800, "not the JSON|nested too deep"),
    (struct.pack("<Q", 200000) + b'{"a":' + b"[" * 199995, "nested too deep"),
    (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "the key 'a' is there twice"),
    (struct.pack("<Q", 9) + b'{"a":NaN}', "NaN is no number"),
]


@pytest.mark.parametrize(
    ("content", "message"), DAMAGED_HEADS, ids=[text for _, text in DAMAGED_HEADS]
)
def test_a_damaged_head_is_refused(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(UnusableModel, match=message):
        read_shard(write(tmp_path / "m.safetensors", content))


def test_more_values_than_any_head_has_are_refused_unparsed(tmp_path: Path):
    content = struct.pack("<Q", 18 << 20) + b'{"a":[' + b"1," * ((9 << 20) - 3)
    with pytest.raises(UnusableModel, match="holds more than 8388608 values"):
        read_shard(write(tmp_path / "m.safetensors", content))


def test_every_cut_is_noticed(tmp_path: Path):
    content = safetensors_bytes(TENSORS)
    for end in range(0, len(content), 7):
        with pytest.raises(UnusableModel):
            read_shard(write(tmp_path / "m.safetensors", content[:end]))


def test_bytes_behind_the_last_tensor_are_noticed(tmp_path: Path):
    path = write(tmp_path / "m.safetensors", safetensors_bytes(TENSORS, tail=b"\0" * 8))
    with pytest.raises(UnusableModel, match="8 bytes behind"):
        read_shard(path)


def test_a_file_that_shrinks_meanwhile_is_an_error_and_no_crash(tmp_path: Path):
    path = write(tmp_path / "m.safetensors", safetensors_bytes(TENSORS))
    shard = read_shard(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UnusableModel, match="became shorter"):
        read_rows(shard.tensors["a"], 0, 3)


def test_a_flipped_byte_never_crashes(tmp_path: Path):
    content = bytearray(safetensors_bytes(TENSORS))
    head = 8 + struct.unpack("<Q", content[:8])[0]
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        wrong = bytearray(content)
        wrong[int(draw.integers(head))] = int(draw.integers(256))
        try:
            shard = read_shard(write(tmp_path / "m.safetensors", bytes(wrong)))
            for one in shard.tensors.values():
                if one.dtype in ("F32", "F16"):
                    read_rows(one, 0, one.rows)
        except UnusableModel:
            refused += 1
    assert refused > 100
    json.loads(content[8:head])
