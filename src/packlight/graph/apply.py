"""A recipe on a model, step by step: dull on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import onnx_ir as ir

from packlight.errors import UnusableRecipe
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import copy_model
from packlight.graph.observe import Observations
from packlight.graph.rewrite.dynamic import quantize_dynamically, why_not_dynamic, why_not_vector
from packlight.graph.rewrite.quantize import Ranges, quantize_layers
from packlight.graph.rewrite.store import (
    store_blocks,
    store_float16,
    store_int8,
    why_not_blocks,
    why_not_float16,
    why_not_stored,
)
from packlight.graph.rewrite.weights import Rounded, Rounding, round_layers
from packlight.graph.walk import constant_of
from packlight.recipe import CHOICES, Recipe, check_layers


@dataclass
class Weights:
    """Weights already rounded, by how and layer, so that no trial rounds them again."""

    rounded: dict[tuple[str, bool], dict[str, Rounded]] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> dict[str, Rounded]:
        """Those that fit a recipe's rounding."""
        return self.rounded.setdefault((recipe.rounding, recipe.pair_limit), {})


def apply_recipe(
    model: ir.Model,
    recipe: Recipe,
    observations: Observations,
    *,
    accuracy_level: int = 4,
    weights: Weights | None = None,
) -> tuple[ir.Model, dict[str, str]]:
    """Give a compressed copy of a simplified model, and notes by layer.

    observations: of the same model; static layers need the ranges of what they touch.
    A layer that cannot have its choice stays as it is, and its note says why.
    Raises UnusableRecipe where the recipe names a layer that the model does not have.
    """
    copy = copy_model(model)
    notes: dict[str, str] = {}
    layers = {layer.name: layer for layer in find_layers(copy)}
    check_layers(recipe, layers)
    groups: dict[str, list[Layer]] = {choice: [] for choice in CHOICES}
    for name, choice in recipe.layers:
        reason = why_not(layers[name], choice)
        if reason:
            notes[name] = f"left as it is, not {choice}: {reason}"
        else:
            groups[choice].append(layers[name])
    static = [*groups["int8"], *groups["int8-wide"]]
    dynamic = groups["int8-dynamic"]
    rounding = cast(Rounding, recipe.rounding)
    cache = (weights or Weights()).of(recipe)
    # Before anything is rewritten: layers that share a weight are rounded together.
    round_layers(
        copy,
        [*static, *(layer for layer in dynamic if layer.kind != "LSTM")],
        observations.moments,
        cache,
        rounding=rounding,
        pair_limit=recipe.pair_limit,
    )
    if static:
        _, found = quantize_layers(
            copy,
            static,
            observations,
            ranges=cast(Ranges, recipe.ranges),
            rounding=rounding,
            bias_correction=recipe.bias_correction,
            pair_limit=recipe.pair_limit,
            wide=frozenset(layer.name for layer in groups["int8-wide"]),
            rounded=cache,
        )
        notes |= found
    quantize_dynamically(copy, dynamic, cache, pair_limit=recipe.pair_limit)
    store_blocks(copy, groups["weights-int4"], bits=4, accuracy_level=accuracy_level)
    store_blocks(copy, groups["weights-int8-blocks"], bits=8, accuracy_level=accuracy_level)
    store_int8(copy, groups["weights-int8"])
    store_float16(copy, groups["float16"])
    copy.graph.sort()
    return copy, notes


def check_choices(recipe: Recipe, layers: Iterable[Layer]) -> None:
    """Raise UnusableRecipe where the recipe names no layer, or one that cannot have its choice."""
    known = {layer.name: layer for layer in layers}
    check_layers(recipe, known)
    for name, choice in recipe.layers:
        reason = why_not(known[name], choice)
        if reason:
            possible = ", ".join(possible_choices(known[name], CHOICES))
            raise UnusableRecipe(
                f"The layer {name!r} ({known[name].op}) cannot be {choice!r}: {reason}. "
                f"It can be {possible}."
            )


def why_not(layer: Layer, choice: str) -> str:
    """The reason why a layer cannot have a choice; '' where it can."""
    if choice == "float32":
        return ""
    if choice in ("int8", "int8-wide"):
        return _why_not_static(layer)
    if choice == "int8-dynamic":
        return why_not_dynamic(layer)
    if choice in ("weights-int4", "weights-int8-blocks"):
        if choice == "weights-int8-blocks" and layer.kind == "Gather":
            return "Gather has 4-bit blocks only"
        return why_not_blocks(layer)
    return why_not_float16(layer) if choice == "float16" else why_not_stored(layer)


def possible_choices(layer: Layer, choices: Iterable[str]) -> tuple[str, ...]:
    """Those of the choices that a layer can have."""
    return tuple(choice for choice in choices if not why_not(layer, choice))


def _why_not_static(layer: Layer) -> str:
    if layer.kind not in ("Conv", "Gemm", "MatMul"):
        return f"{layer.op} has no static 8-bit kernel"
    if layer.graph_path:
        return "it lies in a subgraph, whose activations cannot be observed"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return "static 8-bit needs float32 weights"
    inputs = layer.node.inputs
    if inputs[0] is None or constant_of(inputs[0]) is not None:
        return "its input is constant"
    if layer.kind != "MatMul" and len(inputs) > 2 and inputs[2] is not None and layer.bias is None:
        return "its bias is computed at run time"
    return why_not_vector(layer)


def stored_bytes(layer: Layer, choice: str) -> int:
    """About how many bytes a layer's weights take in the file under a choice, scales included."""
    outputs = layer.weight_shape[layer.out_axis] if layer.weight_shape else 1
    if choice in ("int8", "int8-wide", "int8-dynamic", "weights-int8"):
        return layer.parameters + 4 * outputs
    if choice == "weights-int8-blocks":
        return layer.parameters + layer.parameters * 5 // 32
    if choice == "weights-int4":
        return layer.parameters // 2 + layer.parameters * 9 // 64
    if choice == "float16":
        return 2 * layer.parameters
    return layer.bytes
