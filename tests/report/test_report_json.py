from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from packlight.errors import WrongUsage
from packlight.measure.evidence import Evidence
from packlight.report.report_json import (
    evidence_to_json,
    json_to_evidence,
    to_plain,
    write_json,
)


def test_the_contract_of_schema_1(evidence: Evidence) -> None:
    found = evidence_to_json(evidence)
    assert found["schema"] == 1
    assert found["verdict"] == "met"
    assert found["budget"] == {
        "max_drop": 0.01,
        "max_size_bytes": None,
        "max_latency_ms": None,
        "max_download_bytes": None,
    }
    assert (found["preset"], found["packed_bytes"]) == ("balanced", None)
    contract = {
        "metric": {"name", "samples", "original", "compressed", "drop", "drop_interval_95"}
        | {"proven"},
        "size_bytes": {"original", "compressed"},
        "latency_ms": {"runtime", "original", "compressed", "ratio_interval_95"},
        "peak_memory_bytes": {"original", "compressed"},
    }
    for key, names in contract.items():
        assert names <= set(found[key])
    assert {"name", "op", "choice", "error_db", "reason"} <= set(found["layers"][0])
    assert set(found["not_compressed"][0]) == {"name", "reason"}
    assert {"reason", "environment", "seed", "seconds"} <= set(found)
    assert found["latency_ms"]["runtime"] == "onnxruntime 1.32.0 CPU, 1 thread"
    assert found["latency_all_threads_ms"]["runtime"] == "onnxruntime 1.32.0 CPU, 2 threads"
    assert found["metric"]["drop_interval_95"] == [0.0031, 0.0098]


def test_there_and_back_again(evidence: Evidence) -> None:
    assert json_to_evidence(json.loads(write_json(evidence))) == evidence
    bare = replace(
        evidence,
        metric=None,
        latency_ms=None,
        latency_all_threads_ms=None,
        peak_memory_bytes=None,
        trials=(),
    )
    assert json_to_evidence(json.loads(write_json(bare))) == bare


def test_preset_and_packed_size_go_there_and_back(evidence: Evidence) -> None:
    packed = replace(
        evidence,
        preset="smallest",
        packed_bytes=61_234,
        budget=replace(evidence.budget, max_download_bytes=70_000),
    )
    found = json.loads(write_json(packed))
    assert (found["preset"], found["packed_bytes"]) == ("smallest", 61_234)
    assert found["budget"]["max_download_bytes"] == 70_000
    assert json_to_evidence(found) == packed


def test_a_report_from_before_presets_and_packing_is_read(evidence: Evidence) -> None:
    old = json.loads(write_json(evidence))
    del old["preset"], old["packed_bytes"], old["budget"]["max_download_bytes"]
    assert json_to_evidence(old) == evidence


def test_a_report_from_before_the_new_figures_of_trials_is_read(evidence: Evidence) -> None:
    old = json.loads(write_json(evidence))
    for trial in old["trials"]:
        for key in ("latency_ms", "packed_bytes", "average_bits", "front"):
            assert key in trial
            del trial[key]
    assert json_to_evidence(old) == evidence


def test_what_is_not_finite_is_null(evidence: Evidence) -> None:
    assert evidence.metric is not None
    broken = replace(evidence.metric, drop=math.nan, drop_interval_95=(-math.inf, math.inf))
    found = json.loads(write_json(replace(evidence, metric=broken)))
    assert found["metric"]["drop"] is None
    assert found["metric"]["drop_interval_95"] == [None, None]
    back = json_to_evidence(found)
    assert back.metric is not None
    assert math.isnan(back.metric.drop)


def test_numpy_and_odd_values_become_plain() -> None:
    value = {"a": np.float32("nan"), "b": np.int64(3), "c": (np.bool_(True), {1}), 4: object}
    assert to_plain(value) == {"a": None, "b": 3, "c": [True, [1]], "4": str(object)}


def test_the_text_is_ascii_and_stable(evidence: Evidence) -> None:
    hostile = replace(evidence, model="\ud800\u202e</script>")
    text = write_json(hostile)
    assert text.isascii()
    assert text == write_json(hostile)


@pytest.mark.parametrize("value", [{}, {"schema": 2}, {"schema": 1, "verdict": "met"}])
def test_other_files_are_refused_with_a_sentence(value: dict[str, object]) -> None:
    with pytest.raises(WrongUsage):
        json_to_evidence(value)
