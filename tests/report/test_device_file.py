"""What is said of the file for the target's own runtime."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from packlight.measure.evidence import DeviceFile, Evidence
from packlight.report import write_html
from packlight.report.device_file import describe_device_file
from packlight.report.report_json import json_to_evidence, write_json


@pytest.fixture
def measured(evidence: Evidence) -> Evidence:
    """The run with a file for LiteRT."""
    device = DeviceFile(
        title="LiteRT",
        files=("model.tflite",),
        size_bytes=evidence.size_bytes.original // 2,
        runtime="litert 2.3.0 CPU",
        metric=evidence.metric,
        latency_ms=evidence.latency_ms,
        peak_memory_bytes=41_000_000,
        energy_mj=1.25,
        verdict="best-effort",
        reason="it drops",
    )
    return replace(evidence, device_file=device)


def test_all_figures_are_said(measured: Evidence) -> None:
    text = " ".join(describe_device_file(measured))
    for word in ("model.tflite (LiteRT)", "2.0 times smaller", "litert 2.3.0", "samples", " dB"):
        assert word in text
    for word in ("one thread", "41.0 MB", "1.25 mJ", "Best effort: it drops."):
        assert word in text


def test_what_is_not_there_is_said(evidence: Evidence) -> None:
    assert describe_device_file(evidence) == ()
    none = DeviceFile("LiteRT", reason="it could not be written: operator Foo")
    told = describe_device_file(replace(evidence, device_file=none))
    assert told == ("LiteRT: it could not be written: operator Foo.",)
    unmeasured = DeviceFile("Core ML", ("m.zip",), 10, reason="not measured here: no Mac")
    told = describe_device_file(replace(evidence, device_file=unmeasured))
    assert told[-1] == "Not measured here: no Mac." and "Measured in" not in " ".join(told)


def test_it_goes_to_json_and_back(measured: Evidence) -> None:
    value = json.loads(write_json(measured))
    assert value["device_file"]["latency_ms"]["runtime"].endswith("1 thread")
    assert json_to_evidence(value) == measured
    del value["device_file"]  # as reports of earlier versions
    assert json_to_evidence(value).device_file is None


def test_hostile_words_are_escaped(evidence: Evidence) -> None:
    hostile = DeviceFile("LiteRT", reason="operator <script>alert(1)</script>")
    page = write_html(replace(evidence, device_file=hostile), how_to_run="")
    assert "<script>" not in page and "&lt;script&gt;" in page
