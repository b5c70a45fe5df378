from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.plan.candidates import LEAST_SHARE, reason_kept, whole_recipes
from packlight.recipe import Recipe
from packlight.targets import TARGETS, Target, find_target

LAPTOP = find_target("laptop")


@pytest.fixture(scope="module")
def layers(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]
) -> tuple[Layer, ...]:
    """A convolution, a table, an LSTM and a MatMul: a layer for each kind of choice."""
    draw = np.random.default_rng(0).standard_normal
    path = write_model(
        tmp_path_factory.mktemp("candidates") / "net.onnx",
        """net (float[1, 32, 8, 8] x, int64[5, 1] ids) => (float[n, 32] p, float[a, b, c, d] s) {
            conv = Conv <pads = [1, 1, 1, 1]> (x, k)
            flat = GlobalAveragePool(conv)
            axes = Constant <value_ints = [2, 3]> ()
            row = Squeeze(flat, axes)
            p = MatMul(row, w)
            words = Gather(table, ids)
            s, h, c = LSTM <hidden_size = 32> (words, lw, lr)
        }""",
        k=draw((32, 32, 3, 3)).astype(np.float32),
        w=draw((32, 32)).astype(np.float32),
        table=draw((64, 32)).astype(np.float32),
        lw=draw((1, 128, 32)).astype(np.float32),
        lr=draw((1, 128, 32)).astype(np.float32),
    )
    return find_layers(load_model(path).ir)


def choices(recipe: Recipe) -> dict[str, str]:
    return dict(recipe.layers)


def test_the_first_recipe_changes_nothing_and_all_name_every_layer(
    layers: tuple[Layer, ...],
) -> None:
    found = whole_recipes(layers, LAPTOP, generated=False, seed=3)
    label, first = found[0]
    assert label == "simplified only"
    assert set(choices(first).values()) == {"float32"}
    for _, recipe in found:
        assert [name for name, _ in recipe.layers] == [layer.name for layer in layers]
        assert (recipe.target, recipe.pair_limit, recipe.seed) == ("laptop", True, 3)


def test_each_kind_of_layer_is_tried_with_what_it_can_be(layers: tuple[Layer, ...]) -> None:
    found = {
        label: choices(recipe) for label, recipe in whole_recipes(layers, LAPTOP, generated=False)
    }
    names = {layer.kind: layer.name for layer in layers}
    assert found["int8 static"][names["Conv"]] == "int8"
    assert found["int8 static"][names["MatMul"]] == "int8"
    mixed = found["int8 static and dynamic"]
    assert mixed[names["Conv"]] == "int8"
    assert mixed[names["MatMul"]] == "int8-dynamic"
    assert mixed[names["LSTM"]] == "int8-dynamic"
    assert mixed[names["Gather"]] == "weights-int8"
    assert found["int4 weights in blocks"][names["Gather"]] == "weights-int4-blocks"
    # Dynamic quantization of convolutions is many times slower than float.
    assert all(recipe[names["Conv"]] != "int8-dynamic" for recipe in found.values())


def test_without_samples_nothing_needs_activation_ranges(layers: tuple[Layer, ...]) -> None:
    found = whole_recipes(layers, LAPTOP, generated=True)
    used = {choice for _, recipe in found for _, choice in recipe.layers}
    assert used.isdisjoint({"int8", "int8-wide"})
    assert {"weights-int8", "float16"} <= used


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("generated", [False, True])
def test_no_two_recipes_are_nearly_the_same(
    layers: tuple[Layer, ...], target: Target, generated: bool
) -> None:
    found = [choices(recipe) for _, recipe in whole_recipes(layers, target, generated=generated)]
    sizes = {layer.name: layer.bytes for layer in layers}
    for number, one in enumerate(found):
        for other in found[:number]:
            apart = sum(sizes[name] for name in sizes if one[name] != other[name])
            assert apart > LEAST_SHARE * sum(sizes.values())


def test_a_model_without_layers_is_only_simplified() -> None:
    found = whole_recipes([], LAPTOP, generated=False)
    assert [(label, recipe.layers) for label, recipe in found] == [("simplified only", ())]


def test_a_layer_has_a_reason_only_where_nothing_can_be_done(layers: tuple[Layer, ...]) -> None:
    assert [reason_kept(layer, LAPTOP) for layer in layers] == [""] * len(layers)


def test_why_a_layer_can_be_nothing_else(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    path = write_model(
        tmp_path / "net.onnx",
        "net (float[n, 1] x) => (float[n, 1] y) { y = MatMul(x, w) }",
        w=np.ones((1, 1), np.float32),
    )
    (layer,) = find_layers(load_model(path).ir)
    reason = reason_kept(layer, LAPTOP)
    used = {c for _, r in whole_recipes([layer], LAPTOP, generated=True) for _, c in r.layers}
    assert bool(reason) == (used == {"float32"})
