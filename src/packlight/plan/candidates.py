"""What is worth trying: whole recipes to begin with, and what one layer can be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer
from packlight.plan.goal import runs_on
from packlight.recipe import Recipe
from packlight.targets import Target

LEAST_SHARE = 0.02
"""Recipes that differ in layers holding less of the bytes than this are not both tried."""


def whole_recipes(
    layers: Sequence[Layer], target: Target, *, generated: bool, seed: int = 0
) -> list[tuple[str, Recipe]]:
    """Recipes that treat all layers of a kind alike, each with a label; no two are nearly the same.

    generated: nobody gave samples, so that activation ranges are not known: only choices that
    need none are tried.
    """
    recipes: list[tuple[str, Recipe]] = []
    seen: list[tuple[tuple[str, str], ...]] = []

    sizes = {layer.name: layer.bytes for layer in layers}
    least = LEAST_SHARE * sum(sizes.values())

    def add(label: str, *preferences: str) -> None:
        chosen = tuple((layer.name, _first(layer, preferences, target)) for layer in layers)
        apart = (
            sum(
                sizes[name]
                for (name, choice), (_, old) in zip(chosen, other, strict=True)
                if choice != old
            )
            for other in seen
        )
        if min(apart, default=math.inf) > least or not seen:
            seen.append(chosen)
            recipes.append(
                (
                    label,
                    Recipe(
                        target=target.name, layers=chosen, pair_limit=target.pair_limit, seed=seed
                    ),
                )
            )

    add("simplified only")
    add("int8 weights", "weights-int8")
    if not generated:
        add("int8 static", "int8", "weights-int8")
        add("int8 static and dynamic", "int8:Conv", "int8-dynamic", "int8", "weights-int8")
    add("int8 dynamic", "int8-dynamic", "weights-int8")
    add("int4 weights in blocks", "weights-int4-blocks", "weights-int8")
    add("int8 weights in blocks", "weights-int8-blocks", "weights-int8")
    add("float16 weights", "float16")
    return recipes


def describe_targets(layers: Sequence[Layer], targets: Sequence[Target]) -> dict[str, str]:
    """By target, in words, how much of a model it can compute in 8-bit integers."""
    told = {}
    for target in targets:
        static = sum(_first(layer, ("int8",), target) == "int8" for layer in layers)
        dynamic = sum(_first(layer, ("int8-dynamic",), target) != "float32" for layer in layers)
        stored = sum(not why_not(layer, "weights-int8") for layer in layers)
        where = "runs here" if target.measured_here else "same file, not measured here"
        if target.own_file:
            where = "a file of its own"
        told[target.name] = (
            f"{target.runtime} ({where}); of {len(layers)} layers {static} can compute in 8-bit "
            f"integers with calibration, {dynamic} without, {stored} can be stored in 8 bits"
        )
    return told


def reason_kept(layer: Layer, target: Target) -> str:
    """Why a layer can be nothing but float32; '' where it can be something else."""
    reasons = [why_not(layer, choice) for choice in ("int8", "int8-dynamic", "weights-int8")]
    return reasons[-1] if all(reasons) else ""


def _first(layer: Layer, preferences: Sequence[str], target: Target) -> str:
    """The first choice that the layer and the target can have, else float32."""
    for preference in preferences:
        choice, _, kind = preference.partition(":")
        if kind and layer.kind != kind:
            continue
        if runs_on(layer, choice, target) and not why_not(layer, choice):
            return choice
    return "float32"
