"""A small language model through `packlight.compress`: the file, the report, and done again."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packlight
from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.language.forecast import LanguageForecast
from packlight.language.result import LanguageResult
from packlight.llm import compress_gguf
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.schemes import folder as vllm_folder
from packlight.runtime.transformers import has_transformers

EMBEDDING = "token_embd.weight"
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'packlight[llamacpp]'",
)


@pytest.fixture(scope="module")
def small(make_llama: Callable[..., Path]) -> Path:
    return make_llama("small")


def compress(model: Path, **options: Any) -> LanguageResult:
    found = packlight.compress(model, **options)
    assert isinstance(found, LanguageResult)
    return found


def test_without_a_text_the_size_is_met_and_nothing_is_claimed(small: Path, tmp_path: Path) -> None:
    found = compress(small, bits=4.5)
    weights = sum(one.weights for one in open_checkpoint(small).tensors.values())
    assert found.evidence.bits_per_weight == pytest.approx(4.5, rel=0.01)
    assert found.evidence.parameters == weights
    assert found.verdict == "best-effort" and found.exit_status == 3
    assert "no text was given" in found.evidence.notes[0]
    folder = found.save(tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == {
        *("model.gguf", "recipe.yaml", "report.html", "report.json"),
        *("manifest.json", "verify.html"),
    }
    assert json.loads((folder / "report.json").read_text())["verdict"] == "best-effort"
    assert packlight.verify(folder).verdict == "intact"
    written = open_checkpoint(folder / "model.gguf")
    assert {name: one.shape for name, one in written.tensors.items()} == {
        name: one.shape for name, one in open_checkpoint(small).tensors.items()
    }
    again = compress(small, recipe=folder / "recipe.yaml")
    assert again.model.read_bytes() == (folder / "model.gguf").read_bytes()


def test_a_text_lowers_the_error_and_is_done_again(small: Path, text: Path, tmp_path: Path) -> None:
    found = compress(small, bits=3.5, data=text)
    assert found.evidence.bits_per_weight <= 3.5
    assert all(tensor.error is not None for tensor in found.evidence.tensors[1:])
    folder = found.save(tmp_path / "out")
    again = compress(small, data=text, recipe=folder / "recipe.yaml")
    assert again.model.read_bytes() == (folder / "model.gguf").read_bytes()
    with pytest.raises(WrongUsage, match="was made with a text"):
        compress(small, recipe=folder / "recipe.yaml")


def test_a_killed_run_goes_on_to_the_same_bytes(
    small: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types that were planned are kept, and only what is open is rounded again."""
    whole = compress(small, bits=4, data=text)
    take, done = compress_gguf.GgufRun.take, []

    def counted(run: Any, name: str, *rest: Any, **named: Any) -> Any:
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(name)
        return take(run, name, *rest, **named)

    monkeypatch.setattr(compress_gguf.GgufRun, "take", counted)
    with pytest.raises(KeyboardInterrupt):
        compress(small, bits=4, data=text, checkpoints=tmp_path / "kept")
    first = set(done)
    done[:] = [""] * 7
    again = compress(small, bits=4, data=text, checkpoints=tmp_path / "kept")
    assert again.recipe == whole.recipe
    assert not first & set(done) and len(first | {*done} - {""}) == len(whole.evidence.tensors)
    assert again.model.read_bytes() == whole.model.read_bytes()
    again.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_gguf_file_comes_in_too_and_pins_are_kept(small: Path, tmp_path: Path) -> None:
    first = compress(small, bits=8.5).save(tmp_path / "first")
    source = first / "model.gguf"
    found = compress(source, max_size="60%", pin={EMBEDDING: "Q6_K"}, target="ollama")
    assert dict(found.recipe["types"])[EMBEDDING] == "Q6_K"
    assert found.evidence.size_bytes.compressed <= 0.6 * found.evidence.size_bytes.original
    folder = found.save(tmp_path / "second")
    assert (folder / "Modelfile").read_text() == "FROM ./model.gguf\n"


