"""Static 8-bit against the runtime: close to float, fused, and never saturated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.layers import find_layers
from packlight.runtime import cpu_features

RANDOM = np.random.default_rng(11)
FLOAT = {"Conv", "Gemm", "MatMul", "Add", "Relu", "Clip"}


def normal(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


def picture(*shape: int) -> NDArray[np.float32]:
    return normal(*shape, size=1.0)


# name: (graph, weights, samples, what runs in integers)
CASES: dict[str, tuple[str, dict[str, Any], NDArray[np.float32], list[str]]] = {
    "conv": (
        "g (float[n,4,8,8] x) => (float[n,6,6,6] y) { y = Conv(x, w, b) }",
        {"w": normal(6, 4, 3, 3), "b": normal(6)},
        picture(32, 4, 8, 8),
        ["QLinearConv"],
    ),
    "conv of odd channels, no bias": (
        "g (float[n,3,8,8] x) => (float[n,5,6,6] y) { y = Conv(x, w) }",
        {"w": normal(5, 3, 3, 3)},
        picture(32, 3, 8, 8),
        ["QLinearConv"],
    ),
    "relu": (
        """g (float[n,4,8,8] x) => (float[n,6,6,6] y) {
            a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(a) y = Conv(r, v) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "v": normal(6, 8, 3, 3)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "QLinearConv"],
    ),
    "relu at the end": (
        "g (float[n,4,8,8] x) => (float[n,6,6,6] y) { a = Conv(x, w, b) y = Relu(a) }",
        {"w": normal(6, 4, 3, 3), "b": normal(6)},
        picture(32, 4, 8, 8),
        ["QLinearConv"],
    ),
    "clip": (
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            lo = Constant <value = float {0.}> () hi = Constant <value = float {1.5}> ()
            a = Conv(x, w, b) r = Clip(a, lo, hi) y = Conv(r, v) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "v": normal(6, 8, 1, 1)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "QLinearConv"],
    ),
    "clip around zero": (
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            lo = Constant <value = float {-0.5}> () hi = Constant <value = float {1.5}> ()
            a = Conv(x, w, b) r = Clip(a, lo, hi) y = Conv(r, v) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "v": normal(6, 8, 1, 1)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "QLinearConv"],
    ),
    "residual": (
        """g (float[n,4,8,8] x) => (float[n,3] y) {
            a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(a)
            c = Conv <pads = [1,1,1,1]> (r, v) d = Add(c, r) e = Relu(d)
            p = GlobalAveragePool(e) f = Flatten(p) y = Gemm <transB = 1> (f, u, t) }""",
        {
            "w": normal(8, 4, 3, 3),
            "b": normal(8),
            "v": normal(8, 8, 3, 3),
            "u": normal(3, 8),
            "t": normal(3),
        },
        picture(64, 4, 8, 8),
        ["QLinearConv", "QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"],
    ),
    "pools": (
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(a)
            m = MaxPool <kernel_shape = [2,2], strides = [2,2], pads = [1,0,0,1]> (r)
            p = AveragePool <kernel_shape = [2,2], pads = [0,1,1,0]> (m) y = Conv(p, v) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "v": normal(6, 8, 1, 1)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "MaxPool", "QLinearAveragePool", "QLinearConv"],
    ),
    "concat": (
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            a = Conv <pads = [1,1,1,1]> (x, w) s = Sigmoid(a) l = LeakyRelu <alpha = 0.1> (a)
            m = Mul(a, s) c = Concat <axis = 1> (a, s, l, m, x) y = Conv(c, v) }""",
        {"w": normal(8, 4, 3, 3), "v": normal(6, 36, 1, 1)},
        picture(32, 4, 8, 8),
        [
            "QLinearConv",
            "QLinearConcat",
            "QLinearSigmoid",
            "QLinearLeakyRelu",
            "QLinearMul",
            "QLinearConv",
        ],
    ),
    "moved codes": (
        """g (float[n,4,8,8] x) => (float[n,3] y) {
            st = Constant <value = int64[2] {0,0}> () en = Constant <value = int64[2] {4,4}> ()
            ax = Constant <value = int64[2] {2,3}> () sh = Constant <value = int64[2] {-1,128}> ()
            a = Conv(x, w, b) s = Slice(a, st, en, ax) t = Transpose <perm = [0,2,3,1]> (s)
            r = Reshape(t, sh) y = Gemm(r, u, c) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "u": normal(128, 3), "c": normal(3)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "Slice", "Transpose", "Reshape", "QGemm"],
    ),
    "squeezed": (
        """g (float[n,4,8,8] x) => (float[n,3] y) {
            ax = Constant <value = int64[2] {2,3}> () a = Conv(x, w, b)
            p = GlobalAveragePool(a) s = Squeeze(p, ax) t = Unsqueeze(s, ax) q = Squeeze(t, ax)
            y = MatMul(q, u) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "u": normal(8, 3)},
        picture(64, 4, 8, 8),
        ["QLinearConv", "QLinearGlobalAveragePool", "MatMulIntegerToFloat"],
    ),
    "depth to space and zeros around": (
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            pd = Constant <value = int64[8] {0,0,1,1,0,0,1,1}> ()
            a = Conv(x, w, b) d = DepthToSpace <blocksize = 2> (a) p = Pad(d, pd)
            s = SpaceToDepth <blocksize = 2> (p) y = Conv(s, v) }""",
        {"w": normal(8, 4, 3, 3), "b": normal(8), "v": normal(6, 8, 1, 1)},
        picture(32, 4, 8, 8),
        ["QLinearConv", "QLinearConv"],
    ),
    "depthwise": (
        "g (float[n,8,8,8] x) => (float[n,8,6,6] y) { y = Conv <group = 8> (x, w, b) }",
        {"w": normal(8, 1, 3, 3), "b": normal(8)},
        picture(32, 8, 8, 8),
        ["QLinearConv"],
    ),
    "depthwise with two outputs a channel": (
        "g (float[n,4,8,8] x) => (float[n,8,6,6] y) { y = Conv <group = 4> (x, w, b) }",
        {"w": normal(8, 1, 3, 3), "b": normal(8)},
        picture(32, 4, 8, 8),
        ["QLinearConv"],
    ),
    "grouped": (
        "g (float[n,6,8,8] x) => (float[n,4,6,6] y) { y = Conv <group = 2> (x, w, b) }",
        {"w": normal(4, 3, 3, 3), "b": normal(4)},
        picture(32, 6, 8, 8),
        ["QLinearConv"],
    ),
    "1-d, strided": (
        "g (float[n,5,20] x) => (float[n,6,k] y) { y = Conv <strides = [2]> (x, w, b) }",
        {"w": normal(6, 5, 3), "b": normal(6)},
        picture(32, 5, 20),
        ["QLinearConv"],
    ),
    "3-d, dilated": (
        """g (float[n,3,6,6,6] x) => (float[n,6,k,l,m] y) {
            y = Conv <dilations = [2,1,1]> (x, w, b) }""",
        {"w": normal(6, 3, 2, 3, 3), "b": normal(6)},
        picture(16, 3, 6, 6, 6),
        ["QLinearConv"],
    ),
    "auto_pad": (
        """g (float[n,3,9,9] x) => (float[n,6,k,l] y) {
            y = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w, b) }""",
        {"w": normal(6, 3, 3, 4), "b": normal(6)},
        picture(32, 3, 9, 9),
        ["QLinearConv"],
    ),
    "matmul": (
        """g (float[n,5,24] x) => (float[n,5,7] y) {
            a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }""",
        {"w": normal(24, 16), "v": normal(16, 7)},
        picture(64, 5, 24),
        ["QLinearMatMul", "MatMulIntegerToFloat"],
    ),
    "gemm with alpha and beta": (
        """g (float[n,24] x) => (float[n,7] y) {
            a = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) r = Relu(a)
            y = Gemm <transB = 1, alpha = -2.0> (r, v, c) }""",
        {"w": normal(24, 16), "b": normal(16), "v": normal(7, 16), "c": normal(1, 7)},
        picture(128, 24),
        ["QGemm", "QGemm"],
    ),
    "gemm with one number as bias": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm(x, w, b) }",
        {"w": normal(24, 7), "b": np.array([1.5], np.float32)},
        picture(128, 24),
        ["QGemm"],
    ),
}


