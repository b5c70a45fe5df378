"""Quantization-aware training: a quantized graph is trained with its rounding in the loop.

The weights that the codes stand for are trained in floats and rounded in every step, with the
gradient passed straight through (Bengio et al. 2013), and the scales of weights and activations
along with them (Esser et al. 2020, "Learned step size quantization"). The original is the
teacher. What comes out has the same operators, other codes, scales and biases.

Zero points stay. Codes keep what the recipe says of them: their bits, zeros that are asked for,
and for 8 bits the pair limit, which each step imposes again on the codes that it rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from packlight.graph.layers import Layer, matrix_to_weight
from packlight.graph.model import copy_model
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.weights import PAIR_LIMIT, is_depthwise, weight_grid
from packlight.graph.torch.code_sites import CodeSite, constant_nodes, find_code_sites
from packlight.graph.torch.distill import Distilled, Lessons, distill
from packlight.graph.torch.fake_quantized import CodeRule, FakeQuantized
from packlight.graph.torch.naming import constant_tensor
from packlight.recipe import Choice, Recipe, parse_choice

RATE = 8e-4
"""The largest rate, less than without rounding: what a step brings across the middle between two
codes is noise. On resnet20 with 4-bit weights and activations 8e-4 itself left the loss above
where it began halfway through 210 steps; 3e-4 took 15 % off it in 240."""


@dataclass(frozen=True)
class Tuned:
    """A quantized graph with what was learned, and how training went.

    training: None where there was nothing to train. notes: what the report should say.
    """

    model: ir.Model
    training: Distilled | None
    notes: tuple[str, ...] = ()


def tune(
    original: ir.Model,
    quantized: ir.Model,
    recipe: Recipe,
    layers: Sequence[Layer],
    lessons: Lessons,
    *,
    hints: bool = True,
) -> Tuned:
    """Train `quantized` towards `original` on unlabelled samples; never worse than it was.

    recipe: what was done to the layers, those of the graph that was quantized. Codes of
    codebooks, of operators that read packed bytes, of rows that are looked up, and of weights
    rounded for entropy coding stay as they are. hints: as in `distill`.
    Raises UnsupportedOperator where PyTorch cannot compute the graph, WrongUsage as `distill`.
    """
    rules = find_rules(quantized, recipe, layers)
    choices = {name: parse_choice(word) for name, word in recipe.layers}
    module = FakeQuantized(
        quantized,
        rules,
        frozen=[name for name, one in choices.items() if one.weights == "coded"],
        sparse=[name for name, one in choices.items() if one.zeros is not None],
    )
    notes = _notes(quantized, choices, rules)
    if not module.learns:
        return Tuned(copy_model(quantized), None, (*notes, "there was nothing to tune"))
    found = distill(original, quantized, module, lessons, word="tuning", hints=hints, rate=RATE)
    tuned = module.return_codes() if found.better else copy_model(quantized)
    return Tuned(tuned, found, notes)


def find_rules(quantized: ir.Model, recipe: Recipe, layers: Sequence[Layer]) -> dict[str, CodeRule]:
    """Which codes may be trained, by name, and what they may be."""
    known = {layer.name: layer for layer in layers}
    choices = {name: parse_choice(word) for name, word in recipe.layers}
    constant, _ = constant_nodes(quantized.graph)
    rules = {}
    for site in find_code_sites(quantized.graph, constant):
        readers = [str(node.name) for node in site.readers]
        words = [choices[name] for name in readers if name in choices]
        if not words or len(words) != len(readers) or not all(_is_plain(one) for one in words):
            continue
        rules[str(site.codes.name)] = _rule(site, words, [known[name] for name in readers], recipe)
    return rules


def _is_plain(choice: Choice) -> bool:
    """Whether weights are integers times a scale."""
    return choice.weights.startswith("int")


def _rule(
    site: CodeSite, choices: Sequence[Choice], layers: Sequence[Layer], recipe: Recipe
) -> CodeRule:
    tensor = constant_tensor(site.codes)
    assert tensor is not None
    bits = min(int(choice.weights.removeprefix("int")) for choice in choices)
    present = tensor.numpy()
    sparse = any(choice.zeros is not None for choice in choices)
    if tensor.dtype.name.startswith("UINT"):
        return CodeRule(0, (1 << bits) - 1, sparse)
    grid = weight_grid(bits)
    rule = CodeRule(min(grid.minimum, int(present.min(initial=0))), grid.maximum, sparse)
    static = [
        layer
        for layer, choice in zip(layers, choices, strict=True)
        if choice.compute == "static" and choice.activation_bits != 4 and not is_depthwise(layer)
    ]
    if recipe.pair_limit and bits == 8 and static:
        layout = _layout(static[0])
        if layout.size == present.size:
            return replace(rule, pair_limit=PAIR_LIMIT, layout=layout)
    return rule


def _layout(layer: Layer) -> np.ndarray:
    """[out, in]: where in the flattened weight a kernel finds the inputs of each output."""
    shape = layer.weight_shape
    outputs = shape[layer.out_axis] if layer.kind != "ConvTranspose" else layer.groups * shape[1]
    count = int(np.prod(shape))
    numbers = matrix_to_weight(layer, np.arange(count).reshape(outputs, -1)).reshape(-1)
    places = np.empty(count, np.intp)
    places[numbers] = np.arange(count)
    return places.reshape(outputs, -1)[:, kernel_order(layer)]


def _notes(
    quantized: ir.Model, choices: dict[str, Choice], rules: dict[str, CodeRule]
) -> tuple[str, ...]:
    constant, _ = constant_nodes(quantized.graph)
    sites = find_code_sites(quantized.graph, constant)
    tuned = {str(node.name) for site in sites if site.codes.name in rules for node in site.readers}
    present = {str(node.name) for node in quantized.graph}
    left = [
        one.word
        for name, one in choices.items()
        if not one.weights.startswith("float") and name in present and name not in tuned
    ]
    if not left:
        return ()
    words = ", ".join(dict.fromkeys(left))
    return (f"the weights of {len(left)} layers kept their codes while tuning ({words})",)
