from __future__ import annotations

import pytest

from packlight.measure import device
from packlight.measure.device import Device, device_of
from packlight.targets import TARGETS, find_target


def _install(monkeypatch: pytest.MonkeyPatch, *, openvino: bool, no_browser: str) -> None:
    monkeypatch.setattr(device, "has_engine", lambda engine: engine == "onnxruntime" or openvino)
    monkeypatch.setattr(device, "why_no_browser", lambda: no_browser)


def test_a_target_is_measured_in_its_own_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, openvino=True, no_browser="")
    assert device_of(find_target("laptop")) == Device("onnxruntime", "onnxruntime")
    assert device_of(find_target("openvino")) == Device("openvino", "openvino")
    assert device_of(find_target("browser")) == Device("browser", "onnxruntime", most_threads=1)


def test_what_is_not_installed_is_stood_in_for_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, openvino=False, no_browser="It needs npm install onnxruntime-web.")
    for name, words in (("openvino", "packlight[openvino]"), ("browser", "npm install")):
        found = device_of(find_target(name))
        assert (found.latency, found.engine, found.measured) == ("onnxruntime",) * 2 + (False,)
        assert words in found.note and "onnxruntime" in found.note


def test_what_is_predicted_is_never_called_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, openvino=True, no_browser="")
    for target in TARGETS:
        found = device_of(target)
        assert found.measured is (target.measured != "predicted")
        assert bool(found.note) is not found.measured
        if not found.measured:
            assert "this machine's processor" in found.note and target.title in found.note
