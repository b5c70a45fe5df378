"""A language model for onnxruntime, from the door to the folder that is handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="it makes the model")
pytest.importorskip("transformers", reason="it makes the model")

from language_zoo import make_model

import packlight
from packlight.errors import UnusableModel, WrongUsage

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_folder_is_made_and_proven_in_onnxruntime(tmp_path: Path, text: Path) -> None:
    model = tmp_path / "model"
    make_model(model, "llama-tied")
    found = packlight.compress(model, data=text, target="onnxruntime", bits=6)
    evidence = found.evidence
    assert evidence.divergence is not None
    assert 0 < evidence.divergence.mean_kl < 1
    assert evidence.speed is not None
    assert evidence.speed.runtime.startswith("onnxruntime ")
    assert evidence.continuations
    assert {one.type for one in evidence.tensors} <= {
        "int4-32", "int4-64", "int4-128", "int8-32", "int8-128",
    }  # fmt: skip
    folder = found.save(tmp_path / "packed")
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "genai_config.json"} <= names
    assert {"recipe.yaml", "report.html", "report.json"} <= names


def test_what_cannot_be_made_is_refused_at_the_door(tmp_path: Path) -> None:
    make_model(tmp_path, "gemma")
    with pytest.raises(UnusableModel, match=r"of the type 'gemma'.*--target llama\.cpp"):
        packlight.compress(tmp_path, target="onnxruntime")
    with pytest.raises(WrongUsage, match=r"no type 'Q4_K'.*int4-32"):
        packlight.compress(tmp_path, target="onnxruntime", pin={"output.weight": "Q4_K"})
