"""Folders in transformers, in a process of their own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from language_zoo import make_model

from packlight.errors import MissingExtra, RuntimeFailure, RuntimeRefused, WrongUsage
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.schemes import compress_folder, find_scheme
from packlight.measure.language_proof import prove_language
from packlight.runtime import Limits, transformers
from packlight.runtime.transformers import TRANSFORMERS, Transformers, has_transformers

pytestmark = pytest.mark.skipif(
    not has_transformers(), reason="packlight[vllm] is not installed here"
)
TOKENS = np.arange(4, 44, dtype=np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "llama"
    found.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(found, "llama")
    return found


def test_a_folder_computes_what_it_does_in_this_process(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    with Transformers(folder, context=64) as run:
        assert (run.model.vocabulary, run.model.trained_context) == (384, 256)
        for _ in range(2):  # a window knows nothing of the one before it
            found = np.concatenate(list(run.logits(TOKENS)))
            np.testing.assert_allclose(found, expected, atol=1e-4)
        run._positions = 7  # the cache goes on from piece to piece
        found = np.concatenate(list(run.logits(TOKENS)))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        continued = run.generate(TOKENS, 5)
        assert continued[0] == expected[-1].argmax() and len(continued) <= 5
        assert run.detokenize(run.tokenize("two words")) == "two words"
        assert run.time(TOKENS, 3).generation > 0
        assert run.peak_memory_bytes() > 50 << 20
        with pytest.raises(WrongUsage, match="does not fit the context of 64"):
            next(run.logits(np.zeros(65, np.int32)))


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "nvfp4"])
def test_a_compressed_folder_is_proven(folder: Path, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "out"
    compress_folder(open_checkpoint(folder), out, find_scheme(scheme))
    tokens = np.random.default_rng(0).integers(4, 384, 256)
    found = prove_language(folder, out, tokens, window=64, runtime=TRANSFORMERS, timed=False)
    assert found.divergence is not None
    assert 0 < found.divergence.mean_kl < (0.005 if scheme == "w8a8" else 0.5)
    assert found.speed is None and found.peak_memory_bytes is None
    assert len(found.continuations) == 3


def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(RuntimeRefused):
        Transformers(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RuntimeRefused, match="safetensors"):
        Transformers(tmp_path)


def test_too_little_memory_is_a_typed_error(folder: Path) -> None:
    with pytest.raises(RuntimeFailure):
        Transformers(folder, limits=Limits(memory_bytes=40 << 20))


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeRefused, match=r"no folder .* with a config\.json"):
        Transformers(tmp_path)
    monkeypatch.setattr(transformers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install packlight\[vllm\]"):
        Transformers(tmp_path)
