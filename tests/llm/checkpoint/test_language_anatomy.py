"""What a language model is made of, from the heads of its files alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from language_zoo import make_model

import packlight
from packlight.cli.language_anatomy import show_language_anatomy
from packlight.errors import WrongUsage
from packlight.llm.anatomy import FILE_TYPES, LanguageAnatomy, describe_checkpoint
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.report import to_plain
from packlight.report.table import render_plain


def make(folder: Path, family: str, **shape: Any) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(folder, family, **shape)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("llama"), "llama", hidden_size=256)


def inspect(path: Path) -> LanguageAnatomy:
    found = packlight.inspect(path)
    assert isinstance(found, LanguageAnatomy)
    return found


def test_no_weight_is_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reading in ("read", "read_rows", "read_blocks", "read_stored"):
        monkeypatch.delattr(Checkpoint, reading)
    found = inspect(llama)
    assert (found.architecture, found.blocks, found.width, found.heads) == ("llama", 2, 256, 4)
    assert (found.key_value_heads, found.head_width, found.vocabulary) == (2, 16, 384)
    assert found.parameters == sum(one.weights for one in found.tensors)
    assert found.size_bytes == sum(one.bytes for one in found.tensors) == 4 * found.parameters
    assert found.tokenizer == "gpt2, gpt-2" and found.chat_template
    (down,) = (one for one in found.tensors if one.name == "blk.1.ffn_down.weight")
    assert (down.role, down.block, down.shape, down.type) == ("linear", 1, (256, 96), "F32")
    assert down.source == "model.layers.1.mlp.down_proj.weight" and not down.kept
    kept = {one.role for one in found.tensors if one.kept}
    assert kept == {"norm"}


def test_sizes_are_those_of_the_files_that_are_written(llama: Path, tmp_path: Path) -> None:
    files = {one.type: one for one in inspect(llama).files}
    assert tuple(files) == FILE_TYPES
    checkpoint = open_checkpoint(llama)
    for kind in ("Q8_0", "Q4_K"):
        path = tmp_path / f"{kind}.gguf"
        compress_checkpoint(checkpoint, path, uniform_types(checkpoint, kind))
        assert files[kind].bytes == path.stat().st_size
    # Rows of 96 and 64 weights hold no super-block of 256.
    assert sum(files["Q4_K"].others.values()) == 4 and not files["Q8_0"].others
    again = inspect(tmp_path / "Q4_K.gguf")
    assert {one.type for one in again.tensors} >= {"Q4_K", "F32"}
    assert again.blocks == 2 and again.parameters == inspect(llama).parameters


def test_what_a_user_should_know_is_said(llama: Path, tmp_path: Path) -> None:
    notes = inspect(llama).notes
    assert any("2 tensors have rows of 96 weights" in note for note in notes)
    bare = make(tmp_path, "gpt2")
    (bare / "tokenizer.json").unlink()
    config = json.loads((bare / "config.json").read_text())
    assert any("tokenizer" in note for note in inspect(bare).notes)
    (bare / "config.json").write_text(json.dumps({**config, "model_type": "newest"}))
    unknown = inspect(bare)
    assert not unknown.known and not unknown.files
    assert any("No GGUF file can be written" in note for note in unknown.notes)
    assert "not known here" in render_plain(show_language_anatomy(unknown), width=140)


def test_a_mixture_of_experts_keeps_its_router(tmp_path: Path) -> None:
    found = describe_checkpoint(open_checkpoint(make(tmp_path, "mixtral")))
    assert (found.experts, found.experts_used) == (4, 2)
    assert any("router" in one.kept for one in found.tensors if one.role == "router")
    shown = render_plain(show_language_anatomy(found), width=140)
    assert "in each of 4 experts, 2 used for a token" in shown
    assert "a router: tiny, and an error sends tokens to other experts: 2 tensors" in shown


def test_it_is_shown_and_is_one_json_value(llama: Path) -> None:
    found = inspect(llama)
    shown = render_plain(show_language_anatomy(found), width=140)
    for words in (
        "2, 256 wide",
        "blk.*.ffn_down.weight",
        "256×96",
        "Kept in 32 bits",
        "Q4_K",
        "4 in Q5_0 instead",
    ):
        assert words in shown
    plain = to_plain(found)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain == to_plain(found.to_json())


def test_data_are_of_no_use(llama: Path) -> None:
    with pytest.raises(WrongUsage, match="--data cannot be used for inspecting a language model"):
        packlight.inspect(llama, data="notes.txt")
