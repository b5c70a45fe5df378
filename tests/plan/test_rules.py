"""Pins and forbidden choices: kept to, and refused with the nearest name where they make none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packlight.errors import UnusableRecipe
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.plan.rules import FREE, Rules, distinct, read_rules
from packlight.recipe import Recipe


@pytest.fixture(scope="module")
def layers(
    tmp_path_factory: pytest.TempPathFactory, write_mlp: Callable[..., Path]
) -> tuple[Layer, ...]:
    """Products h, g and y."""
    path = write_mlp(tmp_path_factory.mktemp("rules") / "net.onnx", hidden=32)
    return find_layers(load_model(path).ir)


ALL_INT8 = Recipe(layers=(("h", "int8"), ("g", "int8"), ("y", "int8")))


def test_without_rules_a_recipe_is_left_as_it_is(layers: tuple[Layer, ...]) -> None:
    assert FREE.honour(ALL_INT8, layers) is ALL_INT8


def test_pins_stand_whatever_is_forbidden(layers: tuple[Layer, ...]) -> None:
    rules = Rules((("g", "int8"),), ("int8", "weights-int8"))
    assert rules.honour(ALL_INT8, layers).layers == (
        ("h", "float16"),
        ("g", "int8"),
        ("y", "float16"),
    )
    assert rules.allows("float16") and not rules.allows("int8")


def test_a_recipe_that_leaves_layers_out_gets_them(layers: tuple[Layer, ...]) -> None:
    """A pin of a layer that the recipe does not name counts as well, and so does what is not."""
    some = Recipe(layers=(("y", "int8"),), ranges="min-max", seed=3)
    found = Rules((("h", "weights-int4"),)).honour(some, layers)
    expected = (("h", "weights-int4"), ("g", "float32"), ("y", "int8"))
    assert found == replace(some, layers=expected)
    found = Rules((), ("float32",)).honour(some, layers)
    assert found.layers == (("h", "weights-int8"), ("g", "weights-int8"), ("y", "int8"))


def test_where_all_is_forbidden_float32_is_left(layers: tuple[Layer, ...]) -> None:
    rules = Rules((), ("int8", "weights-int8", "float16", "float32"))
    assert {word for _, word in rules.honour(ALL_INT8, layers).layers} == {"float32"}


def test_rules_add_to_those_of_the_recipe(layers: tuple[Layer, ...]) -> None:
    given = Recipe(pins=(("h", "int8"), ("g", "float16")), forbid=("int8-dynamic",))
    found = read_rules({"g": "weights-int8"}, ["float16", "int8-dynamic"], given, layers)
    assert dict(found.pins) == {"h": "int8", "g": "weights-int8"}
    assert found.forbidden == ("int8-dynamic", "float16")
    assert read_rules({}, (), None, layers) == FREE


@pytest.mark.parametrize(
    ("pins", "forbid", "words"),
    [
        ({"hh": "int8"}, (), "no layer 'hh' to pin.*did you mean 'h'"),
        ({"h": "int88"}, (), "no choice 'int88'.*did you mean 'int8'"),
        ({}, ("float61",), "no choice 'float61'.*did you mean 'float16'"),
        ({"y": "weights-int4-blocks", "h": "weights-int4-blocks"}, (), "'h'.*cannot be.*It can be"),
    ],
)
def test_what_makes_no_sense_is_named(
    layers: tuple[Layer, ...], pins: dict[str, str], forbid: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UnusableRecipe, match=words) as refusal:
        read_rules(pins, forbid, None, layers)
    assert "\n" not in str(refusal.value)


def test_a_recipes_own_layers_and_pins_are_checked_with_their_place(
    layers: tuple[Layer, ...],
) -> None:
    places = (("gg", "mine.yaml, line 4"),)
    for recipe in (
        Recipe(layers=(("gg", "int8"),), places=places),
        Recipe(pins=(("gg", "int8"),), places=places),
    ):
        with pytest.raises(UnusableRecipe, match=r"mine.yaml, line 4: .*'gg'.*did you mean 'g'"):
            read_rules({}, (), recipe, layers)


def test_of_equal_recipes_the_first_is_kept() -> None:
    other = replace(ALL_INT8, seed=1)
    found = distinct([("a", ALL_INT8), ("b", other), ("c", ALL_INT8)])
    assert found == [("a", ALL_INT8), ("b", other)]
