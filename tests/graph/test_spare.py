"""What layers carry for nothing is found, with its bytes; honest layers have no line."""

from __future__ import annotations

import numpy as np
from graph_bench import Bench

from packlight.graph.spare import find_spare

NET = """g (float[n,16] x) => (float[n,6] y) {
    [first] a = Gemm <transB = 1> (x, w0, b0) r = Relu(a)
    [second] b = Gemm <transB = 1> (r, w1) s = Relu(b)
    [third] y = Gemm <transB = 1> (s, w2) }"""


def test_dead_doubled_and_low_rank(bench: Bench) -> None:
    random = np.random.default_rng(0)
    first = random.standard_normal((24, 16)).astype(np.float32)
    bias = random.standard_normal(24).astype(np.float32)
    first[3] = 0
    first[9], bias[9] = 2 * first[2], 2 * bias[2]
    first[11] = 2 * first[5]  # its bias differs: behind Relu it is another channel
    bias[11] = -3
    low = (random.standard_normal((24, 5)) @ random.standard_normal((5, 24))).astype(np.float32)
    last = random.standard_normal((6, 24)).astype(np.float32)
    model = bench.model(NET, w0=first, b0=bias, w1=low, w2=last)
    found = {(one.kind, one.names): one for one in find_spare(model.ir)}
    assert set(found) == {
        ("dead channels", ("first",)),
        ("near-duplicate channels", ("first",)),
        ("low effective rank", ("second",)),
    }
    dead = found["dead channels", ("first",)]
    assert dead.detail.startswith("1 of 24") and dead.bytes == 64
    assert found["near-duplicate channels", ("first",)].detail.startswith("1 of 24")
    assert "about 5 of 24" in found["low effective rank", ("second",)].detail


def test_a_random_layer_has_nothing_to_spare(bench: Bench) -> None:
    random = np.random.default_rng(1)
    weights = {
        f"w{i}": random.standard_normal(shape).astype(np.float32)
        for i, shape in enumerate(((24, 16), (24, 24), (6, 24)))
    }
    model = bench.model(NET, b0=random.standard_normal(24).astype(np.float32), **weights)
    assert find_spare(model.ir) == ()