def check(
    bench: Bench, name: str, *, choice: str = "int8", least: float = 32.0, **settings: Any
) -> Any:
    text, weights, x, expected = CASES[name]
    model = bench.model(text, **weights)
    path = bench.apply(model, choice, {"x": x}, **settings)
    reference = bench.run(model, {"x": x})[0]
    fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
    assert snr_db(reference, fused) > least
    assert snr_db(reference, plain) > least
    return fused, plain, expected, path


@pytest.mark.parametrize("name", CASES)
def test_operators_are_fused_and_faithful(bench: Bench, name: str) -> None:
    fused, plain, expected, path = check(bench, name, least=30)
    # Saturated sums would part the two; sigmoid's table and rounding at halves may a little.
    assert snr_db(plain, fused) > 50
    operators = bench.operators(path)
    assert sorted(expected) == sorted(op for op in operators if op in expected)
    assert not FLOAT & set(operators)


@pytest.mark.parametrize("name", ["relu", "residual", "grouped", "3-d, dilated", "matmul"])
def test_sixteen_bit_activations_are_no_worse(bench: Bench, name: str) -> None:
    text, weights, x, _ = CASES[name]
    model = bench.model(text, **weights)
    reference = bench.run(model, {"x": x})[0]
    noise = {
        choice: snr_db(reference, bench.run(bench.apply(model, choice, {"x": x}), {"x": x})[0])
        for choice in ("int8", "int8-wide")
    }
    assert noise["int8-wide"] > noise["int8"]
    path = bench.apply(model, "int8-wide", {"x": x})
    codes = {i.data_type for i in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.UINT16 in codes


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "least-error"])
@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_other_ranges_and_roundings(bench: Bench, ranges: str, rounding: str) -> None:
    check(bench, "residual", least=28.0, ranges=ranges, rounding=rounding)


