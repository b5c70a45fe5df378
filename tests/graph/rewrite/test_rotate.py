"""Rotations between pairs of layers: the same function, with channels that reach far spread."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_bench import snr_db

from packlight.graph.model import copy_model, load_model
from packlight.graph.rewrite.rotate import find_pairs, rotate_pairs
from packlight.graph.walk import constant_of
from packlight.maths.rotation import hadamard, random_rotation

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


ATTENTION = """net (float[batch, 3, 4] x) => (float[batch, 3, 5] y) {
    m = MatMul(x, a)
    v = Add(shift, m)
    heads = Reshape(v, split)
    turned = Transpose<perm = [0, 2, 1, 3]>(heads)
    scores = MatMul(x, q)
    p = Softmax(scores)
    one = Unsqueeze(p, axis)
    mixed = MatMul(one, turned)
    back = Transpose<perm = [0, 2, 1, 3]>(mixed)
    joined = Reshape(back, join)
    y = MatMul(joined, b)
}"""
HEADS = {"a": (4, 16), "shift": (16,), "q": (4, 3), "b": (16, 5), "split": [0, 3, 2, 8]}
HEADS |= {"join": [0, 3, 16], "axis": [1]}

PATHS = {
    # name: (text, weights, sizes of the pairs)
    "values through attention, head by head": (ATTENTION, HEADS, [8]),
    "one head of values serves two of queries": (
        ATTENTION.replace(
            "heads = Reshape(v, split)",
            """few = Reshape(v, split)
            many = Expand(few, wide)
            heads = Reshape(many, all)""",
        ),
        HEADS
        | {"a": (4, 8), "shift": (8,), "split": [0, 3, 1, 8], "wide": [1, 3, 2, 8]}
        | {"all": [0, 3, 2, 8]},
        [8],
    ),
    "a last axis that nothing tells, and two layers that read it": (
        """net (float[batch, 3, 4] x) => (float[batch, s, 5] y, float[batch, s, 7] z) {
            rows = Reshape(x, flat)
            m = Gemm(rows, a, shift)
            heads = Reshape(m, split)
            shape = Shape(x)
            batch = Slice(shape, zero, one)
            wanted = Concat<axis = 0>(batch, free, rest)
            back = Reshape(heads, wanted)
            y = MatMul(back, b)
            z = MatMul(back, c)
        }""",
        {"a": (4, 16), "shift": (16,), "b": (16, 5), "c": (16, 7), "flat": [-1, 4]}
        | {"split": [-1, 3, 4, 4], "zero": [0], "one": [1], "free": [3], "rest": [-1]},
        [4],
    ),
    "the last part of one product": (
        """net (float[2, 3, 4] x) => (float[2, 3, 5] y) {
            m = MatMul(x, a)
            n = Add(m, shift)
            q, v = Split<axis = -1>(n, parts)
            p = Softmax(q)
            w = MatMul(p, v)
            y = MatMul(w, b)
        }""",
        {"a": (4, 11), "shift": (11,), "b": (8, 5), "parts": [3, 8]},
        [8],
    ),
    "one factor a position, turned and cut": (
        """net (float[2, 3, 4] x) => (float[3, 5] y) {
            m = MatMul(x, a)
            s = ReduceMean<axes = [-1], keepdims = 1>(x)
            n = Mul(s, m)
            t = Transpose<perm = [1, 0, 2]>(n)
            g = Gather<axis = 1>(t, first)
            h = Div(g, two)
            y = Gemm<transB = 1, alpha = 0.5>(h, b, bias)
        }""",
        {"a": (4, 12), "b": (5, 12), "first": 1, "two": (1,), "bias": (5,)},
        [12],
    ),
    "values on the left, which positions of others weigh": (
        """net (float[4, 3] x) => (float[4, 2] y) {
            m = MatMul(x, a)
            t = Transpose(m)
            w = MatMul(t, mix)
            u = Transpose(w)
            n = MatMul(u, b)
            y = MatMul(n, c)
        }""",
        {"a": (3, 8), "b": (8, 4), "c": (4, 2), "mix": (4, 4)},
        [8, 4],
    ),
    "a chain of three": (
        """net (float[2, 3] x) => (float[2, 2] y) {
            m = MatMul(x, a)
            n = MatMul(m, b)
            y = MatMul(n, c)
        }""",
        {"a": (3, 8), "b": (8, 4), "c": (4, 2)},
        [8, 4],
    ),
    "Relu between": (
        """net (float[2, 4] x) => (float[2, 2] y) {
            m = MatMul(x, a)
            r = Relu(m)
            y = MatMul(r, b)
        }""",
        {"a": (4, 8), "b": (8, 2)},
        [],
    ),
    "one factor a channel": (
        """net (float[2, 4] x) => (float[2, 2] y) {
            m = MatMul(x, a)
            n = Mul(m, gain)
            y = MatMul(n, b)
        }""",
        {"a": (4, 8), "gain": (8,), "b": (8, 2)},
        [],
    ),
    "a residual reads it too": (
        """net (float[2, 8] x) => (float[2, 8] y) {
            m = MatMul(x, a)
            n = MatMul(m, b)
            y = Add(m, n)
        }""",
        {"a": (8, 8), "b": (8, 8)},
        [],
    ),
    "positions change places with channels": (
        """net (float[2, 4] x) => (float[8, 2] y) {
            m = MatMul(x, a)
            t = Transpose(m)
            y = MatMul(t, b)
        }""",
        {"a": (4, 8), "b": (2, 2)},
        [],
    ),
    "an output of the model": (
        """net (float[2, 4] x) => (float[2, 2] y, float[2, 8] m) {
            m = MatMul(x, a)
            y = MatMul(m, b)
        }""",
        {"a": (4, 8), "b": (8, 2)},
        [],
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_outputs_stay_equal_and_only_linear_paths_are_taken(bench, path):
    text, shapes, sizes = PATHS[path]
    weights = {
        name: numbers(*shape) if isinstance(shape, tuple) else np.array(shape)
        for name, shape in shapes.items()
    }
    model = build(bench, text, **weights)
    graph = copy_model(model.ir)
    assert [pair.size for pair in find_pairs(graph)] == sizes
    assert len(rotate_pairs(graph, seed=3)) == len(sizes)
    axes = model.ir.graph.inputs[0].shape
    feeds = {"x": numbers(*[axis if isinstance(axis, int) else 1 for axis in axes])}
    first, second = bench.run(model, feeds), bench.run(bench.save(graph), feeds)
    for wanted, found in zip(first, second, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    moved = [name for name in weights if not np.array_equal(values(graph, name), weights[name])]
    assert ("b" in moved) == bool(sizes)


def test_golden_every_head_is_turned_by_the_same_matrix(bench):
    weights = {
        name: numbers(*shape) if isinstance(shape, tuple) else np.array(shape)
        for name, shape in HEADS.items()
    }
    model = build(bench, ATTENTION, **weights)
    graph = copy_model(model.ir)
    assert rotate_pairs(graph, seed=5) == ["y"]
    signs = np.asarray(random_rotation(8, seed=5).signs)
    matrix = np.kron(np.eye(2), signs[:, None] * hadamard(8) / np.sqrt(8))
    np.testing.assert_allclose(values(graph, "a"), weights["a"] @ matrix, rtol=1e-4, atol=1e-6)
    wanted = weights["shift"] @ matrix
    np.testing.assert_allclose(values(graph, "shift"), wanted, rtol=1e-4, atol=1e-6)
    wanted = matrix.T @ weights["b"]
    np.testing.assert_allclose(values(graph, "b"), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(values(graph, "q"), weights["q"])


def test_channels_that_reach_far_cost_less_once_they_are_spread(bench):
    text = """net (float[batch, 32] x) => (float[batch, 32] y) {
        m = MatMul(x, a)
        y = MatMul(m, b)
    }"""
    a, b = numbers(32, 64), numbers(64, 32)
    a[:, 7] *= 40
    b[7] /= 40
    model = build(bench, text, a=a, b=b)
    graph = copy_model(model.ir)
    assert rotate_pairs(graph) == ["y"]
    turned = load_model(bench.save(graph))
    data = {"x": numbers(256, 32)}
    wanted = bench.run(model, data)[0]
    plain, better = (
        snr_db(wanted, bench.run(bench.apply(one, "int8", data), data)[0])
        for one in (model, turned)
    )
    assert better > plain + 3.0
