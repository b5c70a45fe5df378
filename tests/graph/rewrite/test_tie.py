"""A matrix that stands in a model twice, once transposed, is stored once."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bench import snr_db

from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model
from packlight.graph.rewrite.tie import tie_transposed

TEXT = """net (int64[2, 3] ids) => (float[2, 3, 40] y) {
    e = Gather(table, ids)
    y = MatMul(e, head)
}"""


def test_the_head_becomes_the_transposed_table(bench):
    table = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    model = bench.model(TEXT, table=table, head=np.ascontiguousarray(table.T))
    graph = copy_model(model.ir)
    assert tie_transposed(graph) == 1 and list(graph.graph.initializers) == ["table"]
    assert tie_transposed(graph) == 0
    feeds = {"ids": np.array([[0, 5, 39], [1, 1, 2]])}
    path = bench.save(graph)
    np.testing.assert_array_equal(bench.run(model, feeds)[0], bench.run(path, feeds)[0])
    assert path.stat().st_size < 0.7 * model.size_bytes


def test_other_matrices_and_other_types_stay(bench):
    table = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    other = np.ascontiguousarray(table.T)
    other[3, 7] += 1e-6
    assert tie_transposed(copy_model(bench.model(TEXT, table=table, head=other).ir)) == 0


@pytest.mark.parametrize("head", ["int8-dynamic", "int8"])
def test_codes_are_stored_once_too(bench, head):
    table = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    model = bench.model(
        TEXT.replace("40", "300").replace("2, 3", "n, 3"),
        table=table,
        head=np.ascontiguousarray(table.T),
    )
    words = {"Gather": "weights-int8", "MatMul": head}
    choices = {layer.name: words[layer.kind] for layer in find_layers(model.ir)}
    feeds = {"ids": np.random.default_rng(1).integers(0, 300, (16, 3))}
    path = bench.apply(model, choices, feeds)
    assert path.stat().st_size < 1.4 * table.size
    exact, found = (bench.run(one, feeds)[0] for one in (model, path))
    assert 35 < snr_db(exact, found) < 60
