"""What the user laid down before the search: layers pinned to a choice, techniques forbidden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from packlight.errors import UnusableRecipe
from packlight.graph.apply import check_choices, why_not
from packlight.graph.layers import Layer
from packlight.nearest import did_you_mean
from packlight.recipe import Recipe, parse_choice

INSTEAD = ("weights-int8", "float16", "float32")
"""What a layer gets for a forbidden choice, the first that it can have."""


@dataclass(frozen=True)
class Rules:
    """pins: (layer, choice). forbidden: choices that no layer gets, pinned ones excepted."""

    pins: tuple[tuple[str, str], ...] = ()
    forbidden: tuple[str, ...] = ()

    def allows(self, word: str) -> bool:
        """Whether the search may propose a choice."""
        return word not in self.forbidden

    def honour(self, recipe: Recipe, layers: Sequence[Layer]) -> Recipe:
        """The recipe with pinned layers as they are pinned and forbidden choices replaced.

        It then names all layers, in their order. A layer that can have nothing that is allowed
        stays float32.
        """
        if not self.pins and not self.forbidden:
            return recipe
        pinned, old = dict(self.pins), dict(recipe.layers)
        chosen = []
        for layer in layers:
            word = pinned.get(layer.name, old.get(layer.name, "float32"))
            if layer.name not in pinned and not self.allows(word):
                able = (w for w in INSTEAD if self.allows(w) and not why_not(layer, w))
                word = next(able, "float32")
            chosen.append((layer.name, word))
        return replace(recipe, layers=tuple(chosen))


FREE = Rules()


def read_rules(
    pins: Mapping[str, str], forbid: Iterable[str], recipe: Recipe | None, layers: Sequence[Layer]
) -> Rules:
    """Rules from {layer: choice} and words, on top of what a recipe pins and forbids.

    Raises UnusableRecipe for a layer that is not there, a choice that does not exist or that
    the layer cannot have, each with the nearest name; also for the recipe's own layers.
    """
    if recipe is not None:
        check_choices(recipe, layers)
    _check_names(pins, layers)
    pinned = {**dict(recipe.pins if recipe is not None else ()), **pins}
    forbidden = (*(recipe.forbid if recipe is not None else ()), *forbid)
    for word in (*pinned.values(), *forbidden):
        parse_choice(word)
    places = () if recipe is None else recipe.places
    check_choices(Recipe(layers=tuple(pinned.items()), places=places), layers)
    return Rules(tuple(pinned.items()), tuple(dict.fromkeys(forbidden)))


def _check_names(pins: Iterable[str], layers: Sequence[Layer]) -> None:
    known = [layer.name for layer in layers]
    for name in pins:
        if name not in known:
            raise UnusableRecipe(
                f"There is no layer {name!r} to pin{did_you_mean(name, known)}: "
                "`packlight inspect` lists the layers."
            )


def distinct(recipes: Iterable[tuple[str, Recipe]]) -> list[tuple[str, Recipe]]:
    """Those that differ, the first of equal ones."""
    found: dict[Recipe, str] = {}
    for label, recipe in recipes:
        found.setdefault(recipe, label)
    return [(label, recipe) for recipe, label in found.items()]
