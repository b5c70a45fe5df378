"""Refitting in sequence: the closed form, less error, and nothing touched that should not be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from numpy.typing import NDArray

from packlight.graph.apply import apply_recipe
from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.model import Model, copy_model
from packlight.graph.sequential import Refitted, refit_in_sequence
from packlight.recipe import Recipe
from packlight.samples import open_samples

Array = NDArray[Any]
DAMPING = 0.01
COMPENSATED = {"bias_correction": True}
NEAREST = {"rounding": "nearest"}
NET = """g (float[n, 16] x) => (float[n, 8] y) {
    [first] a = Gemm (x, w1, b1) r = Relu(a)
    [second] b = Gemm <alpha = 0.5> (r, w2, b2) s = Relu(b)
    [third] y = Gemm (s, w3, b3) }"""


def correlated(random: np.random.Generator, rows: int, inputs: int = 16) -> NDArray[np.float32]:
    """Rows whose columns have much in common, and means that are not 0."""
    mixing = random.standard_normal((inputs // 3, inputs))
    found = random.standard_normal((rows, inputs // 3)) @ mixing
    noise = 0.1 * random.standard_normal((rows, inputs))
    return (found + noise + random.standard_normal(inputs)).astype(np.float32)


def net(bench: Bench, random: np.random.Generator) -> Model:
    sizes = ((16, 24), (24, 24), (24, 8))
    weights = {f"w{i + 1}": random.standard_normal(s) / s[0] ** 0.5 for i, s in enumerate(sizes)}
    weights |= {f"b{i + 1}": 0.3 * random.standard_normal(s[1]) for i, s in enumerate(sizes)}
    return bench.model(NET, **{name: array.astype(np.float32) for name, array in weights.items()})


def refit(
    bench: Bench,
    model: Model,
    choices: Mapping[str, str],
    data: Array,
    how: Mapping[str, Any] = COMPENSATED,
    **settings: Any,
) -> Refitted:
    samples = open_samples({"x": data}, model.inputs)
    recipe = Recipe(layers=tuple(choices.items()), sequential=True, **how)
    return refit_in_sequence(
        model.ir,
        recipe,
        bench.observe(model, {"x": data}),
        samples,
        range(len(samples)),
        model.inputs,
        process=bench.process,
        **settings,
    )


def written(
    bench: Bench,
    refitted: Refitted,
    choices: Mapping[str, str],
    how: Mapping[str, Any] = COMPENSATED,
) -> Path:
    recipe = Recipe(layers=tuple(choices.items()), sequential=True, **how)
    found, _ = apply_recipe(refitted.graph, recipe, refitted.observations, weights=refitted.weights)
    return bench.save(found)


def stored(graph: Any) -> dict[str, Array]:
    return {
        str(name): value.const_value.numpy().copy()
        for name, value in graph.graph.initializers.items()
    }


def test_the_second_layer_is_refitted_as_the_closed_form_says(bench: Bench) -> None:
    """V = (W C + l W) (S + l I)^-1 on centred moments, by hand from the rows themselves."""
    random = np.random.default_rng(3)
    model, x = net(bench, random), correlated(random, 200)
    names = ("first", "second")
    choices = dict.fromkeys(names, "weights-int3")
    found = refit(bench, model, choices, x, NEAREST, damping=DAMPING)
    assert found.layers == names
    # What the first layer gives after it was rounded, from a file of it alone.
    only = written(bench, found, {"first": "weights-int3"}, NEAREST)
    before, after = (stored(graph) for graph in (model.ir, found.graph))
    tapped = {}
    for number, source in enumerate((model.ir, only)):
        tapped[number] = hidden(bench, source, x)
    u, v = (tapped[number].astype(np.float64) for number in (0, 1))
    cross = (u - u.mean(0)).T @ (v - v.mean(0)) / len(x)
    own = (v - v.mean(0)).T @ (v - v.mean(0)) / len(x)
    pull = DAMPING * np.mean(np.diag(own))
    weight = before["w2"].astype(np.float64).T * 0.5
    expected = (weight @ cross + pull * weight) @ np.linalg.inv(own + pull * np.eye(len(own)))
    alive = np.diag(own) > 1e-9
    np.testing.assert_allclose(0.5 * after["w2"].T[:, alive], expected[:, alive], rtol=0, atol=2e-3)
    shift = weight @ u.mean(0) - (0.5 * after["w2"].T.astype(np.float64)) @ v.mean(0)
    np.testing.assert_allclose(after["b2"] - before["b2"], shift, rtol=0, atol=2e-4)
    # It is worth it: far nearer to what the original layer gives than the old weight is.
    wanted = u @ weight.T + before["b2"]
    new = v @ (0.5 * after["w2"]) + after["b2"]
    old = v @ weight.T + before["b2"]
    assert np.square(new - wanted).sum() < 0.8 * np.square(old - wanted).sum()


BLOCK = """g (float[n, 16] x) => (float[n, 8] y) {
    [first] a = Gemm (x, w1, b1) r = Relu(a)
    [second] b = Gemm (r, w2, b2) [sum] t = Add(r, b)
    [third] y = Gemm (t, w3, b3) }"""


def block(bench: Bench, random: np.random.Generator) -> Model:
    """`net` with a shortcut around its second layer."""
    plain = stored(net(bench, random).ir)
    return bench.model(BLOCK, **plain)


def test_a_layer_beside_a_shortcut_makes_up_for_what_that_lost(bench: Bench) -> None:
    """The target is the original's sum less the compressed shortcut, by hand from the rows."""
    random = np.random.default_rng(5)
    model, x = block(bench, random), correlated(random, 200)
    names = ("first", "second")
    found = refit(bench, model, dict.fromkeys(names, "weights-int2"), x, NEAREST, damping=DAMPING)
    only = written(bench, found, {"first": "weights-int2"}, NEAREST)
    before, after = (stored(graph) for graph in (model.ir, found.graph))
    v = hidden(bench, only, x).astype(np.float64)
    aim = hidden(bench, model.ir, x, "t").astype(np.float64) - v
    cross = (aim - aim.mean(0)).T @ (v - v.mean(0)) / len(x)
    own = (v - v.mean(0)).T @ (v - v.mean(0)) / len(x)
    pull = DAMPING * np.mean(np.diag(own))
    weight = before["w2"].astype(np.float64).T
    expected = (cross + pull * weight) @ np.linalg.inv(own + pull * np.eye(len(own)))
    alive = np.diag(own) > 1e-9
    np.testing.assert_allclose(after["w2"].T[:, alive], expected[:, alive], rtol=0, atol=2e-3)
    left = aim.mean(0) - after["w2"].T.astype(np.float64) @ v.mean(0)
    np.testing.assert_allclose(after["b2"], left, rtol=0, atol=2e-4)
    # Held to its own old output alone it would leave the shortcut's error as it is.
    u = hidden(bench, model.ir, x).astype(np.float64)
    alone = np.square(v - u).sum()
    assert np.square(aim - v @ after["w2"] - after["b2"]).sum() < 0.5 * alone