def test_compensated_rounding_beats_nearest_where_inputs_are_correlated(bench: Bench) -> None:
    mixing = normal(6, 48)
    x = (picture(512, 6) @ mixing + normal(512, 48, size=0.05)).astype(np.float32)
    text = "g (float[n,48] x) => (float[n,32] y) { y = MatMul(x, w) }"
    model = bench.model(text, w=normal(48, 32))
    reference = bench.run(model, {"x": x})[0]
    # In 16 bits the activations add no noise of their own.
    noise = {
        rounding: snr_db(
            reference,
            bench.run(
                bench.apply(model, "int8-wide", {"x": x}, rounding=rounding),
                {"x": x},
                optimize=False,
            )[0],
        )
        for rounding in ("nearest", "compensated")
    }
    assert noise["compensated"] > noise["nearest"] + 3


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_fewer_bits_use_fewer_codes_in_the_same_kernels(bench: Bench, bits: int) -> None:
    text, weights, x, operators = CASES["residual"]
    model = bench.model(text, **weights)
    path = bench.apply(model, f"int{bits}", {"x": x})
    codes = [
        numpy_helper.to_array(i).astype(int)
        for i in onnx.load(path).graph.initializer
        if i.name.endswith("_codes")
    ]
    assert codes and min(c.min() for c in codes) == -(1 << (bits - 1))  # the whole range is used
    assert max(c.max() for c in codes) == (1 << (bits - 1)) - 1
    assert sorted(set(bench.operators(path)) & set(operators)) == sorted(set(operators))
    fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
    assert snr_db(plain, fused) > 35  # nothing saturates
    assert snr_db(bench.run(model, {"x": x})[0], fused) > 6 * bits - 11