def test_a_forecast_reads_no_weights_and_writes_nothing(small: Path, text: Path) -> None:
    found = packlight.compress(small, data=text, bits=4, dry_run=True)
    assert isinstance(found, LanguageForecast)
    size = open_checkpoint(small)
    assert found.size_bytes == pytest.approx(sum(o.weights for o in size.tensors.values()) / 2)
    assert found.memory_bytes > 4 * max(o.weights for o in size.tensors.values())
    assert any("--dry-run" in line for line in found.lines)
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"forbid": ["Q4_K"], "preset": "fastest"}, "--preset and --forbid cannot be used for a l"),
        ({"prune": "50%"}, "measured on a text: give --data"),
        ({"max_latency": "1ms"}, "--max-latency cannot be used for a language model"),
        ({"pin": {"blk.0.attn_q.weigth": "Q4_K"}}, "did you mean.*blk.0.attn_q.weight"),
        ({"pin": {EMBEDDING: "IQ4_NL"}, "bits": 4}, "beside a budget pin one of"),
        ({"max_drop": "5%"}, "needs a text"),
    ],
)
def test_what_cannot_be_asked_for_is_said(small: Path, options: Any, words: str) -> None:
    with pytest.raises(WrongUsage, match=words):
        compress(small, **options)


def test_nothing_empty_is_left_behind(small: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UnusableModel, match="tokenizer"):
        compress(bare, bits=4, checkpoints=tmp_path / "out.unfinished")
    assert not (tmp_path / "out.unfinished").exists()
    compress(small, bits=4, checkpoints=tmp_path / "out.unfinished").save(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "out"}


def test_bits_are_for_language_models(demo: Path) -> None:
    with pytest.raises(WrongUsage, match="--bits cannot be used for a model that is no language"):
        packlight.compress(demo / "digits.onnx", bits=4)


def test_a_text_that_is_none_is_refused(small: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    with pytest.raises(UnusableSamples, match="are needed"):
        compress(small, data=short)
    with pytest.raises(UnusableSamples, match="the path to a text, not a ndarray"):
        compress(small, data=np.zeros(3))


@needs_llama_cpp
def test_the_file_is_proven_in_its_own_runtime(small: Path, text: Path) -> None:
    found = compress(small, bits=6, data=text).evidence
    assert found.verdict in ("met", "not-worth-it")  # so small a file may be slower by chance
    assert found.divergence is not None and found.speed is not None
    assert 0 < found.divergence.mean_kl < 0.5 and found.divergence.top_agreement > 0.8
    assert found.peak_memory_bytes is not None and len(found.continuations) == 3
    assert "held back" in found.text


@needs_llama_cpp
def test_agreement_is_asked_for_and_measured(small: Path, text: Path) -> None:
    loose = compress(small, max_drop="25%", data=text).evidence
    tight = compress(small, max_drop="4%", data=text).evidence
    assert tight.size_bytes.compressed > loose.size_bytes.compressed
    assert loose.divergence is not None and loose.divergence.top_agreement > 0.7
    assert [trial.chosen for trial in loose.trials].count(True) == 1


# Folders for vLLM --------------------------------------------------------------------------------


def test_a_folder_for_vllm_is_made_again_from_its_recipe(small: Path, tmp_path: Path) -> None:
    found = compress(small, target="vllm", scheme="w8a8")
    assert found.evidence.scheme == "w8a8" and found.verdict == "best-effort"
    folder = found.save(tmp_path / "out")
    assert {file.name for file in folder.iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "report.html"),
    }
    again = compress(small, recipe=folder / "recipe.yaml")
    name = "model.safetensors"
    assert (again.model / name).read_bytes() == (folder / name).read_bytes()
    assert "vllm serve" in (folder / "report.html").read_text()
    with pytest.raises(UnusableModel, match="quantized already"):
        compress(folder, target="vllm")


def test_the_default_scheme_and_its_size_are_forecast(small: Path) -> None:
    found = packlight.compress(small, target="vllm", dry_run=True)
    assert isinstance(found, LanguageForecast)
    assert any("w4a16" in line for line in found.lines)
    made = compress(small, target="vllm").evidence
    assert made.size_bytes.compressed == found.size_bytes
    assert "no scheme was named: w4a16" in " ".join(made.notes)


def test_a_gguf_file_cannot_become_a_folder(small: Path, tmp_path: Path) -> None:
    source = compress(small, bits=8.5).save(tmp_path / "first") / "model.gguf"
    with pytest.raises(WrongUsage, match=r"GGUF file, which lacks the config\.json"):
        compress(source, target="vllm")


@pytest.mark.skipif(not has_transformers(), reason="packlight[vllm] is not installed here")
def test_a_folder_is_proven_in_transformers(
    small: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_folder, "PARTS", 2)
    found = compress(small, target="vllm", scheme="w8a16", data=text).evidence
    assert found.verdict == "met" and found.divergence is not None
    assert 0 < found.divergence.mean_kl < 0.1
    assert found.speed is None and found.peak_memory_bytes is None
    assert any("speed and memory were not measured" in note for note in found.notes)
    assert found.environment["runtime"].startswith("transformers")