@pytest.mark.parametrize("word", ["int3", "int8-dynamic", "weights-int3"])
def test_a_shortcut_is_found_however_the_layers_are_written(bench: Bench, word: str) -> None:
    random = np.random.default_rng(6)
    model, x = block(bench, random), correlated(random, 700)
    choices = dict.fromkeys(("first", "second", "third"), word)
    plain = bench.apply(model, choices, {"x": x[:400]}, bias_correction=True)
    better = written(bench, refit(bench, model, choices, x[:400]), choices)
    wanted = bench.run(model, {"x": x[400:]})[0]
    first, second = (snr_db(wanted, bench.run(p, {"x": x[400:]})[0]) for p in (plain, better))
    assert second > first + (-0.5 if word == "int8-dynamic" else 0.5)


def hidden(bench: Bench, source: Any, x: Array, name: str = "r") -> Array:
    """An inner tensor: of itself what reaches the second layer."""
    from packlight.graph.model import load_model, save_model
    from packlight.graph.observe import with_outputs

    graph = source if hasattr(source, "graph") else load_model(source).ir
    path = bench.folder / f"tap{len(list(bench.folder.iterdir()))}.onnx"
    save_model(with_outputs(graph, [name]), path)
    return bench.run(path, {"x": x})[0]


@pytest.mark.parametrize("word", ["weights-int3", "int3", "weights-coded2"])
def test_the_output_is_nearer_to_the_originals(bench: Bench, word: str) -> None:
    """On rows that calibration did not see, three bits: seed by seed, and clearly in the mean."""
    gains = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        model, x = net(bench, random), correlated(random, 700)
        seen, unseen = x[:400], x[400:]
        choices = dict.fromkeys(("first", "second", "third"), word)
        plain = bench.apply(model, choices, {"x": seen}, bias_correction=True)
        better = written(bench, refit(bench, model, choices, seen), choices)
        wanted = bench.run(model, {"x": unseen})[0]
        without, refitted = (
            snr_db(wanted, bench.run(path, {"x": unseen})[0]) for path in (plain, better)
        )
        gains.append(refitted - without)
    assert min(gains) > -0.5, gains
    assert np.mean(gains) > 0.5, gains