def test_seven_bits_cannot_saturate(bench: Bench) -> None:
    for kind in ("Conv", "MatMul"):
        text, weights, x = saturating(kind)
        weights = {"w": -weights["w"]}  # to the lowest code, the largest of all
        path = bench.apply(bench.model(text, **weights), "int7", {"x": x}, pair_limit=False)
        fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
        assert snr_db(plain, fused) > 50


def test_descent_beats_compensation_beats_nearest(bench: Bench) -> None:
    x = (picture(512, 6) @ normal(6, 48) + normal(512, 48, size=0.05)).astype(np.float32)
    text = "g (float[n,48] x) => (float[n,32] y) { y = MatMul(x, w) }"
    model = bench.model(text, w=normal(48, 32))
    reference = bench.run(model, {"x": x})[0]
    noise = [
        snr_db(
            reference,
            bench.run(bench.apply(model, "int3", {"x": x}, rounding=how), {"x": x})[0],
        )
        for how in ("nearest", "compensated", "descent")
    ]
    assert noise[1] > noise[0] + 3 and noise[2] > noise[1]


def test_bias_correction_keeps_the_mean(bench: Bench) -> None:
    x = (np.abs(picture(256, 40)) + 1).astype(np.float32)
    text = "g (float[n,40] x) => (float[n,16] y) { y = Gemm(x, w) }"
    model = bench.model(text, w=normal(40, 16))
    reference = bench.run(model, {"x": x})[0].mean(axis=0)
    off = {}
    for correct in (False, True):
        path = bench.apply(
            model, "int8", {"x": x}, bias_correction=correct, rounding="nearest", ranges="min-max"
        )
        off[correct] = np.abs(bench.run(path, {"x": x})[0].mean(axis=0) - reference).max()
        assert "QGemm" in bench.operators(path)
    assert off[True] < off[False] / 2


def saturating(kind: str) -> tuple[str, dict[str, Any], NDArray[np.float32]]:
    """All weights alike and large inputs: two products exceed 16 bits by far."""
    if kind == "Conv":
        text = "g (float[n,4,5,5] x) => (float[n,8,3,3] y) { y = Conv(x, w) }"
        w = np.ones((8, 4, 3, 3), np.float32)
        x = RANDOM.uniform(0.7, 1, (8, 4, 5, 5)).astype(np.float32)
    elif kind == "multiplier":
        text = "g (float[n,4,5,5] x) => (float[n,8,3,3] y) { y = Conv <group = 4> (x, w) }"
        w = np.ones((8, 1, 3, 3), np.float32)
        x = RANDOM.uniform(0.7, 1, (8, 4, 5, 5)).astype(np.float32)
    else:
        text = f"g (float[n,64] x) => (float[n,8] y) {{ y = {kind}(x, w) }}"
        w = np.ones((64, 8), np.float32)
        x = RANDOM.uniform(0.7, 1, (8, 64)).astype(np.float32)
    return text, {"w": w}, x


