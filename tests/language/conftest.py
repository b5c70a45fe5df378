"""What tests of whole compressions share: a text, and little effort for each tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from language_zoo import TEXT, make_model

from packlight.llm import compress_gguf
from packlight.llm.onnx import run as onnx_run

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
}

MakeLlama = Callable[..., Path]


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_gguf, "SMALL", 0)
    monkeypatch.setattr(compress_gguf, "PARTS", 2)
    monkeypatch.setattr(onnx_run, "PARTS", 2)


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> MakeLlama:
    """A folder with a small Llama, whose shape may be another."""

    def make(name: str, **changes: int) -> Path:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_model(folder, "llama", **{**SHAPE, **changes})
        return folder

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines in another order each time, so that no window is another one."""
    random = np.random.default_rng(0)
    words = TEXT.split()
    path = tmp_path_factory.mktemp("texts") / "notes.txt"
    path.write_text("\n".join(" ".join(random.permutation(words)) for _ in range(60)))
    return path