def test_layers_in_float_are_not_touched(bench: Bench) -> None:
    random = np.random.default_rng(1)
    model, x = net(bench, random), correlated(random, 64)
    before = stored(model.ir)
    for left in ("float32", "float16"):
        choices = {"first": "weights-int3", "second": left, "third": "weights-int3"}
        found = refit(bench, model, choices, x)
        after = stored(found.graph)
        assert found.layers == ("first", "third")
        for name in ("w2", "b2"):
            np.testing.assert_array_equal(after[name], before[name])
        assert not np.array_equal(after["w3"], before["w3"])
    # The model that was given stays as it was.
    for name, array in stored(model.ir).items():
        np.testing.assert_array_equal(array, before[name])


def test_the_first_layer_has_nothing_to_make_up_for(bench: Bench) -> None:
    """What reaches it is the same in both, so that its weight stays (weights only)."""
    random = np.random.default_rng(2)
    model, x = net(bench, random), correlated(random, 64)
    before = stored(model.ir)
    found = refit(bench, model, dict.fromkeys(("first", "second", "third"), "weights-int3"), x)
    np.testing.assert_allclose(stored(found.graph)["w1"], before["w1"], atol=1e-4)


def test_layers_that_share_a_weight_are_not_touched(bench: Bench) -> None:
    random = np.random.default_rng(5)
    draw = random.standard_normal
    text = """g (float[n, 16] x) => (float[n, 8] y) {
        [one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, w) s = Relu(b)
        [three] y = MatMul(s, v) }"""
    w, v = 0.25 * draw((16, 16)), 0.25 * draw((16, 8))
    model = bench.model(text, w=w.astype(np.float32), v=v.astype(np.float32))
    choices = dict.fromkeys(("one", "two", "three"), "weights-int4")
    before = stored(model.ir)
    found = refit(bench, model, choices, correlated(random, 64))
    assert found.layers == ("three",)
    np.testing.assert_array_equal(stored(found.graph)["w"], before["w"])


def test_a_recipe_may_name_the_layers_in_any_order(bench: Bench) -> None:
    random = np.random.default_rng(6)
    model, x = net(bench, random), correlated(random, 64)
    names = ("first", "second", "third")
    for word in ("weights-int3", "int4"):
        one, other = (
            stored(refit(bench, model, dict.fromkeys(order, word), x).graph)
            for order in (names, names[::-1])
        )
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_the_same_again_gives_the_same_bytes(bench: Bench) -> None:
    random = np.random.default_rng(7)
    model, x = net(bench, random), correlated(random, 100)
    choices = {"first": "int8", "second": "weights-int3", "third": "int4"}
    files = [
        written(bench, refit(bench, model, choices, x, stages=2), choices).read_bytes()
        for _ in range(2)
    ]
    assert files[0] == files[1]


