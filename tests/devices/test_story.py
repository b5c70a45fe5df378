"""What `compress` does for a target with a format of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import packlight
from packlight.devices import story
from packlight.devices.story import with_device_file
from packlight.devices.table import FORMATS, Format
from packlight.measure.evidence import Budget, DeviceFile, Evidence, Pair
from packlight.recipe import Recipe

Write = Callable[..., Path]
needs_litert = pytest.mark.skipif(
    bool(FORMATS["litert"].missing), reason="ai-edge-litert is not installed"
)


def compress(path: Path, data: object, *layers: str, target: str = "litert") -> packlight.Result:
    recipe = Recipe(target=target, layers=tuple((name, "int8") for name in layers))
    found = packlight.compress(path, data=data, recipe=replace(recipe, pair_limit=False))
    assert isinstance(found, packlight.Result)
    return found


@needs_litert
def test_the_file_lies_in_the_folder_and_is_measured_in_its_runtime(
    write_mlp: Write, rows: NDArray[np.float32], tmp_path: Path
) -> None:
    result = compress(write_mlp(tmp_path / "net.onnx", hidden=64), rows, "h", "g", "y")
    device = result.evidence.device_file
    assert device is not None and device.files == ("model.tflite",)
    assert device.runtime.startswith("litert ") and device.verdict
    assert device.metric is not None and device.latency_ms is not None
    assert device.metric.samples == result.evidence.metric.samples  # type: ignore[union-attr]
    assert device.metric.name == "top-1 agreement" and device.metric.original == 1
    assert device.metric.compressed > 0.9
    assert device.latency_ms.runtime == device.runtime
    folder = result.save(tmp_path / "out")
    assert (folder / "model.tflite").stat().st_size == device.size_bytes
    assert (folder / "model.onnx").is_file()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "model.tflite" in {entry["name"] for entry in manifest["files"]}
    report = json.loads((folder / "report.json").read_text())
    assert report["device_file"]["files"] == ["model.tflite"]
    assert "model.tflite" in (folder / "report.html").read_text()
    assert "model.tflite (LiteRT)" in str(result)
    assert packlight.verify(folder).verdict == "proven"
    content = bytearray((folder / "model.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.tflite").write_bytes(content)
    assert packlight.verify(folder).verdict == "failed"


@needs_litert
def test_an_operator_without_a_form_leaves_the_onnx_file(
    write_model: Write, tmp_path: Path, rows: NDArray[np.float32]
) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 16)).astype(np.float32)
    text = "g (float[n, 16] x) => (float[n, 16] y) { h = Gemm (x, w) y = Erf (h) }"
    path = write_model(tmp_path / "erf.onnx", text, w=weight)
    result = compress(path, rows, "h")
    device = result.evidence.device_file
    assert device is not None and not device.files
    assert "operator Erf (node 'y')" in device.reason
    assert "model.onnx is what there is" in device.reason
    assert result.verdict in ("best-effort", "not-worth-it")
    names = {file.name for file in result.save(tmp_path / "out").iterdir()}
    assert "model.onnx" in names and "model.tflite" not in names


def test_without_its_package_the_onnx_file_is_written_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, write_mlp: Write, rows: Any, tmp_path: Path
) -> None:
    absent = replace(FORMATS["coreml"], needs=("no_such_package_here",))
    monkeypatch.setitem(story.FORMATS, "coreml", absent)
    path = write_mlp(tmp_path / "net.onnx", hidden=32)
    device = compress(path, rows, "h", "g", target="coreml").evidence.device_file
    assert device is not None and device.files == ()
    assert "no_such_package_here is not installed here" in device.reason
    assert 'pip install "packlight[coreml]"' in device.reason


def evidence(target: str) -> Evidence:
    return Evidence(
        verdict="met",
        reason="kept",
        model="net.onnx",
        target=target,
        budget=Budget(),
        size_bytes=Pair(100, 50),
        metric=None,
        latency_ms=None,
        latency_all_threads_ms=None,
        peak_memory_bytes=None,
        layers=(),
        not_compressed=(),
    )


def test_the_file_that_runs_on_the_device_is_what_is_judged() -> None:
    worse = DeviceFile("LiteRT", ("model.tflite",), 99, verdict="best-effort", reason="it drops")
    found = with_device_file(evidence("litert"), worse)
    assert (found.verdict, found.reason) == ("best-effort", "model.tflite: it drops")
    absent = replace(worse, files=(), reason="it could not be written")
    found = with_device_file(evidence("litert"), absent)
    assert (found.verdict, found.reason) == ("best-effort", "LiteRT: it could not be written")
    better = replace(worse, verdict="met")
    assert with_device_file(evidence("litert"), better).verdict == "met"
    assert with_device_file(evidence("laptop"), None).device_file is None
    # OpenVINO reads model.onnx as well.
    found = with_device_file(evidence("openvino"), worse)
    assert (found.verdict, found.device_file) == ("met", worse)


def test_a_format_that_is_complete() -> None:
    form = Format("A", ("a",), None, "m", ("json",), "a", elsewhere="there")
    assert form.missing == ()
    assert replace(form, needs=("json", "no_such_package_here")).missing == (
        "no_such_package_here",
    )
