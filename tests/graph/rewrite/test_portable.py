"""The plain form of quantized graphs computes the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graph_bench import Bench, gemm_weights

from packlight.graph.model import load_model, save_model
from packlight.graph.rewrite.portable import make_portable

NET = """g (float[n, 2, 6, 6] x) => (float[n, 3] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (a)
    p = Pad (r, pads)
    c = Conv (p, v)
    s = Shape (c)
    z = Constant <value_ints = [0]> ()
    n0 = Gather (s, z)
    m = Constant <value_ints = [-1]> ()
    t = Concat <axis = 0> (n0, m)
    f = Reshape (c, t)
    y = Gemm (f, w0, b0)
}"""


@pytest.fixture
def weights() -> dict[str, Any]:
    random = np.random.default_rng(3)
    found = {"w": random.standard_normal((4, 2, 3, 3)) / 4, "b": random.standard_normal(4)}
    found |= {"v": random.standard_normal((2, 4, 3, 3)) / 6}
    found |= {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 1])}
    return found | gemm_weights(random, [(50, 3)])


@pytest.mark.parametrize("choice", ["int8", "weights-int8", "weights-int4", "float16"])
def test_the_numbers_stay(bench: Bench, weights: dict[str, Any], choice: str) -> None:
    model = bench.model(NET, **weights)
    x = np.random.default_rng(0).standard_normal((8, 2, 6, 6)).astype(np.float32)
    path = bench.apply(model, choice, {"x": x})
    graph = load_model(path).ir
    make_portable(graph, {"x": [1, 2, 6, 6]})
    values = [value for node in graph.graph for value in node.outputs]
    assert all(value.shape is not None and value.shape.is_static() for value in values)
    assert "Shape" not in {node.op_type for node in graph.graph}
    plain = bench.folder / "portable.onnx"
    save_model(graph, plain)
    wanted, found = (bench.process.load(one, optimize=False) for one in (path, plain))
    for row in x:
        np.testing.assert_array_equal(
            found.run({"x": row[None]})["y"], wanted.run({"x": row[None]})["y"]
        )
    stored = {value.dtype for value in graph.graph.initializers.values() if value.dtype}
    assert (ir.DataType.FLOAT16 if choice == "float16" else ir.DataType.INT8) in stored
    assert not stored & {ir.DataType.UINT8, ir.DataType.INT4}
