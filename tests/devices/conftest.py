"""Small networks in 8 bits, made by packlight's own quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench, gemm_weights
from numpy.typing import NDArray

from packlight.runtime import Process

CONV = """g (float[n, 3, 12, 12] x) => (float[n, 5] y) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 8> (b, w1, b1)
    d = Relu (c)
    e = Conv (d, w2, b2)
    f = Add (e, b)
    h = Relu (f)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)
    m = GlobalAveragePool (p)
    v = Flatten (m)
    y = Gemm (v, w3, b3)
}"""

MLP = """g (float[n, 24] x) => (float[n, 5] y) {
    a = Gemm (x, w0, b0)
    b = Relu (a)
    c = Gemm (b, w1, b1)
    d = Relu (c)
    y = Gemm (d, w2, b2)
}"""


@dataclass(frozen=True)
class Network:
    """path: of the quantized file. original: of the float one. x: samples, one a row."""

    path: Path
    original: Path
    x: NDArray[np.float32]


@pytest.fixture(scope="session")
def runtimes() -> Iterator[Process]:
    """One child that runs all files."""
    with Process() as process:
        yield process


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory, runtimes: Process) -> dict[str, Network]:
    """By name, "conv" and "mlp": all layers int8."""
    random = np.random.default_rng(7)

    def draw(*shape: int) -> NDArray[Any]:
        return random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    conv = {"w0": draw(8, 3, 3, 3), "w1": draw(8, 1, 3, 3), "w2": draw(8, 8, 1, 1)}
    conv |= {"w3": draw(8, 5) * 8, "b3": draw(5)}
    conv |= {name: random.standard_normal(8) / 4 for name in ("b0", "b1", "b2")}
    mlp = gemm_weights(random, [(24, 32), (32, 16), (16, 5)])
    found = {}
    for name, text, weights, shape in (
        ("conv", CONV, conv, (64, 3, 12, 12)),
        ("mlp", MLP, mlp, (64, 24)),
    ):
        bench = Bench(tmp_path_factory.mktemp(name), runtimes)
        model = bench.model(text, **weights)
        x = random.standard_normal(shape).astype(np.float32)
        path = bench.apply(model, "int8", {"x": x}, pair_limit=False)
        found[name] = Network(path, model.source, x)
    return found
