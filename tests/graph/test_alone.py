"""A layer by itself gives what it gives inside its model."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bench import Bench
from layer_kinds import normal

from packlight.graph.alone import layer_alone
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.layers import find_layers
from packlight.graph.observe import with_outputs


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("g (float[n,4,9,8] x) => (float[n,k,h,w] y) { r = Relu(x) [it] a = Conv "
         "<strides = [2,1], pads = [1,0,1,0]> (r, w, b) y = Relu(a) }",
         {"w": normal(6, 4, 3, 3), "b": normal(6)}),
        ("g (float[n,4] x) => (float[n,6] y) { r = Relu(x) [it] a = Gemm <alpha = 0.5> (r, w, b) "
         "y = Relu(a) }", {"w": normal(4, 6), "b": normal(6)}),
        ("g (float[n,3,4] x) => (float[n,3,6] y) { r = Relu(x) [it] a = MatMul (r, w) "
         "y = Relu(a) }", {"w": normal(4, 6)}),
    ],
)  # fmt: skip
def test_it_computes_the_same(bench: Bench, text: str, weights: dict[str, np.ndarray]) -> None:
    model = bench.model(text, **weights)
    (layer,) = find_layers(model.ir)
    shape = [2, *(spec if isinstance(spec, int) else 2 for spec in model.inputs[0].shape[1:])]
    data = normal(*shape)
    infer_shapes(model.ir)
    inner = bench.save(with_outputs(model.ir, ["r", "a"]))
    reaches, wanted = bench.run(inner, {"x": data})
    alone = layer_alone(model.ir, layer, reaches.shape)
    assert alone is not None
    (again,) = find_layers(alone)
    assert again.name == "it"
    (found,) = bench.run(bench.save(alone), {"x": reaches})
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(find_layers(model.ir)) == 1  # and leaves the model as it was
    np.testing.assert_array_equal(bench.run(bench.save(model.ir), {"x": data})[0].shape[0], 2)


def test_what_else_is_computed_cannot_be_left_out(bench: Bench) -> None:
    model = bench.model(
        "g (float[n,4] x, float[6] c) => (float[n,6] y) { [it] y = Gemm (x, w, c) }",
        w=normal(4, 6),
    )
    (layer,) = find_layers(model.ir)
    assert layer_alone(model.ir, layer, (2, 4)) is None
