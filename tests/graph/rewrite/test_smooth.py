"""Smoothing: the same function, with range moved from activations into weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model, load_model
from packlight.graph.rewrite.smooth import find_groups, smooth
from packlight.graph.walk import constant_of

draw = np.random.default_rng(0)


def numbers(*shape):
    return draw.standard_normal(shape).astype(np.float32)


def build(bench, text, **weights):
    """A model whose inner shapes are known, as they are after simplifying."""
    path = bench.folder / f"inferred{len(list(bench.folder.iterdir()))}.onnx"
    source = onnx.load(bench.model(text, **weights).source)
    onnx.save(onnx.shape_inference.infer_shapes(source), path)
    return load_model(path)


def values(model, name):
    return constant_of(model.graph.initializers[name]).numpy()


NORM = """net (float[2, 3, 4] x) => (float[2, 3, 5] y, float[2, 3, 2] z) {
    n = LayerNormalization(x, gain, shift)
    y = MatMul(n, a)
    z = MatMul(n, b)
}"""


def test_golden_scales_go_from_the_norm_into_both_layers(bench):
    a = np.diag([1.0, 4, 1, 1]).astype(np.float32)[:, [0, 1, 2, 3, 3]]
    model = build(
        bench,
        NORM,
        gain=np.ones(4, np.float32),
        shift=numbers(4),
        a=a,
        b=np.ones((4, 2), np.float32),
    )
    graph = copy_model(model.ir)
    ranges = {layer.name: np.array([1.0, 1, 16, 1]) for layer in find_layers(graph)}
    assert smooth(graph, ranges, strength=0.5) == ["y"]
    # sqrt(range / weight) = [1, 1/2, 4, 1], divided by its geometric mean 2^(1/4).
    wanted = np.array([1, 0.5, 4, 1]) / 2**0.25
    np.testing.assert_allclose(values(graph, "gain"), 1 / wanted, rtol=1e-6)
    np.testing.assert_allclose(values(graph, "a"), a * wanted[:, None], rtol=1e-6)
    np.testing.assert_allclose(values(graph, "b"), np.repeat(wanted[:, None], 2, 1), rtol=1e-6)


PATHS = {
    # name: (text, weights, how many groups)
    "norm": (NORM, {"gain": (4,), "shift": (4,), "a": (4, 5), "b": (4, 2)}, 1),
    "linear before, through its bias and a Relu": (
        """net (float[2, 3, 4] x) => (float[2, 3, 2] y) {
            m = MatMul(x, a)
            s = Add(shift, m)
            r = Relu(s)
            y = MatMul(r, b)
        }""",
        {"a": (4, 6), "shift": (6,), "b": (6, 2)},
        1,
    ),
    "Gemm rows, through Reshape": (
        """net (float[6, 4] x) => (float[6, 2] y) {
            m = Gemm<transB = 1, alpha = 0.5>(x, a, bias)
            wide = Reshape(m, shape)
            flat = Reshape(wide, back)
            y = Gemm<transB = 1>(flat, b)
        }""",
        {"a": (6, 4), "bias": (1,), "b": (2, 6), "shape": [2, 3, 6], "back": [-1, 6]},
        1,
    ),
    "values through attention": (
        """net (float[1, 3, 4] x) => (float[1, 3, 2] y) {
            v = MatMul(x, a)
            heads = Reshape(v, split)
            turned = Transpose<perm = [0, 2, 1, 3]>(heads)
            scores = MatMul(x, q)
            p = Softmax(scores)
            one = Unsqueeze(p, axis)
            mixed = MatMul(one, turned)
            back = Transpose<perm = [0, 2, 1, 3]>(mixed)
            joined = Reshape(back, join)
            y = MatMul(joined, b)
        }""",
        {"a": (4, 6), "q": (4, 3), "b": (6, 2), "split": [1, 3, 2, 3], "join": [1, 3, 6]}
        | {"axis": [1]},
        1,
    ),
    "gate and RMS constant": (
        """net (float[2, 4] x) => (float[2, 2] y) {
            n = Mul(gain, x)
            g = MatMul(n, a)
            s = Sigmoid(g)
            u = MatMul(n, c)
            gated = Mul(s, u)
            y = MatMul(gated, b)
        }""",
        {"gain": (4,), "a": (4, 6), "c": (4, 6), "b": (6, 2)},
        2,
    ),
    "Gelu or Sigmoid between": (
        """net (float[2, 4] x) => (float[2, 2] y) {
            m = MatMul(x, a)
            s = Sigmoid(m)
            y = MatMul(s, b)
        }""",
        {"a": (4, 6), "b": (6, 2)},
        0,
    ),
    "a residual reads it too": (
        """net (float[2, 4] x) => (float[2, 4] y) {
            n = LayerNormalization(x, gain)
            m = MatMul(n, a)
            y = Add(m, n)
        }""",
        {"gain": (4,), "a": (4, 4)},
        0,
    ),
    "a square, reached by two ways": (
        """net (float[2, 4] x) => (float[2, 2] y) {
            n = LayerNormalization(x, gain)
            r = Relu(n)
            q = Mul(r, n)
            y = MatMul(q, a)
        }""",
        {"gain": (4,), "a": (4, 2)},
        0,
    ),
    "an output of the model": (
        """net (float[2, 4] x) => (float[2, 2] y, float[2, 4] n) {
            n = LayerNormalization(x, gain)
            y = MatMul(n, a)
        }""",
        {"gain": (4,), "a": (4, 2)},
        0,
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_outputs_stay_equal_and_only_safe_paths_are_taken(bench, path):
    text, shapes, count = PATHS[path]
    weights = {
        name: np.array(shape) if isinstance(shape, list) else numbers(*shape)
        for name, shape in shapes.items()
    }
    model = build(bench, text, **weights)
    graph = copy_model(model.ir)
    assert len(find_groups(graph)) == count
    ranges = {
        layer.name: np.exp(draw.normal(0, 2, layer.weight_shape[1 - layer.out_axis]))
        for layer in find_layers(graph)
    }
    assert len(smooth(graph, ranges, strength=0.7)) == count
    feeds = {"x": numbers(*[int(axis) for axis in model.ir.graph.inputs[0].shape])}
    first, second = bench.run(model, feeds), bench.run(bench.save(graph), feeds)
    for wanted, found in zip(first, second, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_strengths_are_taken_by_group_and_shared_constants_are_copied(bench):
    text = """net (float[2, 4] x) => (float[2, 2] y, float[2, 2] z) {
        n = LayerNormalization(x, gain)
        y = MatMul(n, a)
        m = LayerNormalization(x, gain)
        z = MatMul(m, b)
    }"""
    gain = np.ones(4, np.float32)
    model = build(bench, text, gain=gain, a=numbers(4, 2), b=numbers(4, 2))
    graph = copy_model(model.ir)
    ranges = dict.fromkeys("yz", np.array([1.0, 2, 3, 4]))
    assert smooth(graph, ranges, strength={"z": 0.5}) == ["z"]
    assert np.array_equal(values(graph, "gain"), gain)
    assert smooth(graph, {}, strength=0.5) == []  # nothing is known of any layer
    feeds = {"x": numbers(2, 4)}
    for wanted, found in zip(
        bench.run(model, feeds), bench.run(bench.save(graph), feeds), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
