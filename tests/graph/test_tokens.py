"""Which whole numbers an input may hold."""

from __future__ import annotations

import numpy as np

from packlight.graph.tokens import token_limits


def test_the_smallest_table_that_an_input_is_looked_up_in_limits_it(bench):
    model = bench.model(
        """net (int64[n, s] ids, int64[n, s] kinds, float[n, 4] x) => (float[a, b, c] y) {
            small = Cast<to = 6>(ids)
            one = Gather(words, small)
            two = Gather(others, ids)
            three = Gather(types, kinds)
            sum = Add(one, two)
            y = Add(sum, three)
        }""",
        words=np.zeros((50, 4), np.float32),
        others=np.zeros((30, 4), np.float32),
        types=np.zeros((2, 4), np.float32),
    )
    assert token_limits(model.ir) == {"ids": 30, "kinds": 2}


def test_numbers_that_are_no_indices_have_no_limit(bench):
    model = bench.model(
        "net (int64[n] count) => (int64[n] y) { y = Add(count, count) }",
    )
    assert token_limits(model.ir) == {}
