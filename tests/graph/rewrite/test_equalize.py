from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_bench import Bench, snr_db

from packlight.graph.apply import apply_recipe
from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.model import copy_model, load_model
from packlight.graph.rewrite.equalize import equalize
from packlight.recipe import Recipe

CHAIN = """
g (float[N,3,8,8] x) => (float[N,5,M,M] y) {
    a = Conv <kernel_shape = [3, 3]> (x, w1, b1)
    r = Relu (a)
    d = Conv <kernel_shape = [3, 3], group = 6> (r, w2, b2)
    s = LeakyRelu <alpha = 0.1> (d)
    y = Conv <kernel_shape = [1, 1]> (s, w3)
}
"""
RANDOM = np.random.default_rng(0)


def uneven(channels: int) -> np.ndarray:
    """Gains of channels that differ by a factor of a thousand."""
    return np.geomspace(0.03, 30, channels).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    gains = uneven(6).reshape(6, 1, 1, 1)
    return {
        "w1": RANDOM.normal(size=(6, 3, 3, 3)).astype(np.float32) * gains,
        "b1": RANDOM.normal(size=6).astype(np.float32) * gains.ravel(),
        "w2": RANDOM.normal(size=(6, 1, 3, 3)).astype(np.float32),
        "b2": np.zeros(6, np.float32),
        "w3": (RANDOM.normal(size=(5, 6, 1, 1)) / gains.reshape(1, 6, 1, 1)).astype(np.float32),
    }


def test_the_function_stays_and_ranges_become_alike(bench: Bench) -> None:
    model = bench.model(CHAIN, **weights())
    feeds = {"x": RANDOM.normal(size=(32, 3, 8, 8)).astype(np.float32)}
    balanced = copy_model(model.ir)
    assert equalize(balanced) == 2
    before, after = bench.run(model, feeds)[0], bench.run(bench.save(balanced), feeds)[0]
    assert snr_db(before, after) > 100
    layers = find_layers(balanced)
    first, middle, last = (weight_matrix(layer) for layer in layers)
    # Nagel et al. 2019, equation 11: both sides of a channel have one range.
    np.testing.assert_allclose(np.abs(first).max(axis=1), np.abs(middle).max(axis=1), rtol=0.02)
    np.testing.assert_allclose(np.abs(middle).max(axis=1), np.abs(last).max(axis=0), rtol=0.02)


def test_uneven_channels_quantize_better_when_balanced(bench: Bench) -> None:
    model = bench.model(CHAIN, **weights())
    feeds = {"x": RANDOM.normal(size=(64, 3, 8, 8)).astype(np.float32)}
    reference = bench.run(model, feeds)[0]
    noise = {}
    for balanced in (False, True):
        graph = copy_model(model.ir)
        if balanced:
            equalize(graph)
        saved = load_model(bench.save(graph))
        recipe = Recipe(layers=tuple((layer.name, "int8") for layer in find_layers(saved.ir)))
        compressed, _ = apply_recipe(saved.ir, recipe, bench.observe(saved, feeds))
        noise[balanced] = snr_db(reference, bench.run(bench.save(compressed), feeds)[0])
    assert noise[True] > noise[False] + 6


@pytest.mark.parametrize(
    "between",
    [
        "s = Sigmoid (a) y = Conv <kernel_shape = [1, 1]> (s, v)",  # not homogeneous
        "r = Relu (a) z = Conv <kernel_shape = [1, 1]> (r, v) y = Add (z, r)",  # two readers
    ],
)
def test_what_cannot_be_balanced_is_left_alone(bench: Bench, between: str) -> None:
    text = f"""    g (float[N,3,4,4] x) => (float[N,6,4,4] y) {{
        a = Conv <kernel_shape = [1, 1]> (x, w) {between} }}"""
    tensors = {"w": RANDOM.normal(size=(6, 3, 1, 1)), "v": RANDOM.normal(size=(6, 6, 1, 1))}
    model = bench.model(text, **{name: a.astype(np.float32) for name, a in tensors.items()})
    copy = copy_model(model.ir)
    assert equalize(copy) == 0
    for one, other in zip(find_layers(model.ir), find_layers(copy), strict=True):
        np.testing.assert_array_equal(weight_matrix(one), weight_matrix(other))


def test_shared_weights_are_left_alone(bench: Bench) -> None:
    text = """    g (float[N,4,4,4] x) => (float[N,4,4,4] y) {
        a = Conv <kernel_shape = [1, 1]> (x, w)
        r = Relu (a)
        y = Conv <kernel_shape = [1, 1]> (r, w) }"""
    model = bench.model(text, w=RANDOM.normal(size=(4, 4, 1, 1)).astype(np.float32))
    copy: ir.Model = copy_model(model.ir)
    assert equalize(copy) == 0
