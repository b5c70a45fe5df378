"""What a model file is, and where its external data may lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from packlight.errors import UnusableModel
from packlight.graph.files import read_proto, resolve_external
from packlight.graph.model import load_model


def write_external(folder: Path, **entries: str) -> Path:
    """A model whose only weight lies in `weights.bin`, with these external_data entries."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 2])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin"} | entries).items():
        weight.external_data.add(key=key, value=value)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y])
    graph.initializer.append(weight)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


WEIGHT = np.arange(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1c\x00\x00\x00TFL3....", "TensorFlow Lite"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
        (b"\x08\x08\x12\xff\xff", "cut short"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not an ONNX model"),
        (b"\x08\x08\x12\x02ab", "no ONNX graph"),
    ],
)
def test_other_files_are_refused_with_their_own_sentence(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnusableModel, match=said) as caught:
        read_proto(path)
    assert "model.onnx" in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match="There is no file"):
        read_proto(tmp_path / "none.onnx")
    with pytest.raises(UnusableModel, match="is a folder"):
        read_proto(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    whole = path.read_bytes()
    load_model(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableModel):
            load_model(path)


def test_external_data_next_to_the_model_is_read_lazily(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    model = load_model(path)
    assert [file.name for file in model.files] == ["model.onnx", "weights.bin"]
    assert model.size_bytes == path.stat().st_size + 32
    found = model.ir.graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), WEIGHT.reshape(4, 2))


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "..\\secret.bin",
        "/etc/hostname",
        "C:\\secret.bin",
        "\\\\server\\share",
        "",
        "a\0b",
        "*/_ORT_MEM_ADDR_/*",
        "nowhere.bin",
        ".",
    ],
)
def test_locations_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    path = write_external(tmp_path / "models", location=location)
    with pytest.raises(UnusableModel, match="'w'"):
        load_model(path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path / "models")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    data = path.with_name("weights.bin")
    data.symlink_to(secret)
    with pytest.raises(UnusableModel, match="through a link"):
        load_model(path)
    data.unlink()
    os.link(secret, data)
    with pytest.raises(UnusableModel, match="hard links"):
        load_model(path)
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(UnusableModel, match="not an ordinary file"):
        load_model(path)


def test_a_folder_linked_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path / "models", location="sub/weights.bin")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(WEIGHT.tobytes())
    path.with_name("sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableModel, match="through a link"):
        load_model(path)


def hugging_face_cache(root: Path) -> Path:
    """A cache as huggingface_hub lays it out; the model's link."""
    made = write_external(root / "made")
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    made.rename(blobs / "1234")
    (blobs / "5678").write_bytes(WEIGHT.tobytes())
    (snapshot / "model.onnx").symlink_to("../../../blobs/1234")
    (snapshot / "weights.bin").symlink_to("../../../blobs/5678")
    return snapshot / "model.onnx"


def test_a_hugging_face_cache_is_legitimate(tmp_path: Path) -> None:
    path = hugging_face_cache(tmp_path)
    os.link(tmp_path / "blobs" / "5678", tmp_path / "another name")
    model = load_model(path)
    found = model.ir.graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), WEIGHT.reshape(4, 2))


def test_a_cache_does_not_open_other_folders(tmp_path: Path) -> None:
    path = hugging_face_cache(tmp_path)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    link = path.with_name("weights.bin")
    link.unlink()
    link.symlink_to(secret)
    with pytest.raises(UnusableModel, match="through a link"):
        resolve_external("weights.bin", path)
    # A link that only looks like a cache's, from outside its snapshots, opens nothing either.
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "model.onnx").symlink_to(tmp_path / "blobs" / "1234")
    (outside / "weights.bin").symlink_to(tmp_path / "blobs" / "5678")
    with pytest.raises(UnusableModel, match="through a link"):
        resolve_external("weights.bin", outside / "model.onnx")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"offset": "4"}, "has only 32"),
        ({"offset": str(1 << 62), "length": "32"}, "has only 32"),
        ({"offset": str(1 << 70)}, "no byte count"),
        ({"length": "16"}, "calls for 32"),
        ({"length": "-1"}, "no byte count"),
        ({"offset": "x"}, "no byte count"),
    ],
)
def test_offsets_and_lengths_stay_within_the_file(
    tmp_path: Path, entries: dict[str, str], said: str
) -> None:
    path = write_external(tmp_path, **entries)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(UnusableModel, match=said):
        load_model(path)