KINDS = ["Conv", "multiplier", "MatMul", "Gemm"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_limit_keeps_sums_from_saturating(bench: Bench, kind: str) -> None:
    text, weights, x = saturating(kind)
    model = bench.model(text, **weights)
    path = bench.apply(model, "int8", {"x": x})
    fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
    assert snr_db(plain, fused) > 50
    assert snr_db(bench.run(model, {"x": x})[0], fused) > 35


@pytest.mark.skipif(cpu_features().vnni, reason="with VNNI nothing saturates")
@pytest.mark.skipif(not cpu_features().avx2, reason="only x86 kernels saturate")
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_pair_limit_sums_saturate_here(bench: Bench, kind: str) -> None:
    text, weights, x = saturating(kind)
    model = bench.model(text, **weights)
    path = bench.apply(model, "int8", {"x": x}, pair_limit=False)
    fused, plain = (bench.run(path, {"x": x}, optimize=on)[0] for on in (True, False))
    assert snr_db(plain, fused) < 20


@pytest.mark.parametrize("kind", [*KINDS, "odd"])
def test_every_pair_of_codes_keeps_the_limit(bench: Bench, kind: str) -> None:
    if kind == "odd":  # pairs reach from one kernel tap to the next
        text = "g (float[n,3,5,5] x) => (float[n,8,3,3] y) { y = Conv(x, w) }"
        weights, x = {"w": np.ones((8, 3, 3, 3), np.float32)}, np.abs(picture(8, 3, 5, 5))
    else:
        text, weights, x = saturating(kind)
    path = bench.apply(bench.model(text, **weights), "int8", {"x": x})
    (codes,) = (
        numpy_helper.to_array(i).astype(int)
        for i in onnx.load(path).graph.initializer
        if i.name == "w_codes"
    )
    rows = codes.T if codes.ndim == 2 else codes.transpose(0, 2, 3, 1).reshape(8, -1)
    even = rows.shape[1] // 2 * 2
    assert np.abs(rows[:, 0:even:2] + rows[:, 1:even:2]).max() <= 128
    assert np.abs(rows).max() > 60  # and the range is used


def test_a_bias_beyond_its_int32_widens_the_scale(bench: Bench) -> None:
    """Channels: dead with bias, tiny weights with large bias, all zero, ordinary."""
    w, b = normal(4, 3, 3, 3), np.array([0.37, 5.0, 0.0, -0.2], np.float32)
    w[0], w[2] = 0, 0
    w[1] *= 1e-12
    w[3] *= 0.005
    text = "g (float[n,3,8,8] x) => (float[n,4,6,6] y) { y = Conv(x, w, b) }"
    model = bench.model(text, w=w, b=b)
    x = (picture(16, 3, 8, 8) * 100).astype(np.float32)
    path = bench.apply(model, "int8", {"x": x}, ranges="min-max")
    reference, found = (bench.run(p, {"x": x})[0] for p in (model, path))
    step = np.ptp(reference) / 255
    for channel in range(3):
        assert np.abs(reference[:, channel] - found[:, channel]).max() < 0.51 * step
    assert snr_db(reference[:, 3], found[:, 3]) > 30
    biases = [
        numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer if i.data_type == 6
    ]
    assert all(np.abs(bias.astype(np.int64)).max() < 2**31 - 1 for bias in biases)
    scales = [i for i in onnx.load(path).graph.initializer if i.name.endswith("_scale")]
    assert all((numpy_helper.to_array(scale) > 0).all() for scale in scales)


def test_outputs_keep_names_types_and_shapes(bench: Bench) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,6,8,8] y, float[n,6,8,8] z, float[n,6,8,8] a) {
        a = Conv <pads = [1,1,1,1]> (x, w) y = Relu(a) z = Conv <pads = [1,1,1,1]> (y, v) }"""
    model = bench.model(text, w=normal(6, 4, 3, 3), v=normal(6, 6, 3, 3))
    x = picture(32, 4, 8, 8)
    path = bench.apply(model, "int8", {"x": x})
    before, after = (onnx.load(p).graph.output for p in (model.source, path))
    assert [o.name for o in after] == [o.name for o in before] == ["y", "z", "a"]
    assert [o.type for o in after] == [o.type for o in before]
    for reference, found in zip(bench.run(model, {"x": x}), bench.run(path, {"x": x}), strict=True):
        assert snr_db(reference, found) > 32


@pytest.mark.parametrize("opset", [13, 14, 16, 18, 19, 20, 21])
def test_operator_sets(bench: Bench, opset: int) -> None:
    text, weights, x, _ = CASES["residual"]
    model = bench.model(text, opset=opset, **weights)
    path = bench.apply(model, "int8", {"x": x})
    reference = bench.run(model, {"x": x})[0]
    assert snr_db(reference, bench.run(path, {"x": x})[0]) > 32
    assert not FLOAT & set(bench.operators(path))


def test_layers_that_share_a_weight_share_the_codes(bench: Bench) -> None:
    text = """g (float[n,32] x) => (float[n,32] y) {
        [one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, w) s = Relu(b)
        [three] y = Gemm(s, w, c) }"""
    model = bench.model(text, w=normal(32, 32, size=0.2), c=normal(32))
    x = picture(256, 32)
    reference = bench.run(model, {"x": x})[0]
    both = bench.apply(model, "int8", {"x": x})
    assert snr_db(reference, bench.run(both, {"x": x})[0]) > 28
    codes = [i for i in onnx.load(both).graph.initializer if list(i.dims) == [32, 32]]
    assert [i.data_type for i in codes] == [onnx.TensorProto.INT8]
    # With one of them in float, both forms of the weight are there.
    some = bench.apply(model, {"one": "int8", "two": "float32", "three": "int8"}, {"x": x})
    assert snr_db(reference, bench.run(some, {"x": x})[0]) > 28
    kinds = {i.data_type for i in onnx.load(some).graph.initializer if list(i.dims) == [32, 32]}
    assert kinds == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}


def test_names_that_are_taken_do_not_clash(bench: Bench) -> None:
    text = """g (float[n,4] x) => (float[n,4] y, float[n,4] y_float) {
        [x_q] x_dq = MatMul(x, w) x_scale = Relu(x_dq) [y_q] y = Gemm(x_scale, w_codes)
        y_float = Neg(y) }"""
    model = bench.model(text, w=normal(4, 4), w_codes=normal(4, 4))
    x = picture(256, 4)
    path = bench.apply(model, "int8", {"x": x})
    for reference, found in zip(bench.run(model, {"x": x}), bench.run(path, {"x": x}), strict=True):
        assert snr_db(reference, found) > 28


def test_a_tensor_that_is_always_zero(bench: Bench) -> None:
    text = """g (float[n,4] x) => (float[n,3] y) {
        n = Neg(x) a = Abs(n) m = Neg(a) r = Relu(m) [dead] y = Gemm(r, w, b) }"""
    w, b = normal(4, 3), normal(3)
    model = bench.model(text, w=w, b=b)
    path = bench.apply(model, "int8", {"x": picture(64, 4)})
    found = bench.run(path, {"x": picture(8, 4)})[0]
    np.testing.assert_allclose(found, np.broadcast_to(b, (8, 3)), atol=0.5 * np.abs(w).max() / 64)


def test_the_layers_found_are_those_asked_for(bench: Bench) -> None:
    text, weights, x, _ = CASES["relu"]
    model = bench.model(text, **weights)
    first, second = (layer.name for layer in find_layers(model.ir))
    for chosen in (first, second):
        path = bench.apply(model, {chosen: "int8"}, {"x": x})
        operators = bench.operators(path)
        assert operators.count("QLinearConv") == 1
        assert operators.count("Conv") + operators.count("FusedConv") == 1


KEPT = {
    "Conv": ("Conv(r, v, e)", {"v": normal(8, 8, 3, 3), "e": normal(8)}, "FusedConv"),
    "ConvTranspose": ("ConvTranspose(r, v)", {"v": normal(8, 8, 3, 3)}, "ConvTranspose"),
    "Gemm": ("Gemm(r, v, e)", {"v": normal(16, 16), "e": normal(16)}, "FusedGemm"),
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("clamp", ["", "Relu"])
@pytest.mark.parametrize("choice", ["float32", "float16", "weights-int8", "weights-int4"])
def test_what_is_left_in_float_between_codes_stays_float(
    bench: Bench, kind: str, clamp: str, choice: str
) -> None:
    """The runtime would quantize such a layer's weights by itself, without a pair limit."""
    text, weights, operator = KEPT[kind]
    clamped = f"s = {clamp}(c)" if clamp else ""
    last = "s" if clamp else "c"
    if kind == "Gemm":
        model = bench.model(
            f"""g (float[n,16] x) => (float[n,16] z, float[n,6] y) {{
                a = Gemm(x, w, b) r = Relu(a) [other] z = Gemm(r, o, b)
                [kept] c = {text} {clamped} y = Gemm({last}, u) }}""",
            w=normal(16, 16), b=normal(16), o=normal(16, 16), u=normal(16, 6), **weights,
        )  # fmt: skip
        x = picture(64, 16)
    else:
        model = bench.model(
            f"""g (float[n,4,8,8] x) => (float[n,6,k,l] y) {{
                a = Conv(x, w) r = Relu(a) [kept] c = {text} {clamped} y = Conv({last}, u) }}""",
            w=normal(8, 4, 3, 3), u=normal(6, 8, 1, 1), **weights,
        )  # fmt: skip
        x = picture(32, 4, 8, 8)
    names = [layer.name for layer in find_layers(model.ir)]
    path = bench.apply(
        model, {name: choice if name == "kept" else "int8" for name in names}, {"x": x}
    )
    operators = bench.operators(path)
    integers = sum(one in ("QLinearConv", "QGemm") for one in operators)
    assert operators.count(operator) == 1 and integers == len(names) - 1
    plain, fast = (bench.run(path, {"x": x}, optimize=on)[-1] for on in (False, True))
    assert snr_db(plain, fast) > 50  # rounding of the runtime's own; 33 to 43 when it quantizes


