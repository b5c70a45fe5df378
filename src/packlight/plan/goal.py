"""What a user wants most, once the budget is kept: the named presets, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from packlight.errors import WrongUsage
from packlight.graph.layers import Layer
from packlight.nearest import did_you_mean
from packlight.plan.solve import TIE_LATENCY
from packlight.recipe import CHOICES, Recipe, parse_choice
from packlight.targets import Target

Wish = Literal["latency", "size", "download", "nothing"]


@dataclass(frozen=True)
class Goal:
    """A preset. wish: what is made least under the budget, for "nothing" only what is exact is
    done. drop: the budget of the metric where the user names none. about: for people.
    tie_latency: latencies that differ by a smaller share are equal, and the smaller file wins.
    thins: channels, branches and ranks go too, as far as the drop allows, without being asked for.
    """

    name: str
    wish: Wish
    drop: float
    about: str
    tie_latency: float = TIE_LATENCY
    thins: bool = False


PRESETS: tuple[Goal, ...] = (
    Goal("balanced", "latency", 0.01, "fast first, then small: a smaller file wins a near tie"),
    Goal("fastest", "latency", 0.01, "the shortest latency, whatever the size", 0.0, thins=True),
    Goal("smallest", "download", 0.01, "the smallest packed file (see `packlight pack`)"),
    Goal("lossless", "nothing", 0.0, "nothing is rounded: simplified, exact storage, packed"),
)
BALANCED = PRESETS[0]


def find_goal(name: str) -> Goal:
    """The preset of that name. Raises WrongUsage with the nearest name otherwise."""
    for goal in PRESETS:
        if goal.name == name:
            return goal
    names = [goal.name for goal in PRESETS]
    raise WrongUsage(
        f"There is no preset {name!r}{did_you_mean(name, names)}: choose one of {', '.join(names)}."
    )


_PLAIN = ("float32", "float16", "weights-int8", "int8-dynamic", "int8")
_OF_FILES = (*_PLAIN, "weights-int8-blocks", "weights-int4", "weights-int4-blocks")
_OF_DOWNLOADS = (
    "float32",
    "int8",
    *(f"int{bits}" for bits in (6, 5, 4, 3, 2)),
    *(f"weights-int{bits}" for bits in (8, 6, 5, 4, 3, 2)),
    *(word for word in CHOICES if parse_choice(word).weights == "coded"),
)
_WORDS: dict[Wish, tuple[str, ...]] = {
    "latency": _PLAIN,
    "size": _OF_FILES,
    "download": _OF_DOWNLOADS,
    "nothing": ("float32",),
}


def candidate_words(wish: Wish) -> tuple[str, ...]:
    """The choices worth weighing for a layer when that is wished for."""
    return _WORDS[wish]


def runs_on(layer: Layer, word: str, target: Target) -> bool:
    """Whether a target's runtime runs a layer well under a choice."""
    choice = parse_choice(word)
    if choice.compute == "static":
        return layer.kind in target.static and choice.activation_bits in target.activation_bits
    if choice.compute == "dynamic":
        return layer.kind in target.dynamic
    if choice.compute == "blocks":
        return layer.kind in target.blocks and int(choice.weights[3:]) in target.block_bits
    return word != "float16" or target.float16


def average_bits(recipe: Recipe, layers: Sequence[Layer]) -> float | None:
    """Nominal bits a weight of a recipe, all layers together; None without layers."""
    total = sum(layer.parameters for layer in layers)
    if not total:
        return None
    chosen = dict(recipe.layers)
    return (
        sum(
            parse_choice(chosen.get(layer.name, "float32")).bits * layer.parameters
            for layer in layers
        )
        / total
    )
