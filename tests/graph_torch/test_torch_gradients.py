"""Gradients: those of the main operators against finite differences, straight-through ones too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

from torch_bench import build, check_like_runtime  # noqa: E402

RANDOM = np.random.default_rng(11)


def draw(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


# Graph text with inputs of type double, shape of x, and weights.
FAMILIES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "elementwise": (
        "s = Sigmoid (x) t = Tanh (x) p = PRelu (s, slope) a = Add (p, t) y = Mul (a, scale)",
        (3, 8),
        {"slope": draw(8), "scale": draw(8)},
    ),
    "activations": (
        """a = Gelu (x) b = Elu (a) c = Softplus (b) d = HardSwish (c) e = LeakyRelu (d)
           y = Selu (e)""",
        (3, 8),
        {},
    ),
    "reduction": (
        """m = ReduceMean (x) d = Sub (x, m) q = ReduceSumSquare (d) l = ReduceLogSumExp (x)
           n = ReduceL2 (x) s = Add (q, l) y = Mul (s, n)""",
        (3, 8),
        {},
    ),
    "convolution": (
        """c = Conv <pads = [1,0,2,1], strides = [2,1], group = 2> (x, w, b)
           y = ConvTranspose <strides = [2,2], output_padding = [1,0]> (c, v)""",
        (2, 4, 8, 7),
        {"w": draw(6, 2, 3, 3), "b": draw(6), "v": draw(6, 3, 2, 3)},
    ),
    "pooling": (
        """a = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]> (x)
           m = MaxPool <kernel_shape = [2,3], ceil_mode = 1, strides = [2,2]> (x)
           g = GlobalAveragePool (m) y = Mul (a, g)""",
        (2, 3, 8, 9),
        {},
    ),
    "linear": (
        """h = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) r = Relu (h)
           y = MatMul (r, v)""",
        (3, 8),
        {"w": draw(9, 8), "b": draw(3, 9), "v": draw(9, 4)},
    ),
    "normalization": (
        """l = LayerNormalization (x, g, b) s = Softmax (l) t = LogSoftmax (l)
           y = Add (s, t)""",
        (3, 4, 8),
        {"g": draw(8), "b": draw(8)},
    ),
    "batch normalization": (
        "i = InstanceNormalization (x, g, b) y = BatchNormalization (i, g, b, mean, var)",
        (2, 3, 8),
        {"g": draw(3), "b": draw(3), "mean": draw(3), "var": np.abs(draw(3)) + 0.5},
    ),
    "shape": (
        """t = Transpose (x) u = Unsqueeze (t, zero) s = Slice (u, one, nine, two, one)
           p = Pad <mode = "reflect"> (s, pads) q = Squeeze (p, zero)
           c = Concat <axis = 1> (q, q) f = Flatten <axis = 0> (c)
           y = Gather <axis = 1> (f, index)""",
        (4, 8),
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "nine": np.array([9]),
            "two": np.array([2]),
            "pads": np.array([0, 1, 1, 0, 2, 0]),
            "index": np.array([[0, 3], [-1, 3]]),
        },
    ),
    "table": (
        "i = Cast <to = 7> (ids) e = Gather (table, i) y = MatMul (e, x)",
        (8, 3),
        {"ids": np.array([1.0, 4.0, 1.0, 0.0]), "table": draw(6, 8)},
    ),
    "resize": (
        """y = Resize <mode = "cubic", coordinate_transformation_mode = "half_pixel"> (x, , s)""",
        (1, 2, 5, 4),
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    text, shape, weights = FAMILIES[family]
    axes = ",".join(map(str, shape))
    graph = f"g (double[{axes}] x) => (y) {{ {text} }}"
    module, _ = build(graph, opset=20, **weights)
    names = list(module.parameters_by_name)
    assert set(names) <= set(weights)
    x = torch.from_numpy(draw(*shape)).requires_grad_()

    def run(x: Any, *given: Any) -> Any:
        return module.run({"x": x}, weights=dict(zip(names, given, strict=True)))["y"]

    assert torch.autograd.gradcheck(run, (x, *module.parameters()))


RECURRENT = {
    "LSTM": ("LSTM", 4, ""),
    "LSTM step by step": ("LSTM", 4, ", clip = 9.0"),
    "GRU": ("GRU", 3, ", linear_before_reset = 1"),
    "GRU step by step": ("GRU", 3, ""),
    "RNN": ("RNN", 1, ""),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_are_the_runtimes_and_have_gradients(name: str, direction: str) -> None:
    op, gates, more = RECURRENT[name]
    d = 2 if direction == "bidirectional" else 1
    graph = f"""g (float[5,2,8] x) => (float[5,{d},2,3] y, float[{d},2,3] h) {{
        y, h = {op} <hidden_size = 3, direction = "{direction}"{more}> (x, w, r, b) }}"""
    weights = {"w": draw(d, 3 * gates, 8), "r": draw(d, 3 * gates, 3), "b": draw(d, 6 * gates)}
    single = {key: value.astype(np.float32) for key, value in weights.items()}
    x = draw(5, 2, 8)
    check_like_runtime(graph, {"x": x.astype(np.float32)}, **single)
    module, _ = build(graph.replace("float", "double"), **weights)
    assert list(module.parameters_by_name) == ["w", "r", "b"]

    def run(x: Any, *given: Any) -> Any:
        found = module.run({"x": x}, weights=dict(zip("wrb", given, strict=True)))
        return found["y"], found["h"]

    assert torch.autograd.gradcheck(
        run, (torch.from_numpy(x).requires_grad_(), *module.parameters())
    )


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_sequences_of_several_lengths_are_the_runtimes(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    graph = f"""g (float[6,3,8] x, float[2,3,4] h0) => (y, h) {{
        y, h = {op} <hidden_size = 4, direction = "bidirectional"> (x, w, r, b, lengths, h0) }}"""
    weights = {"w": draw(2, 4 * gates, 8), "r": draw(2, 4 * gates, 4), "b": draw(2, 8 * gates)}
    single = {key: value.astype(np.float32) for key, value in weights.items()}
    feeds = {"x": draw(6, 3, 8).astype(np.float32), "h0": draw(2, 3, 4).astype(np.float32)}
    for lengths in ([6, 2, 4], [6, 6, 6]):
        single["lengths"] = np.array(lengths, np.int32)
        check_like_runtime(graph, feeds, **single)


QDQ = """g (float[n,8] x) => (float[n,8] y) {
    q = QuantizeLinear (x, s, z)
    y = DequantizeLinear (q, s, z)
}"""


def test_fake_quantization_is_the_runtimes() -> None:
    x = draw(20, 8).astype(np.float32) * 2
    scale = {"s": np.float32(0.02), "z": np.uint8(100)}
    check_like_runtime(QDQ, {"x": x}, tolerance=0, **scale)
    module, _ = build(QDQ, learn_scales=True, **scale)
    assert list(module.parameters_by_name) == ["s"]
    with torch.no_grad():
        plain = module(torch.from_numpy(x))
    learned = module(torch.from_numpy(x).requires_grad_())
    assert learned.requires_grad
    torch.testing.assert_close(learned.detach(), plain, rtol=0, atol=0)


def test_straight_through_gradients_by_hand() -> None:
    module, _ = build(QDQ, learn_scales=True, s=np.float32(0.5), z=np.int8(0))
    x = torch.tensor([[0.0, 0.6, -0.6, 1.24, 63.5, 63.7, 80.0, -80.0]], requires_grad=True)
    y = module(x)
    assert y.tolist() == [[0, 0.5, -0.5, 1.0, 63.5, 63.5, 63.5, -64]]
    y.backward(torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]
    # round(v) - v within, the last code beyond: 0, 1 - 1.2, -1 + 1.2, 2 - 2.48, 0, 127 - 127.4.
    each = [0, -0.2, 0.2, -0.48, 0, -0.4, 127, -128]
    expected = sum(g * e for g, e in zip(range(1, 9), each, strict=True))
    assert module.parameters_by_name["s"].grad == pytest.approx(expected, rel=1e-5)


@given(
    x=st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=24),
    scale=st.floats(0.015625, 2, width=32),
    zero=st.integers(0, 255),
)
def test_the_scale_gets_the_gradient_of_learned_step_sizes(
    x: list[float], scale: float, zero: int
) -> None:
    text = QDQ.replace("[n,8]", "[n]")
    module, _ = build(text, learn_scales=True, s=np.float32(scale), z=np.uint8(zero))
    given_x = torch.tensor(x, requires_grad=True)
    module(given_x).sum().backward()
    v = np.asarray(x, np.float32) / np.float32(scale)
    codes = np.round(v) + zero
    inside = (codes >= 0) & (codes <= 255)
    clipped = np.clip(codes, 0, 255) - zero
    expected = np.where(inside, np.round(v) - v, clipped).sum(dtype=np.float64)
    assert given_x.grad is not None
    np.testing.assert_array_equal(given_x.grad.numpy() != 0, inside)
    np.testing.assert_allclose(given_x.grad.numpy()[inside], 1, rtol=1e-6)
    found = module.parameters_by_name["s"].grad
    assert found is not None
    np.testing.assert_allclose(found.item(), expected, rtol=1e-4, atol=1e-2)


def test_weights_behind_quantization_are_trained_per_channel() -> None:
    text = """g (float[n,8] x) => (float[n,5] y) {
        q = QuantizeLinear <axis = 0> (w, s, z)
        d = DequantizeLinear <axis = 0> (q, s, z)
        y = Gemm <transB = 1> (x, d)
    }"""
    weights = {"w": draw(5, 8).astype(np.float32)}
    weights |= {"s": np.linspace(0.01, 0.05, 5, dtype=np.float32), "z": np.zeros(5, np.int8)}
    x = draw(3, 8).astype(np.float32)
    check_like_runtime(text, {"x": x}, **weights)
    module, _ = build(text, **weights)
    assert list(module.parameters_by_name) == ["w"]
    module(torch.from_numpy(x)).sum().backward()
    found = module.parameters_by_name["w"].grad
    inside = np.abs(np.round(weights["w"] / weights["s"][:, None])) <= 127
    np.testing.assert_allclose(found, np.where(inside, x.sum(0), 0), rtol=1e-4, atol=1e-5)


def test_integer_products_carry_gradients() -> None:
    text = """g (float[3,8] x) => (float[3,4] y) {
        q, s, z = DynamicQuantizeLinear (x)
        p = MatMulInteger (q, w, z)
        f = Cast <to = 1> (p)
        y = Mul (f, s)
    }"""
    w = RANDOM.integers(-127, 128, (8, 4)).astype(np.int8)
    x = draw(3, 8).astype(np.float32)
    check_like_runtime(text, {"x": x}, w=w)
    module, _ = build(text, w=w)
    given_x = torch.from_numpy(x).requires_grad_()
    module(given_x).sum().backward()
    assert given_x.grad is not None
    expected = np.broadcast_to(w.astype(np.float32).sum(1), (3, 8))
    np.testing.assert_allclose(given_x.grad, expected, rtol=1e-5)


def test_quantized_convolutions_are_the_runtimes_and_carry_gradients() -> None:
    text = """g (float[2,4,8,8] x) => (float[2,6,h,k] y) {
        q = QuantizeLinear (x, xs, xz)
        c = QLinearConv <pads = [1,1,1,1], group = 2> (q, xs, xz, w, ws, wz, ys, yz, b)
        y = DequantizeLinear (c, ys, yz)
    }"""
    weights: dict[str, Any] = {"xs": np.float32(0.03), "xz": np.uint8(120)}
    weights |= {"w": RANDOM.integers(-127, 128, (6, 2, 3, 3)).astype(np.int8)}
    weights |= {"ws": np.linspace(0.01, 0.02, 6, dtype=np.float32), "wz": np.zeros(6, np.int8)}
    weights |= {"ys": np.float32(0.2), "yz": np.uint8(128)}
    weights["b"] = RANDOM.integers(-500, 500, 6).astype(np.int32)
    x = draw(2, 4, 8, 8).astype(np.float32)
    # A sum that falls between two codes may be rounded to either.
    check_like_runtime(text, {"x": x}, tolerance=0.2001, **weights)
    module, _ = build(text, **weights)
    given_x = torch.from_numpy(x).requires_grad_()
    y = module(given_x)
    y.sum().backward()
    assert given_x.grad is not None
    kernel = torch.from_numpy(weights["w"].astype(np.float32) * weights["ws"][:, None, None, None])
    inside = (y > -25.6) & (y < 25.4)
    expected = torch.nn.grad.conv2d_input((2, 4, 8, 8), kernel, inside.float(), padding=1, groups=2)
    torch.testing.assert_close(given_x.grad, expected, rtol=1e-3, atol=1e-3)