def test_only_layers_between_codes_are_kept_apart(bench: Bench) -> None:
    """Nothing is added behind layers that the runtime leaves alone."""
    model = bench.model(
        """g (float[n,4,8,8] x) => (float[n,6,k,l] y) {
            [one] a = Conv(x, w) r = Relu(a) [free] c = Conv(r, v) s = Softmax(c)
            [end] y = Conv(s, u) }""",
        w=normal(8, 4, 3, 3), v=normal(8, 8, 3, 3), u=normal(6, 8, 1, 1),
    )  # fmt: skip
    x = picture(32, 4, 8, 8)
    for choices in ({"one": "int8"}, {"one": "int8", "end": "int8"}, {"end": "int8"}):
        path = bench.apply(model, choices, {"x": x})
        assert "LeakyRelu" not in [node.op_type for node in onnx.load(path).graph.node]


def test_depthwise_weights_are_rounded_for_what_they_see(bench: Bench) -> None:
    """Neighbouring pixels are alike: compensation gains much, and the bias keeps the mean."""
    text = "g (float[n,16,12,12] x) => (float[n,16,10,10] y) { y = Conv <group = 16> (x, w, b) }"
    model = bench.model(text, w=normal(16, 1, 3, 3), b=normal(16))
    smooth = RANDOM.standard_normal((64, 16, 16, 16)).cumsum(axis=2).cumsum(axis=3)
    x = (smooth[:, :, 4:, 4:] / 10 + 1).astype(np.float32)
    whole = bench.run(model, {"x": x})[0]
    found = {
        how: snr_db(
            whole, bench.run(bench.apply(model, "int4", {"x": x}, rounding=how), {"x": x})[0]
        )
        for how in ("nearest", "compensated", "descent")
    }
    assert found["compensated"] > found["nearest"] + 6
    assert found["descent"] > found["nearest"] + 6
    path = bench.apply(model, "int4", {"x": x}, rounding="nearest", bias_correction=True)
    corrected = bench.run(path, {"x": x})[0]
    plain = bench.run(bench.apply(model, "int4", {"x": x}, rounding="nearest"), {"x": x})[0]
    off = [np.abs((one - whole).mean(axis=(0, 2, 3))).mean() for one in (plain, corrected)]
    assert off[1] < off[0]
