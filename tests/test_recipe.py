"""Recipes: what is written is read back, and nothing else is taken for a recipe."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.errors import UnusableRecipe
from packlight.recipe import (
    CHOICES,
    MOST_BYTES,
    RANGES,
    ROUNDINGS,
    Recipe,
    check_layers,
    read_recipe,
    write_recipe,
)


def read(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_recipe(path)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
RECIPES = st.builds(
    Recipe,
    target=NAMES,
    layers=st.dictionaries(NAMES, st.sampled_from(sorted(CHOICES)), max_size=5).map(
        lambda layers: tuple(layers.items())
    ),
    ranges=st.sampled_from(RANGES),
    rounding=st.sampled_from(ROUNDINGS),
    bias_correction=st.booleans(),
    equalize=st.booleans(),
    pair_limit=st.booleans(),
    seed=st.integers(0, 2**63),
)


@given(recipe=RECIPES)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
) -> None:
    assert read(tmp_path_factory.getbasetemp(), write_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    "name",
    ["yes", "null", "1", "1e3", "2020-01-01", "<<", "=", "~", "a: b", "- x", "#", "ä\n\t\r\x85"],
)
def test_names_that_yaml_has_other_ideas_about(tmp_path: Path, name: str) -> None:
    recipe = Recipe(layers=((name, "int8"), ("other", "float16")))
    assert read(tmp_path, write_recipe(recipe)) == recipe


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    assert read(tmp_path, "layers: {}") == Recipe()
    recipe = read(tmp_path, "layers:\n  b: int8\n  a: weights-int4\n")
    assert recipe.layers == (("b", "int8"), ("a", "weights-int4"))
    assert (recipe.choice("a"), recipe.choice("zzz")) == ("weights-int4", "float32")


def test_another_choice_for_some_layers() -> None:
    recipe = Recipe(layers=(("a", "int8"), ("b", "int8")))
    other = recipe.with_choice(["b"], "float32")
    assert other.layers == (("a", "int8"), ("b", "float32"))
    assert recipe.layers == (("a", "int8"), ("b", "int8"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers: {a: int9}", ["'a'", "'int9'", "did you mean 'int8'"]),
        ("layers: {a: weight-int8}", ["did you mean 'weights-int8'"]),
        ("layers: {a: [int8]}", ["'a'", "['int8']"]),
        ("layers: {a: {b: int8}}", ["'a'"]),
        ("layers: {a: }", ["'a'", "None"]),
        ("layers: {12: int8}", ["12", "quotes"]),
        ("layers: {yes: int8}", ["True", "quotes"]),
        ("layers: [a]", ["'layers'", "layer: choice"]),
        ("layer: {a: int8}", ["'layer'", "did you mean 'layers'"]),
        ("bias_corection: true", ["did you mean 'bias_correction'"]),
        ("3: 4", ["unknown entry 3"]),
        ("ranges: minmax", ["'minmax'", "did you mean 'min-max'"]),
        ("rounding: best", ["'best'", "compensated, nearest"]),
        ("seed: true", ["'seed'", "whole number", "True"]),
        ("schema: true", ["'schema'", "whole number"]),
        ("seed: 1.0", ["'seed'", "whole number"]),
        ("seed: -1", ["'seed'", "0 or more"]),
        ("pair_limit: 1", ["'pair_limit'", "true or false"]),
        ("bias_correction: 'true'", ["'bias_correction'", "true or false"]),
        ("target: 3", ["'target'"]),
        ("equalize: 1", ["'equalize'", "true or false"]),
        ("schema: 2", ["schema 2"]),
        ("layers: {a: int8, a: float32}", ["'a'", "twice"]),
        ("seed: 1\nlayers: {}\nseed: 2", ["'seed'", "twice"]),
        ("[a, b]", ["no recipe"]),
        ("just words", ["no recipe"]),
        ("", ["no recipe"]),
        ("a: b: c", ["not valid YAML"]),
        ("layers: {a: int8", ["not valid YAML"]),
        ("? [a]\n: b", ["not valid YAML"]),
        ("seed: 2020-99-99", ["not valid YAML"]),
        ("--- {}\n--- {}", ["not valid YAML"]),
        (b"layers: \x00", ["not valid YAML"]),
        (b"layers: \xff\xfe", ["cannot be read"]),
        ("!!python/object/apply:os.system ['touch x']", ["tag", "python"]),
        ("target: !!python/name:os.system", ["tag"]),
        ("target: !mine laptop", ["tag", "!mine"]),
        ("layers: !!omap [a: int8]", ["tag"]),
        ("layers: &x {a: int8}\nseed: *x", ["aliases"]),
        ("layers: {<<: {a: int8}}", ["<<"]),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(UnusableRecipe) as refusal:
        read(tmp_path, text)
    message = str(refusal.value)
    assert all(word in message for word in ["recipe", *words]), message
    assert "\n" not in message and len(message) < 700


def test_nesting_and_bombs_are_refused_fast(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    begun = time.process_time()
    with pytest.raises(UnusableRecipe, match="aliases"):
        read(tmp_path, "\n".join(lines))
    for text in ("[" * 100_000, "{a: " * 100_000, "- " * 100_000, "[" * 9 + "]" * 9):
        with pytest.raises(UnusableRecipe, match="nested deeper"):
            read(tmp_path, text)
    assert time.process_time() - begun < 30  # a bomb that goes off takes hours, or the memory


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UnusableRecipe, match="larger than a recipe can be"):
        read_recipe(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnusableRecipe, match="cannot be read"):
        read_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(UnusableRecipe, match="cannot be read"):
        read_recipe(tmp_path)


def test_unknown_layers_are_named_with_the_nearest() -> None:
    check_layers(Recipe(layers=(("conv1", "int8"),)), ["conv1", "conv2"])
    with pytest.raises(UnusableRecipe, match=r"'conv3'.*did you mean 'conv[12]'"):
        check_layers(Recipe(layers=(("conv3", "int8"),)), ["conv1", "conv2"])
