"""A small residual network, and pictures for it, that tests of training share."""

from __future__ import annotations

import numpy as np
from graph_bench import Bench

from packlight.graph.model import Model

NET = """g (float[n,3,8,8] x) => (float[n,5] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w0, b0) s = Relu(a)
    [one] c = Conv <pads = [1,1,1,1]> (s, w1, b1) r = Relu(c)
    [two] d = Conv <pads = [1,1,1,1]> (r, w2, b2)
    t = Add(d, s) u = Relu(t) p = GlobalAveragePool(u) f = Flatten(p)
    [last] y = Gemm (f, w3, b3) }"""


def residual_net(bench: Bench, *, opset: int = 17) -> Model:
    random = np.random.default_rng(6)
    shapes = ((12, 3, 3, 3), (12, 12, 3, 3), (12, 12, 3, 3), (12, 5))
    weights = {
        f"w{i}": 1.4 * random.standard_normal(s) / np.prod(s[1:] if len(s) == 4 else s[:1]) ** 0.5
        for i, s in enumerate(shapes)
    }
    weights |= {f"b{i}": 0.2 * random.standard_normal(s) for i, s in enumerate((12, 12, 12, 5))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return bench.model(NET, opset=opset, **arrays)


def pictures(count: int = 256, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    return (coarse + 0.2 * random.standard_normal((count, 3, 8, 8))).astype(np.float32)
