"""Open sizes that hang together are known to; entries of shape vectors are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from coupling_oracle import build, feeds_of, session_of

from packlight.graph.coupling.shapes import know_shapes
from packlight.graph.coupling.vectors import entries, measured_axes
from packlight.graph.save import copy_model


def sizes(model: ir.Model) -> dict[str, list[int | str | None]]:
    copy = copy_model(model)
    know_shapes(copy)
    return {
        value.name: [size if isinstance(size, int) else size.value for size in value.shape]
        for node in copy.graph
        for value in node.outputs
        if value.shape is not None
    }


def heads(*target: int) -> ir.Model:
    # The shape of a Reshape is computed, and one of its sizes may be left open.
    return build(
        """net (float[n, t, 8] x) => (float[n, t, q, s] y) {
            whole = Shape(x)
            front = Slice(whole, zero, two)
            shape = Concat <axis = 0> (front, rest)
            h = Reshape(x, shape)
            length = Gather(whole, one)
            r = Range(none, length, one)
            c = Cast <to = 1> (r)
            u = Unsqueeze(c, back)
            y = Add(h, u)
        }""",
        zero=np.array([0]),
        two=np.array([2]),
        rest=np.array(target),
        none=np.int64(0),
        one=np.int64(1),
        back=np.array([1, 2]),
    )


@pytest.mark.parametrize("target", [(-1, 4), (2, -1), (2, 4)])
def test_sizes_known_at_run_time_only_are_named(target: tuple[int, int]):
    found = sizes(heads(*target))
    batch, length = found["h"][:2]
    assert found["h"][2:] == [2, 4]
    assert batch != length
    assert sizes(heads(-1, 8))["h"] == [batch, length, 1, 8]
    assert found["y"] == [batch, length, 2, 4]


def test_sizes_that_are_known_are_those_of_the_runtime():
    model = heads(-1, 4)
    copy = copy_model(model)
    know_shapes(copy)
    copy.graph.outputs.extend(
        value for node in copy.graph for value in node.outputs if value.name != "y"
    )
    names = [value.name for value in copy.graph.outputs]
    arrays = session_of(copy).run(None, feeds_of(model, size=6))
    for name, array in zip(names, arrays, strict=True):
        wanted = sizes(model)[name]
        assert len(wanted) == array.ndim
        assert all(a == b for a, b in zip(wanted, array.shape, strict=True) if isinstance(a, int))


def test_a_model_that_refuses_our_sizes_keeps_what_is_known():
    # 5 and 6 columns do not divide into rows of 4: what follows is not known, and no error.
    model = build(
        """net (float[n, t] x) => (float[m, 4] z) {
            y = Reshape(x, shape)
            z = Relu(y)
        }""",
        shape=np.array([-1, 4]),
    )
    assert sizes(model)["y"][1] == 4


def test_operators_that_onnx_does_not_know_keep_the_shape():
    model = build(
        """net (int32[n, t] ids) => (float[n, t, 8] y) {
            e, m, s = com.microsoft.EmbedLayerNormalization(ids, none, table, places, none, g, g)
            a = com.microsoft.FastGelu(e)
            y, v, w, u = com.microsoft.SkipLayerNormalization(a, s, g, g)
            z = Relu(u)
        }""".replace("none", ""),
        contrib=True, table=(20, 8), places=(10, 8), g=(8,),
    )  # fmt: skip
    found = sizes(model)
    assert [found[name][2] for name in "easyuz"] == [8] * 6


def test_entries_of_a_vector_are_numbers_or_axes():
    model = build(
        """net (float[n, t, 8] x) => (int64[q] y) {
            s = Shape(x)
            a = Gather(s, second)
            b = Unsqueeze(a, first)
            c = Slice(s, last, end)
            d = Mul(b, four)
            y = Concat <axis = 0> (four, b, c, d)
        }""",
        second=np.int64(1), first=np.array([0]), last=np.array([2]), end=np.array([3]),
        four=np.array([4]),
    )  # fmt: skip
    know_shapes(model)
    x = model.graph.inputs[0]
    assert entries(model.graph.outputs[0]) == [4, (x, 1), (x, 2), None]
    # A product is made of the second axis; the vector itself leaves the graph with the third.
    assert measured_axes(model.graph[0]) == {1, 2}