def test_convolutions_are_refitted_too(bench: Bench) -> None:
    """Kernel order and the drawn positions of both models belong together."""
    text = """g (float[n, 3, 10, 10] x) => (float[n, 4, 5, 5] y) {
        [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu(a)
        [c2] b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2, b2) s = Relu(b)
        [c3] y = Conv (s, w3, b3) }"""
    shapes = {"w1": (8, 3, 3, 3), "w2": (12, 8, 3, 3), "w3": (4, 12, 1, 1)}
    shapes |= {"b1": (8,), "b2": (12,), "b3": (4,)}
    choices = dict.fromkeys(("c1", "c2", "c3"), "weights-int3")
    gains = []
    for seed in (0, 1, 3):
        draw = np.random.default_rng(seed).standard_normal
        weights = {name: (0.3 * draw(shape)).astype(np.float32) for name, shape in shapes.items()}
        model = bench.model(text, **weights)
        x = (np.cumsum(np.cumsum(draw((120, 3, 10, 10)), -1), -2) / 6).astype(np.float32)
        plain = bench.apply(model, choices, {"x": x[:80]}, bias_correction=True)
        found = refit(bench, model, choices, x[:80])
        assert found.layers == ("c1", "c2", "c3")
        better = written(bench, found, choices)
        wanted = bench.run(model, {"x": x[80:]})[0]
        first, second = (snr_db(wanted, bench.run(p, {"x": x[80:]})[0]) for p in (plain, better))
        gains.append(second - first)
    assert np.mean(gains) > 0.3, gains


def test_what_is_not_observed_stays(bench: Bench) -> None:
    """Branches of the graph, and embeddings, have no second moments."""
    random = np.random.default_rng(9)
    text = """g (float[n, 16] x, int64[n] i) => (float[n, 8] y) {
        [look] e = Gather(t, i) a = Add(x, e) [last] y = MatMul(a, w) }"""
    t = random.standard_normal((10, 16)).astype(np.float32)
    w = random.standard_normal((16, 8)).astype(np.float32)
    model = bench.model(text, t=t, w=w)
    data = {"x": correlated(random, 40), "i": random.integers(0, 10, 40)}
    samples = open_samples(data, model.inputs)
    recipe = Recipe(layers=(("look", "weights-int4"), ("last", "weights-int4")), sequential=True)
    found = refit_in_sequence(
        copy_model(model.ir),
        recipe,
        bench.observe(model, data),
        samples,
        range(40),
        model.inputs,
        process=bench.process,
    )
    assert found.layers == ("last",)
    layer = next(one for one in find_layers(found.graph) if one.name == "look")
    np.testing.assert_array_equal(weight_matrix(layer), t)


def test_a_bias_that_counts_nothing_stays_and_nothing_breaks(bench: Bench) -> None:
    """With beta 0 there is nothing for the bias to take over."""
    random = np.random.default_rng(8)
    text = NET.replace("Gemm <alpha = 0.5> (r", "Gemm <alpha = 0.5, beta = 0.0> (r")
    plain = stored(net(bench, random).ir)
    model, x = bench.model(text, **plain), correlated(random, 200)
    choices = dict.fromkeys(("first", "second", "third"), "weights-int3")
    found = refit(bench, model, choices, x)
    after = stored(found.graph)
    assert all(np.isfinite(array).all() for array in after.values())
    np.testing.assert_array_equal(after["b2"], plain["b2"])
    assert np.abs(after["w2"] - plain["w2"]).max() > 1e-3
    wanted = bench.run(model, {"x": x})[0]
    assert snr_db(wanted, bench.run(written(bench, found, choices), {"x": x})[0]) > 8
