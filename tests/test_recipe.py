"""Recipes: what is written is read back, and nothing else is taken for a recipe."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.errors import UnusableRecipe
from packlight.ranks import Rank
from packlight.recipe import (
    CHOICES,
    MOST_BYTES,
    RANGES,
    ROUNDINGS,
    Recipe,
    check_layers,
    parse_choice,
    read_recipe,
    size_only,
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
    sequential=st.booleans(),
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
        ("layers: {a: int9}", ["line 1", "'a'", "'int9'", "did you mean 'int"]),
        ("seed: 3\nlayers:\n  b: int8\n  a: wieghts-nf4", ["line 4", "mean 'weights-nf4'"]),
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
        ("rounding: best", ["line 1", "'best'", "compensated, descent, learned, nearest"]),
        ("seed: true", ["'seed'", "whole number", "True"]),
        ("schema: true", ["'schema'", "whole number"]),
        ("seed: 1.0", ["'seed'", "whole number"]),
        ("seed: -1", ["'seed'", "0 or more"]),
        ("pair_limit: 1", ["'pair_limit'", "true or false"]),
        ("bias_correction: 'true'", ["'bias_correction'", "true or false"]),
        ("target: 3", ["'target'"]),
        ("equalize: 1", ["'equalize'", "true or false"]),
        ("schema: 2", ["schema 2"]),
        ("layers: {a: int8, a: float32}", ["line 1", "'a'", "twice"]),
        ("layers: {yes: int8, true: int8}", ["line 1", "True", "quotes"]),
        ("{1: a, 1.0: b}", ["line 1", "unknown entry 1"]),
        ("seed: 1\nlayers: {}\nseed: 2", ["line 3", "'seed'", "twice"]),
        ("seed: 1\nlayers: {}\n\nranged: min-max", ["line 4", "'ranged'", "'ranges'"]),
        ("seed: 1\n\nsequential: maybe", ["line 3", "true or false"]),
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


def test_the_line_of_an_unknown_layer_is_named(tmp_path: Path) -> None:
    recipe = read(tmp_path, "seed: 1\nlayers:\n  conv1: int8\n\n  conv3: int8\n")
    with pytest.raises(UnusableRecipe, match=r"recipe.yaml, line 5: .*'conv3'.*'conv[12]'"):
        check_layers(recipe, ["conv1", "conv2"])
    moved = recipe.with_choice(["conv1"], "float16")
    assert moved.place("conv1").endswith("line 3: ") and Recipe().place("conv1") == ""
    assert recipe == Recipe(layers=recipe.layers, seed=1)  # where it was read is no part of it


def test_every_word_says_what_it_is() -> None:
    for word, about in CHOICES.items():
        choice = parse_choice(word)
        assert choice.word == word and choice.about == about and "\n" not in about
        assert 0 < choice.bits <= 32 and choice.activation_bits in (4, 8, 16, 32)
    assert len(set(CHOICES.values())) == len(CHOICES)
    int4, a4 = parse_choice("int4"), parse_choice("int4-a4")
    assert (int4.weights, int4.compute, int4.activation_bits, int4.bits) == ("int4", "static", 8, 4)
    assert (a4.weights, a4.compute, a4.activation_bits) == ("int4", "static", 4)
    assert parse_choice("weights-coded0.5") == parse_choice("weights-coded0.5")
    assert parse_choice("weights-coded0.5").bits == 0.5
    assert parse_choice("weights-int4-blocks").bits == 4 + 36 / 32
    with pytest.raises(UnusableRecipe, match="did you mean 'weights-shared4'"):
        parse_choice("weights-share4")


def test_what_computes_in_float_is_size_only() -> None:
    only = {word for word in CHOICES if size_only(word)}
    assert {"float16", "weights-int2", "weights-nf4", "weights-coded2", "int4-a4"} <= only
    kept = {"float32", "int8", "int2", "int8-wide", "int8-dynamic", "weights-int4-blocks"}
    assert only.isdisjoint(kept)


@pytest.mark.parametrize(
    ("text", "strength"), [("0.5", 0.5), ("0", 0), ("1", 1), ("searched", "searched")]
)
def test_smoothing_is_a_number_from_0_to_1_or_searched(
    tmp_path: Path, text: str, strength: float | str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"smooth: {text}\n")
    found = read_recipe(path)
    assert found.smooth == strength
    path.write_text(write_recipe(replace(found, rotate=True)))
    assert read_recipe(path).smooth == strength and read_recipe(path).rotate
    for wrong in ("1.5", "-0.1", ".nan", "true", "much", "[searched]"):
        path.write_text(f"smooth: {wrong}\n")
        with pytest.raises(UnusableRecipe, match="smooth"):
            read_recipe(path)


def test_pins_and_forbidden_choices_are_read_back(tmp_path: Path) -> None:
    recipe = Recipe(
        layers=(("a", "int8"),),
        pins=(("b", "weights-coded1.25"), ("yes", "float16")),
        forbid=("int8-dynamic", "weights-int4"),
    )
    assert read(tmp_path, write_recipe(recipe)) == recipe
    plain = write_recipe(Recipe(layers=(("a", "int8"),)))
    assert "pins:" not in plain and "forbid:" not in plain


@pytest.mark.parametrize(
    ("text", "searches"),
    [
        ("layers: {a: int8}", False),
        ("layers: {}", True),
        ("seed: 3", True),
        ("layers: {a: int8}\npins: {a: int8}", True),
        ("layers: {a: int8}\nforbid: [float16]", True),
        ("layers: {a: int8}\npins: {}\nforbid: []", False),
    ],
)
def test_a_recipe_with_pins_or_without_layers_asks_for_a_search(
    tmp_path: Path, text: str, searches: bool
) -> None:
    assert read(tmp_path, text).searches is searches


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\npins:\n  a: int9", ["line 3", "'a'", "'int9'", "did you mean 'int"]),
        ("pins: [a]", ["'pins'", "layer: choice"]),
        ("pins: {a: int8, a: int4}", ["'a'", "twice"]),
        ("pins: {1: int8}", ["1", "quotes"]),
        ("pin: {a: int8}", ["'pin'", "did you mean 'pins'"]),
        ("seed: 1\nforbid: [flaot16]", ["line 2", "'flaot16'", "did you mean 'float16'"]),
        ("forbid: float16", ["'forbid'", "in brackets"]),
        ("forbid: [[float16]]", ["['float16']", "no choice"]),
        ("forbid: [3]", ["3", "no choice"]),
        ("forbidden: [float16]", ["'forbidden'", "did you mean 'forbid'"]),
    ],
)
def test_pins_and_forbidden_choices_that_make_no_sense(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(UnusableRecipe) as refusal:
        read(tmp_path, text)
    message = str(refusal.value)
    assert all(word in message for word in words), message


def test_places_tell_where_pins_stand(tmp_path: Path) -> None:
    recipe = read(tmp_path, "layers:\n  a: int8\npins:\n  b: int4\n")
    assert recipe.place("a").endswith("recipe.yaml, line 2: ")
    assert recipe.place("b").endswith("recipe.yaml, line 4: ")
    assert recipe.place("c") == ""


def test_channels_go_there_and_back(tmp_path: Path) -> None:
    recipe = Recipe(layers=(("a", "int8"),), channels=(("a", 5), ("b", 3)), heal_steps=40)
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    assert read_recipe(path) == recipe
    plain = replace(recipe, channels=(), heal_steps=0)
    path.write_text(write_recipe(plain))
    assert "channels:" not in path.read_text() and read_recipe(path) == plain


def test_tuning_goes_there_and_back(tmp_path: Path) -> None:
    recipe = Recipe(layers=(("a", "int4"),), tune_steps=70)
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    assert read_recipe(path) == recipe
    path.write_text(write_recipe(replace(recipe, tune_steps=0)))
    assert "tune_steps" not in path.read_text()


def names_the_line(path: Path, text: str, line: int, word: str) -> None:
    path.write_text(text)
    with pytest.raises(UnusableRecipe, match=word) as caught:
        read_recipe(path)
    assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("layers: {a: int8}\nchannels:\n  b: 2\n  a: many\n", 4, "number of channels"),
        ("layers: {a: int8}\nchannels: {a: 0}\n", 2, "1 or more"),
        ("layers: {a: int8}\nchannels: {a: true}\n", 2, "number of channels"),
        ("layers: {a: int8}\nheal_steps: -1\n", 2, "0 or more"),
        ("layers: {a: int8}\ntune_steps: -1\n", 2, "'tune_steps' must be 0 or more"),
        ("layers: {a: int8}\ntune_steps: many\n", 2, "whole number"),
        ("layers: {a: int8}\nchanels: {a: 3}\n", 2, "did you mean 'channels'"),
    ],
)
def test_broken_channels_name_the_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    names_the_line(tmp_path / "recipe.yaml", text, line, word)


def test_ranks_go_there_and_back(tmp_path: Path) -> None:
    ranks = (("/conv1/Conv", Rank("spatial", 12)), ("fc", Rank("matrix", 64)))
    recipe = Recipe(layers=(("a", "int8"),), ranks=ranks, heal_steps=40)
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    assert "  /conv1/Conv: spatial 12" in path.read_text()
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("layers: {a: int8}\nranks:\n  b: matrix 4\n  a: 12\n", 4, "`spatial 12`"),
        ("layers: {a: int8}\nranks: {a: matrix 0}\n", 2, "rank of 1 or more"),
        ("layers: {a: int8}\nranks: {a: tucker 8}\n", 2, "the way it is taken apart"),
        ("layers: {a: int8}\nranks: {1: matrix 8}\n", 2, "is no layer"),
        ("layers: {a: int8}\nranks: matrix 8\n", 2, "a list of `layer: kind rank`"),
        ("layers: {a: int8}\nrank: {a: matrix 8}\n", 2, "did you mean 'ranks'"),
    ],
)
def test_broken_ranks_name_the_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    names_the_line(tmp_path / "recipe.yaml", text, line, word)
