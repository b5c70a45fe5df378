"""A recipe on a model, step by step: dull on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import onnx_ir as ir

from packlight.errors import UnusableRecipe
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import copy_model
from packlight.graph.observe import Observations
from packlight.graph.rewrite.activations import round_activations
from packlight.graph.rewrite.blocks import BlockForm, store_blocks, why_not_blocks
from packlight.graph.rewrite.decode import store_packed
from packlight.graph.rewrite.dynamic import quantize_dynamically, why_not_dynamic, why_not_vector
from packlight.graph.rewrite.packing import Packed, pack_layers
from packlight.graph.rewrite.quantize import Ranges, keep_float, quantize_layers
from packlight.graph.rewrite.store import store_float16, why_not_float16, why_not_stored
from packlight.graph.rewrite.tie import share_codes, tie_transposed
from packlight.graph.rewrite.weights import Rounded, Rounding, round_layers
from packlight.graph.walk import constant_of
from packlight.recipe import CHOICES, Choice, Recipe, check_layers, parse_choice

_MOST_LISTED = 12


@dataclass
class Weights:
    """Weights already rounded, by how and layer, so that no trial rounds them again.

    Of one model and what was observed of it. rounded: for integer kernels. packed: as stored.
    """

    rounded: dict[tuple[str, bool, int, int], dict[str, Rounded]] = field(default_factory=dict)
    packed: dict[tuple[str, str, int], dict[tuple[str, int], Packed]] = field(default_factory=dict)

    def rounded_for(self, recipe: Recipe, bits: int) -> dict[str, Rounded]:
        """Codes of that many bits that fit a recipe's rounding, by layer."""
        # Codes of fewer bits keep the pair limit by themselves.
        key = (recipe.rounding, recipe.pair_limit and bits == 8, bits, recipe.seed)
        return self.rounded.setdefault(key, {})

    def packed_for(self, recipe: Recipe, word: str) -> dict[tuple[str, int], Packed]:
        """Stored weights of a choice that fit a recipe's rounding, by layer and number."""
        return self.packed.setdefault((recipe.rounding, word, recipe.seed), {})


def apply_recipe(
    model: ir.Model,
    recipe: Recipe,
    observations: Observations,
    *,
    accuracy_level: int = 4,
    block_form: BlockForm = "MatMulNBits",
    weights: Weights | None = None,
) -> tuple[ir.Model, dict[str, str]]:
    """Give a compressed copy of a simplified model, and notes by layer.

    observations: of the same model; static layers need the ranges of what they touch.
    accuracy_level, block_form: how products with weights in blocks are computed and written.
    A layer that cannot have its choice stays as it is, and its note says why.
    Raises UnusableRecipe where the recipe names a layer that the model does not have.
    """
    copy = copy_model(model)
    notes: dict[str, str] = {}
    layers = {layer.name: layer for layer in find_layers(copy)}
    check_layers(recipe, layers)
    chosen: list[tuple[Layer, Choice]] = []
    for name, word in recipe.layers:
        reason = why_not(layers[name], word)
        if reason:
            notes[name] = f"left as it is, not {word}: {reason}"
        else:
            chosen.append((layers[name], parse_choice(word)))
    few = [(layer, one) for layer, one in chosen if one.activation_bits == 4]
    static = [pair for pair in chosen if pair[1].compute == "static" and pair not in few]
    dynamic = [layer for layer, one in chosen if one.compute == "dynamic"]
    blocks = [(layer, one) for layer, one in chosen if one.compute == "blocks"]
    decoded = [(layer, form) for layer, one in chosen if (form := stored_as(one)) is not None]
    weights = weights or Weights()
    # Before anything is rewritten: layers that share a weight are rounded together.
    rounded = round_chosen(copy, [*static, *_products(dynamic)], recipe, observations, weights)
    packed = pack_chosen(copy, [*blocks, *decoded], recipe, observations, weights)
    packed |= share_codes(
        [layer for layer, one in decoded if layer.kind == "Gather" and one.word == "weights-int8"],
        [layer for layer, one in chosen if one.weights == "int8" and layer.name in rounded],
        rounded,
    )
    notes |= {name: found.note for (name, _), found in packed.items() if found.note}
    ranges = cast(Ranges, recipe.ranges)
    round_activations(copy, [layer for layer, _ in few], observations, ranges=ranges)
    if static:
        _, found_notes = quantize_layers(
            copy,
            [layer for layer, _ in static],
            observations,
            ranges=ranges,
            bias_correction=recipe.bias_correction,
            wide=frozenset(layer.name for layer, one in static if one.activation_bits == 16),
            rounded=rounded,
        )
        notes |= found_notes
    quantize_dynamically(copy, dynamic, rounded, pair_limit=recipe.pair_limit)
    store_blocks(
        copy,
        [layer for layer, _ in blocks],
        packed,
        accuracy_level=accuracy_level,
        form=block_form,
    )
    for word in dict.fromkeys([*CHOICES, *(one.word for _, one in decoded)]):
        group = [layer for layer, one in decoded if one.word == word]
        if group:
            store_packed(copy, group, packed)
    store_float16(copy, [layer for layer, one in chosen if one.word == "float16"])
    keep_float(copy, (layer.name for layer, _ in static))
    tie_transposed(copy)
    copy.graph.sort()
    return copy, notes


