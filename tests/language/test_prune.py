"""A language model with fewer blocks through `packlight.compress`: held against all of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import packlight
from packlight.errors import WrongUsage
from packlight.language import gguf
from packlight.language.forecast import LanguageForecast
from packlight.language.result import LanguageResult
from packlight.llm.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def model(make_llama: Callable[..., Path]) -> Path:
    return make_llama("three", num_hidden_layers=3)


def compress(model: Path, **options: Any) -> LanguageResult:
    found = packlight.compress(model, **options)
    assert isinstance(found, LanguageResult)
    return found


def test_blocks_go_and_the_recipe_does_it_again(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "compress_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            compress(model, data=text, bits=4.5, prune="33%", checkpoints=kept)
    assert (kept / "blocks" / "depth.json").is_file()
    found = compress(model, data=text, bits=4.5, prune="33%", checkpoints=kept)
    original = open_checkpoint(model)
    evidence = found.evidence
    assert evidence.parameters == sum(one.weights for one in original.tensors.values())
    assert evidence.size_bytes.original == original.size_bytes
    assert evidence.blocks == 3 and len(evidence.removed) == 1
    assert evidence.removed[0].kl is not None and evidence.removed[0].kl > 0
    number = evidence.removed[0].number
    assert evidence.notes[0].startswith(
        f"1 of 3 blocks were removed, counted from 0: block {number}"
    )
    folder = found.save(tmp_path / "out")
    assert not kept.exists()
    written = open_checkpoint(folder / "model.gguf")
    assert written.config.layers == 2 and "blk.2.attn_q.weight" not in written.tensors
    report = json.loads((folder / "report.json").read_text())
    assert [one["number"] for one in report["language"]["removed"]] == [number]
    assert "Blocks that went" in (folder / "report.html").read_text()
    assert "Blocks" in str(found)
    if importlib.util.find_spec("llama_cpp") is not None:
        # Against all blocks: against what is left, so many bits would lose next to nothing.
        assert evidence.divergence is not None and evidence.divergence.mean_kl > 0.02
    again = compress(model, data=text, recipe=folder / "recipe.yaml")
    assert list(again.recipe["removed"]) == [number]
    assert again.model.read_bytes() == (folder / "model.gguf").read_bytes()


def test_the_forecast_is_of_what_stays(model: Path, text: Path) -> None:
    whole, less = (
        packlight.compress(model, data=text, bits=4, prune=share, dry_run=True)
        for share in (0, "34%")
    )
    assert isinstance(whole, LanguageForecast) and isinstance(less, LanguageForecast)
    assert less.size_bytes < whole.size_bytes and less.original_bytes == whole.original_bytes
    assert any("1 of 3 blocks would be removed" in line for line in less.lines)
    assert any("6 passes of 8,192 tokens" in line for line in less.lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prune": "5%"}, "has 3 blocks, of which so small a share"),
        ({"prune": "100%"}, "such as 25% or 0.25"),
        ({"prune": "nan"}, "such as 25% or 0.25"),
        ({"prune": "auto"}, "is not searched for"),
        ({"prune": "30%", "heal_minutes": 5}, "--heal-minutes cannot be used for a language model"),
    ],
)
def test_what_cannot_be_asked_for_is_said(
    model: Path, text: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(WrongUsage, match=words):
        compress(model, data=text, bits=4, **options)


def test_a_recipe_that_says_all_and_a_share_contradict_each_other(
    model: Path, text: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: language-model\nremoved: [0]\ntypes: {token_embd.weight: Q4_K}\n")
    with pytest.raises(WrongUsage, match="a recipe that says all contradict each other"):
        compress(model, data=text, recipe=recipe, prune="30%")
    recipe.write_text(
        "kind: language-model\ntext: false\nremoved: [0]\ntypes: {token_embd.weight: Q4_K}\n"
    )
    with pytest.raises(WrongUsage, match="give --data"):
        compress(model, recipe=recipe)
    recipe.write_text("kind: language-model\nremoved: [7]\ntypes: {token_embd.weight: Q4_K}\n")
    with pytest.raises(WrongUsage, match="The recipe removes the blocks 7"):
        compress(model, data=text, recipe=recipe)
