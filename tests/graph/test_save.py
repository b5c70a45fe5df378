"""Saving: whole or not at all, the same bytes each time, large weights outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from packlight.errors import UnusableOutput
from packlight.graph.model import load_model, save_model
from packlight.version import __version__


def make(folder: Path) -> ir.Model:
    text = '<ir_version: 3, opset_import: ["" : 17]> g (float[n, 64] x) => (float[n, 64] y)'
    proto = onnx.parser.parse_model(text + " { a = MatMul(x, w) y = Add(a, b) }")
    random = np.random.default_rng(0)
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    path = folder / "source.onnx"
    onnx.save(proto, path)
    return load_model(path).ir


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((3, 64), np.float32)})[0]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = make(tmp_path)
    save_model(model, tmp_path / "a.onnx")
    save_model(load_model(tmp_path / "a.onnx").ir, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    proto = onnx.load(tmp_path / "a.onnx")
    assert (proto.producer_name, proto.producer_version) == ("packlight", __version__)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "source.onnx"]


def test_external_data_is_written_and_read_back(tmp_path: Path) -> None:
    model = make(tmp_path)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    written = save_model(model, tmp_path / "m.onnx", external_threshold=1000)
    assert [path.name for path in written] == ["m.onnx", "m.onnx.data"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    loaded = load_model(tmp_path / "m.onnx")
    assert isinstance(loaded.ir.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert not isinstance(loaded.ir.graph.initializers["b"].const_value, ir.ExternalTensor)
    save_model(loaded.ir, tmp_path / "inline.onnx")
    expected = run(tmp_path / "source.onnx")
    np.testing.assert_array_equal(run(tmp_path / "m.onnx"), expected)
    np.testing.assert_array_equal(run(tmp_path / "inline.onnx"), expected)


def test_a_model_may_be_saved_over_the_file_it_was_read_from(tmp_path: Path) -> None:
    save_model(make(tmp_path), tmp_path / "m.onnx", external_threshold=1000)
    expected = run(tmp_path / "m.onnx")
    save_model(load_model(tmp_path / "m.onnx").ir, tmp_path / "m.onnx", external_threshold=1000)
    np.testing.assert_array_equal(run(tmp_path / "m.onnx"), expected)


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnusableOutput, match="cannot be written"):
        save_model(make(tmp_path), tmp_path / "none" / "m.onnx")


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnusableOutput, match="No space left"):
        save_model(model, tmp_path / "m.onnx", external_threshold=1000)
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "source.onnx"]