def stored_as(choice: Choice) -> Choice | None:
    """The choice that says how weights are stored that are decoded at load; None for others."""
    if choice.activation_bits == 4:
        return parse_choice(f"weights-{choice.weights}")
    plain = choice.compute == "float" and not choice.weights.startswith("float")
    return choice if plain else None


def _products(dynamic: Iterable[Layer]) -> list[tuple[Layer, Choice]]:
    return [(layer, parse_choice("int8")) for layer in dynamic if layer.kind != "LSTM"]


def round_chosen(
    model: ir.Model,
    layers: Iterable[tuple[Layer, Choice]],
    recipe: Recipe,
    observations: Observations,
    weights: Weights,
) -> dict[str, Rounded]:
    """Weights for integer kernels, by layer."""
    groups: dict[int, list[Layer]] = {}
    for layer, choice in layers:
        groups.setdefault(int(choice.bits), []).append(layer)
    found: dict[str, Rounded] = {}
    for bits, group in groups.items():
        cache = weights.rounded_for(recipe, bits)
        round_layers(
            model,
            group,
            observations.moments,
            cache,
            rounding=cast(Rounding, recipe.rounding),
            pair_limit=recipe.pair_limit,
            bits=bits,
            seed=recipe.seed,
        )
        found |= {layer.name: cache[layer.name] for layer in group}
    return found


def pack_chosen(
    model: ir.Model,
    layers: Sequence[tuple[Layer, Choice]],
    recipe: Recipe,
    observations: Observations,
    weights: Weights,
) -> dict[tuple[str, int], Packed]:
    """Stored weights, by layer and number of the weight."""
    caches = {one.word: weights.packed_for(recipe, one.word) for _, one in layers}
    pack_layers(
        model,
        layers,
        observations.moments,
        caches,
        rounding=cast(Rounding, recipe.rounding),
        seed=recipe.seed,
    )
    return {
        (layer.name, index): caches[one.word][layer.name, index]
        for layer, one in layers
        for index in range(len(layer.weights))
    }


def check_choices(recipe: Recipe, layers: Iterable[Layer]) -> None:
    """Raise UnusableRecipe where the recipe names no layer, or one that cannot have its choice."""
    known = {layer.name: layer for layer in layers}
    check_layers(recipe, known)
    for name, choice in recipe.layers:
        reason = why_not(known[name], choice)
        if reason:
            possible = _listed(possible_choices(known[name], CHOICES))
            raise UnusableRecipe(
                f"{recipe.place(name)}The layer {name!r} ({known[name].op}) cannot be "
                f"{choice!r}: {reason}. It can be {possible}."
            )


def why_not(layer: Layer, choice: str) -> str:
    """The reason why a layer cannot have a choice; '' where it can."""
    one = parse_choice(choice)
    if one.word == "float32":
        return ""
    if one.activation_bits == 4:
        return _why_not_observed(layer) or why_not_stored(layer)
    if one.compute == "static":
        return _why_not_static(layer)
    if one.compute == "dynamic":
        return why_not_dynamic(layer)
    if one.compute == "blocks":
        return why_not_blocks(layer)
    return why_not_float16(layer) if one.word == "float16" else why_not_stored(layer)


def possible_choices(layer: Layer, choices: Iterable[str]) -> tuple[str, ...]:
    """Those of the choices that a layer can have."""
    return tuple(choice for choice in choices if not why_not(layer, choice))


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - _MOST_LISTED
    text = ", ".join(words[:_MOST_LISTED])
    return f"{text} and {rest} others" if rest > 0 else text


def _why_not_observed(layer: Layer) -> str:
    """The reason why a layer's activations cannot have fewer bits; '' where they can."""
    if layer.kind not in ("Conv", "Gemm", "MatMul"):
        return f"{layer.op} has no static 8-bit kernel"
    if layer.graph_path:
        return "it lies in a subgraph, whose activations cannot be observed"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return "static 8-bit needs float32 weights"
    if layer.node.inputs[0] is None or constant_of(layer.node.inputs[0]) is not None:
        return "its input is constant"
    return ""


def _why_not_static(layer: Layer) -> str:
    reason = _why_not_observed(layer)
    if reason:
        return reason
    inputs = layer.node.inputs
    if layer.kind != "MatMul" and len(inputs) > 2 and inputs[2] is not None and layer.bias is None:
        return "its bias is computed at run time"
    return why_not_vector(layer)
