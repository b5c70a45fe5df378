"""Scales that are searched for: by what weights and activations are rounded to."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_bench import snr_db

from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model, load_model
from packlight.graph.rewrite import smooth_search as room
from packlight.graph.rewrite.smooth import smooth_by
from packlight.graph.rewrite.smooth_search import Aim, find_aim, reaches, search_scales
from packlight.maths.balance import search_smoothing
from packlight.maths.histograms import add_to_histogram, empty_histogram
from packlight.maths.moments import add_to_moments, empty_moments
from packlight.recipe import Recipe

STATIC, BLOCKS = Aim(8, False, 8), Aim(4, True, None)


draw = np.random.default_rng(0)


def numbers(*shape):
    return draw.standard_normal(shape).astype(np.float32)


def spread(bench, *, gain, outputs=5, a=None):
    """A norm whose channels reach as far as `gain` says, and two layers that read it."""
    text = f"""net (float[batch, 64] x) => (float[batch, {outputs}] y, float[batch, 2] z) {{
        n = LayerNormalization(x, gain, shift)
        y = MatMul(n, a)
        z = MatMul(n, b)
    }}"""
    a = numbers(64, outputs) if a is None else a
    weights = {"a": a, "b": np.sign(numbers(64, 2)), "gain": gain, "shift": 0 * gain}
    path = bench.folder / f"inferred{len(list(bench.folder.iterdir()))}.onnx"
    source = onnx.load(bench.model(text, **weights).source)
    onnx.save(onnx.shape_inference.infer_shapes(source), path)
    return load_model(path)


def test_the_aim_is_how_most_weights_are_rounded(bench):
    layers = find_layers(spread(bench, gain=np.ones(64, np.float32)).ir)

    def aim(first, second):
        return find_aim(Recipe(layers=(("y", first), ("z", second))), layers)

    assert aim("float32", "float16") is None
    assert aim("int8", "weights-int4-blocks") == STATIC
    assert aim("weights-int4-blocks", "int8") == aim("weights-int4-blocks", "float32") == BLOCKS
    assert aim("int8-dynamic", "float32") == STATIC
    assert aim("int4", "float32") == Aim(4, False, 8)
    assert aim("weights-nf4", "float32") == Aim(4, False, None)
    assert aim("int8-wide", "float32") == Aim(8, False, 16)


def test_channels_reach_as_far_as_the_tensor_was_seen_to():
    x = np.array([[1.0, 10, 0], [3.0, 10, 0], [1.0, -10, 0], [3.0, -10, 0]], np.float32)
    moments = add_to_moments(empty_moments(3), x)
    # Means 2 and 0, deviations 1 and 10: one deviation takes the widest to both ends.
    seen = reaches(moments, [add_to_histogram(empty_histogram(), x)])
    np.testing.assert_allclose(seen, [[1, -10, 0], [3, 10, 0]])
    np.testing.assert_allclose(reaches(moments, []), [[-2, -40, 0], [6, 40, 0]])
    # Nothing reaches beyond what the whole tensor did: a Relu's output stays above 0.
    x = np.abs(np.random.default_rng(0).standard_normal((500, 3)) * [1, 2, 20])
    moments = add_to_moments(empty_moments(3), x)
    low, high = reaches(moments, [add_to_histogram(empty_histogram(), x)])
    assert low.min() >= 0 and high.max() == pytest.approx(x.max(), rel=1e-6)


def test_nothing_is_scaled_where_nothing_gains(bench):
    model = spread(bench, gain=np.ones(64, np.float32), a=np.sign(numbers(64, 5)))
    seen = bench.observe(model, {"x": numbers(200, 64)})
    assert search_scales(model.ir, seen, Aim(8, False, None)) == {}


@pytest.mark.parametrize(("aim", "choice"), [(STATIC, "int8"), (BLOCKS, "weights-int4-blocks")])
def test_searched_scales_lower_the_error_and_keep_the_function(bench, aim, choice):
    gain = np.exp(np.random.default_rng(1).normal(0, 0.3, 64)).astype(np.float32)
    gain[[3, 40]] *= 40
    model = spread(bench, gain=gain)
    data = {"x": numbers(200, 64)}
    seen = bench.observe(model, data)
    scales = search_scales(model.ir, seen, aim)
    assert list(scales) == ["y"] and scales["y"].shape == (64,)
    graph = copy_model(model.ir)
    assert smooth_by(graph, scales) == ["y"]
    path = bench.save(graph)
    wanted = bench.run(model, data)
    for one, other in zip(wanted, bench.run(path, data), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-3)
    errors = []
    for start in (model, load_model(path)):
        found = bench.run(bench.apply(start, choice, data, rounding="nearest"), data)
        errors.append(snr_db(wanted[0], found[0]))
    assert errors[1] > errors[0] + 2.0


def test_some_outputs_stand_for_all_of_a_large_group(bench, monkeypatch):
    gain = np.ones(64, np.float32)
    gain[3] = 40
    model = spread(bench, gain=gain, outputs=200)
    seen = bench.observe(model, {"x": numbers(200, 64)})
    judged = []

    def spy(weights, *rest, **settings):
        judged.append(weights[0].shape)
        return search_smoothing(weights, *rest, **settings)

    monkeypatch.setattr(room, "search_smoothing", spy)
    whole = search_scales(model.ir, seen, STATIC)["y"]
    monkeypatch.setattr(room, "PRODUCTS", 1)
    some = search_scales(model.ir, seen, STATIC)["y"]
    assert judged == [(202, 64), (room.FEWEST_OUTPUTS, 64)]
    assert np.abs(np.log(some / whole)).max() < 0.7 and some[3] > 3
