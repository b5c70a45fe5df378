from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packlight.graph.model import Model, load_model
from packlight.plan.forecast import forecast
from packlight.targets import find_target

LAPTOP = find_target("laptop")


@pytest.fixture
def model(tmp_path: Path, write_mlp: Callable[..., Path]) -> Model:
    return load_model(write_mlp(tmp_path / "net.onnx"))


def test_sizes_are_predicted_for_each_candidate(model: Model) -> None:
    found = forecast(model, LAPTOP, has_data=True)
    sizes = found.size_bytes
    assert sizes["simplified only"] == found.original_bytes == model.size_bytes
    assert sizes["int8 static"] == pytest.approx(model.size_bytes / 4, rel=0.15)
    assert sizes["float16 weights"] == pytest.approx(model.size_bytes / 2, rel=0.1)
    assert found.layers == {"Gemm": 2, "MatMul": 1}
    assert found.memory_bytes > model.size_bytes
    assert found.skipped == ()


def test_without_samples_it_says_what_that_means(model: Model) -> None:
    found = forecast(model, LAPTOP, has_data=False)
    assert "int8 static" not in found.size_bytes
    assert any("accuracy" in note and "--data" in note for note in found.notes)
    assert not any("--data" in note for note in forecast(model, LAPTOP, has_data=True).notes)


def test_a_size_out_of_reach_is_foretold(model: Model) -> None:
    smallest = min(forecast(model, LAPTOP, has_data=True).size_bytes.values())
    for limit, told in ((smallest - 1, True), (smallest, False)):
        notes = forecast(model, LAPTOP, has_data=True, max_size=limit).notes
        assert any("best-effort" in note for note in notes) == told


def test_a_target_that_cannot_be_measured_here_says_so(model: Model) -> None:
    found = forecast(model, find_target("raspberry-pi"), has_data=True)
    assert any(note.startswith("Raspberry Pi") for note in found.notes)


def test_what_is_left_alone_has_its_reason(
    tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    path = write_model(
        tmp_path / "net.onnx",
        """net (float[n, 8, 8] x) => (float[n, 8, 8] y) {
            both = MatMul(x, x)
            y = MatMul(both, w)
        }""",
        w=np.ones((8, 8), np.float32),
    )
    found = forecast(load_model(path), LAPTOP, has_data=True)
    assert [one.name for one in found.skipped] == ["both"]
    assert "two activations" in found.skipped[0].reason
    assert any("two activations" in line for line in found.lines)


def test_lines_and_json_say_the_same(model: Model) -> None:
    found = forecast(model, LAPTOP, has_data=True)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["size_bytes"] == found.size_bytes
    assert (plain["schema"], plain["target"]) == (1, "laptop")
    text = "\n".join(found.lines)
    for label in found.size_bytes:
        assert label in text
    assert found.lines[-1] == "Nothing was run, and nothing written (--dry-run)."
