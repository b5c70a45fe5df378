"""Effective rank by closed forms, rows alike by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.spare import effective_rank, rows_alike, rows_of_nothing


def orthogonal(random: np.random.Generator, n: int) -> np.ndarray:
    return np.linalg.qr(random.standard_normal((n, n)))[0]


@given(st.integers(1, 10), st.integers(0, 1000))
def test_equal_singular_values_give_their_number(rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.zeros(10)
    values[:rank] = 3.7
    weight = orthogonal(random, 10) * values @ orthogonal(random, 10)
    assert effective_rank(weight) == pytest.approx(rank, rel=1e-6)


def test_a_golden_value_and_bounds() -> None:
    # p = (1/2, 1/4, 1/4): entropy 1.5 bits, 2^1.5.
    assert effective_rank(np.diag([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert effective_rank(np.zeros((4, 6))) == 0.0
    random = np.random.default_rng(1)
    assert 1 <= effective_rank(random.standard_normal((8, 40)).astype(np.float32)) <= 8


@given(st.integers(0, 1000))
def test_rows_alike_are_those_that_brute_force_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((9, 12))
    rows[4] = 2.5 * rows[1]
    rows[7] = -rows[2]  # the other way round is not alike
    rows[8] = rows[3] + 0.3 * random.standard_normal(12)
    rows[5] = 0
    wanted = []
    for i in range(9):
        for j in range(i):
            a, b = rows[i], rows[j]
            size = np.linalg.norm(a) * np.linalg.norm(b)
            if size > 0 and a @ b / size >= 0.99:
                wanted.append(i)
                break
    assert rows_alike(rows) == wanted and 4 in wanted and 7 not in wanted
    assert rows_of_nothing(rows) == [5]
