"""Coded weights: the bias takes over what is constant, in few bits; rates are any number."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bench import Bench
from layer_kinds import normal

from packlight.errors import UnusableRecipe
from packlight.graph.apply import apply_recipe
from packlight.graph.layers import find_layers
from packlight.graph.observe import Observations
from packlight.graph.rewrite.packing import own_bias, pack_weight
from packlight.maths.moments import add_to_moments, empty_moments
from packlight.recipe import Recipe, parse_choice, read_recipe, write_recipe

GEMM = """g (float[n,24] x) => (float[n,12] y) {{ y = Gemm<{attributes}>(x, w, b) }}"""


def inputs() -> np.ndarray:
    return (3 + normal(400, 5, size=1.0) @ normal(5, 24, size=1.0)).astype(np.float32)


def test_the_mean_output_stays_and_the_bias_is_short(bench: Bench) -> None:
    weights = {"w": normal(12, 24), "b": normal(12)}
    model = bench.model(GEMM.format(attributes="transB = 1"), **weights)
    (layer,) = find_layers(model.ir)
    x = inputs()
    moments = add_to_moments(empty_moments(24), x)
    recipe = Recipe(layers=((layer.name, "weights-coded0.7"),))
    graph, _ = apply_recipe(model.ir, recipe, Observations(moments={layer.name: moments}))
    path = bench.save(graph)
    want, got = (bench.run(one, {"x": x})[0] for one in (model.source, path))
    found = pack_weight(layer, parse_choice("weights-coded0.7"), moments)
    assert found.bias_step > 0
    off = (got - want).mean(axis=0)
    assert np.abs(off).max() <= 0.51 * found.bias_step
    assert np.sqrt(np.square(got - want).mean()) > found.bias_step
    (after,) = [one for one in graph.graph.initializers.values() if one.name == "b"]
    assert after.const_value is not None
    steps = after.const_value.numpy() / found.bias_step
    np.testing.assert_array_equal(steps, np.rint(steps))


@pytest.mark.parametrize("attributes", ["transB = 1, beta = 2.0", "transB = 1, alpha = 0.5"])
def test_a_bias_that_is_scaled_stays(bench: Bench, attributes: str) -> None:
    weights = {"w": normal(12, 24), "b": normal(12)}
    (layer,) = find_layers(bench.model(GEMM.format(attributes=attributes), **weights).ir)
    moments = add_to_moments(empty_moments(24), inputs())
    found = pack_weight(layer, parse_choice("weights-coded1"), moments)
    assert found.bias_shift is None and found.bias_step == 0


def test_a_bias_of_two_layers_is_nobodys_own(bench: Bench) -> None:
    text = """g (float[n,6] x) => (float[n,6] y) {
        z = Gemm(x, w, b)
        y = Gemm(z, v, b)
    }"""
    model = bench.model(text, w=normal(6, 6), v=normal(6, 6), b=normal(6))
    assert [own_bias(layer) for layer in find_layers(model.ir)] == [None, None]


def test_rates_are_any_number_within_limits(bench: Bench) -> None:
    assert parse_choice("weights-coded0.35").bits == 0.35
    for word in ("weights-coded0", "weights-coded9", "weights-coded-1", "weights-coded0.00001"):
        with pytest.raises(UnusableRecipe, match="no choice"):
            parse_choice(word)
    path = bench.folder / "recipe.yaml"
    path.write_text(write_recipe(Recipe(layers=(("fc", "weights-coded0.35"),))))
    assert read_recipe(path).choice("fc") == "weights-coded0.35"
