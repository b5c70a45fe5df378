"""A matrix that stands in a model twice, once transposed, is stored once."""

from __future__ import annotations

import numpy as np

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
