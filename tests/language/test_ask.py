"""What a user may ask of a language model, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packlight.errors import UnusableRecipe, WrongUsage
from packlight.language.ask import DEFAULT_BITS, read_ask
from packlight.language.known import is_language_model
from packlight.language.recipe import (
    LanguageRecipe,
    read_language_recipe,
    write_language_recipe,
)


def ask(**options: Any) -> Any:
    return read_ask(**{"target": "laptop", "original_bytes": 1_000_000, **options})


def test_without_a_budget_a_usual_size_is_asked_for() -> None:
    found = ask()
    assert (found.target, found.bits, found.by_default) == ("llama.cpp", DEFAULT_BITS, True)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"bits": "3.5"}, "bits", 3.5),
        ({"max_size": "25%"}, "max_size_bytes", 250_000),
        ({"max_drop": "2%"}, "max_drop", 0.02),
        ({"target": "ollama"}, "bits", DEFAULT_BITS),
    ],
)
def test_one_budget_is_read(options: dict[str, Any], field: str, value: float) -> None:
    found = ask(**options)
    assert getattr(found, field) == pytest.approx(value)
    limits = (found.bits, found.max_size_bytes, found.max_drop)
    assert sum(one is not None for one in limits) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": "4.5", "max_size": "3MB"}, "--bits and --max-size cannot both"),
        ({"bits": "0.3"}, "1 to 16"),
        ({"bits": "four"}, "such as 4.5"),
        ({"bits": "nan"}, "such as 4.5"),
        ({"max_drop": "0"}, "allow more than 0"),
        ({"target": "olama"}, "yet: choose one of llama.cpp, ollama"),
        (
            {"target": "vllm", "bits": 4},
            "--bits cannot be used with --target vllm.*w4a16, ",
        ),
        ({"target": "vllm", "max_size": "2GB"}, "--max-size cannot be used with --target vllm"),
        ({"target": "vllm", "pins": {"a": "Q4_K"}}, "--pin cannot be used with --target vllm"),
        ({"target": "vllm", "scheme": "w4a6"}, "did you mean 'w4a16'"),
        ({"scheme": "w4a16"}, "--scheme w4a16 is for --target vllm; for llama.cpp say"),
        ({"pins": {"token_embd.weight": "Q4K"}}, "did you mean.*Q4_K"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongUsage, match=words):
        ask(**options)


def test_a_scheme_says_it_all_for_vllm() -> None:
    found = ask(target="vllm")
    assert (found.scheme, found.by_default, found.bits) == ("w4a16", True, None)
    assert ask(target="vllm", scheme="FP8").scheme == "fp8"


def test_folders_and_gguf_files_are_language_models(tmp_path: Path) -> None:
    assert not is_language_model(tmp_path)
    (tmp_path / "config.json").touch()
    assert is_language_model(tmp_path) and is_language_model("model.GGUF")
    assert not is_language_model("net.onnx") and not is_language_model(object())


# Recipes -----------------------------------------------------------------------------------------


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = LanguageRecipe(
        "ollama", {"token_embd.weight": "Q6_K", "odd: name": "F16"}, True, 7, removed=(3, 1)
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(write_language_recipe(recipe))
    assert read_language_recipe(path) == recipe
    assert "--data TEXT" in path.read_text()


def test_a_recipe_of_a_scheme_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = LanguageRecipe("vllm", {}, False, 3, "w4a16")
    path = tmp_path / "recipe.yaml"
    path.write_text(write_language_recipe(recipe))
    assert read_language_recipe(path) == recipe
    assert "types" not in recipe.content and path.read_text().startswith("# The scheme of all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: language-model\nscheme: w4a15", "did you mean.*w4a16"),
        ("layers: {a: int8}", "kind: language-model"),
        ("kind: language-model\ntypes: {a: Q4K}", "did you mean.*Q4_K"),
        ("kind: language-model\ntypes: {a: [1]}", "'a' has the type"),
        ("kind: language-model\ntypes: {}", "with one for each tensor"),
        ("kind: language-model\ntype: {a: Q4_K}", "did you mean.*types"),
        ("kind: language-model\nseed: x\ntypes: {a: Q4_K}", "'seed' is 'x'"),
        ("kind: language-model\nremoved: [1, 1]\ntypes: {a: Q4_K}", "each once"),
        ("kind: language-model\nremoved: [-1]\ntypes: {a: Q4_K}", "numbers of blocks"),
        ("kind: language-model\nremoved: 3\ntypes: {a: Q4_K}", "'removed' is '3', not a list"),
        ("kind: language-model\ntypes: &x {a: Q4_K}\nb: *x", "alias|anchor"),
        ("{", "not valid YAML"),
    ],
)
def test_a_bad_recipe_names_the_entry(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UnusableRecipe, match=words):
        read_language_recipe(path)
