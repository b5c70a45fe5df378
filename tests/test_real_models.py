"""Acceptance on real models: all go through, and 8 bits are as good as they are said to be.

The large models take up to a minute each and are run where PACKLIGHT_ALL=1 says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import packlight
from packlight.graph.layers import find_layers, find_unquantizable
from packlight.runtime import optimized_graph

SMALL = (
    "ad01_autoencoder",
    "dscnn_kws",
    "dtln_model_1",
    "hand_gesture_point_history_classifier_lstm",
    "mtcnn_onet",
    "resnet8_cifar10",
    "silero_vad",
    "tiny_random_gpt2_past",
    "vww_mobilenet_96",
    "wakewords_computer_v2",
    "whisper_dummy_decoder",
)
LARGE = (
    "deeplab_v3_1_default_1",
    "external_data/yolox_nano_ext",
    "onnx_light_light_densenet121",
    "onnx_light_light_squeezenet",
    "pytorch_super_resolution",
    "silero_vad_half",
    "silero_vad_op18_ifless",
    "ultraface_version-RFB-320",
    "yolox_nano",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cases() -> list[Any]:
    skip = pytest.mark.skipif(
        os.environ.get("PACKLIGHT_ALL") != "1",
        reason="takes up to a minute: set PACKLIGHT_ALL=1 to run the large models too",
    )
    return [*SMALL, *(pytest.param(name, marks=skip) for name in LARGE)]


def test_no_model_is_forgotten(real: Path) -> None:
    folder = real / "onnx"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.onnx")}
    assert found == {*SMALL, *LARGE}


@pytest.mark.parametrize("name", cases())
def test_a_real_model_goes_through(real: Path, name: str, tmp_path: Path) -> None:
    path = real / "onnx" / f"{name}.onnx"
    found = packlight.compress(path)
    assert isinstance(found, packlight.Result)
    assert found.verdict in ("best-effort", "not-worth-it")
    out = found.save(tmp_path / "out")
    compressed = packlight.load(out / "model.onnx")
    original = packlight.load(path)
    assert compressed.inputs == original.inputs
    assert [spec.name for spec in compressed.outputs] == [spec.name for spec in original.outputs]
    evidence = found.evidence
    if found.verdict == "best-effort":
        assert evidence.size_bytes.compressed < evidence.size_bytes.original
    changed = {layer.name for layer in evidence.layers if layer.choice != "float32"}
    left = {skipped.name: skipped.reason for skipped in evidence.not_compressed}
    assert all(left.values())
    assert changed.isdisjoint(left)
    assert changed | left.keys() >= {layer.name for layer in evidence.layers}


@pytest.fixture(scope="module")
def pictures(real: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """512 to calibrate and search with (no labels), 2,000 to judge by, as resnet20 takes them."""
    data = np.load(real / "cifar10" / "cifar10.npz")

    def prepare(array: NDArray[np.uint8]) -> NDArray[np.float32]:
        scaled = (array / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)

    return prepare(data["x_train"][:512]), prepare(data["x_test"][:2000])


def test_resnet20_in_8_bits_beats_what_others_reached(
    real: Path, pictures: tuple[NDArray[np.float32], NDArray[np.float32]], tmp_path: Path
) -> None:
    calibration, proof = pictures
    model = real / "cifar10" / "resnet20.onnx"
    layers = find_layers(packlight.load(model).ir)
    result = packlight.compress(model, data=calibration)
    assert isinstance(result, packlight.Result)
    assert result.verdict == "met"
    assert result.evidence.size_bytes.compressed < 332_000
    figures = packlight.compare(model, result.model, data=proof).figures
    assert figures.metric is not None
    assert figures.metric.samples == 2000
    assert figures.metric.agreement is not None and figures.metric.agreement >= 0.992
    assert figures.metric.noise_db is not None and figures.metric.noise_db >= 31.9
    # Computed in integers, not only stored in them.
    optimized_graph(result.model, tmp_path / "optimized.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    integer = sum(op.startswith(("QLinearConv", "QLinearMatMul", "QGemm")) for op in operators)
    assert integer >= len(layers) - 2
    assert not find_unquantizable(packlight.load(model).ir)
