"""Values of metadata: what goes in comes out, and as the gguf package has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.llm.gguf import Kind, read_gguf
from packlight.llm.gguf.values import value_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BOUNDS = {
    Kind.U8: (0, 2**8 - 1),
    Kind.I8: (-(2**7), 2**7 - 1),
    Kind.U16: (0, 2**16 - 1),
    Kind.I16: (-(2**15), 2**15 - 1),
    Kind.U32: (0, 2**32 - 1),
    Kind.I32: (-(2**31), 2**31 - 1),
    Kind.U64: (0, 2**64 - 1),
    Kind.I64: (-(2**63), 2**63 - 1),
}


@given(st.sampled_from(list(BOUNDS)), st.data())
def test_whole_numbers_come_back(kind: Kind, data: st.DataObject):
    number = st.integers(*BOUNDS[kind])
    one, many = data.draw(number), data.draw(st.lists(number, max_size=5))
    assert value_of(one, kind).content == one
    assert value_of(np.array(many, dtype=object), kind).content == many


@given(st.floats(width=32, allow_nan=False), st.booleans(), TEXTS, st.lists(TEXTS, min_size=1))
def test_other_values_come_back(real: float, truth: bool, text: str, texts: list[str]):
    for content in (real, truth, text, texts, [truth, not truth], [real, 0.5]):
        assert value_of(content).content == content
        assert type(value_of(content).content) is type(content)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5))
def test_any_bytes_come_back(texts: list[bytes]):
    assert value_of(value_of(texts).content) == value_of(texts)


def test_kinds_are_chosen_as_llama_cpp_wants_them():
    contents = (1, -1, 1.0, True, "a")
    kinds = (Kind.U32, Kind.I32, Kind.F32, Kind.BOOL, Kind.STRING)
    assert tuple(value_of(content).kind for content in contents) == kinds


def test_a_file_of_the_gguf_package_is_read_as_it_was_meant(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    asked: dict[str, Any] = {
        "a.u8": (writer.add_uint8, 7),
        "a.i8": (writer.add_int8, -7),
        "a.u16": (writer.add_uint16, 65535),
        "a.i16": (writer.add_int16, -32768),
        "a.u32": (writer.add_uint32, 1 << 31),
        "a.i32": (writer.add_int32, -5),
        "a.u64": (writer.add_uint64, 1 << 63),
        "a.i64": (writer.add_int64, -(1 << 62)),
        "a.f32": (writer.add_float32, 0.5),
        "a.f64": (writer.add_float64, 0.1),
        "a.truth": (writer.add_bool, True),
        "a.text": (writer.add_string, "naïve 日本語"),
        "a.texts": (writer.add_array, ["one", "", "three"]),
        "a.numbers": (writer.add_array, [1, -2, 3]),
        "a.reals": (writer.add_array, [0.5, -1.0]),
    }
    for key, (add, content) in asked.items():
        add(key, content)
    arrays = {
        "x": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "y": np.linspace(-1, 1, 5, dtype=np.float16),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    for key, (_, content) in asked.items():
        assert file.metadata[key].content == content, key
    raw = path.read_bytes()
    for name, array in arrays.items():
        found = file.tensors[name]
        assert found.shape == array.shape and found.dtype == ("F32" if name == "x" else "F16")
        assert raw[found.offset : found.offset + found.size_bytes] == array.tobytes()
