from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.entropy import ideal_bits
from packlight.transport.bits import BitReader, BitWriter
from packlight.transport.codes import Layout, coarsen, digits_of, walk_codes


def passed(codes: np.ndarray, kernel: int = 1, lanes: int = 1) -> bytes:
    layout = Layout(*codes.shape, kernel)
    writer = BitWriter()
    walk_codes(writer, layout, codes)
    coded = writer.finish(lanes)
    reader = BitReader(coded, lanes)
    np.testing.assert_array_equal(walk_codes(reader, layout, None), codes)
    reader.finish()
    return coded


@given(
    st.integers(1, 9), st.integers(1, 14), st.integers(0, 32), st.integers(1, 4), st.integers(0, 99)
)
def test_every_matrix_comes_back(
    rows: int, columns: int, digits: int, kernel: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-(2**digits) + 1, 2**digits, (rows, columns))
    passed(codes, kernel=min(kernel, columns))


@pytest.mark.parametrize("lanes", [1, 64])
def test_dead_rows_and_columns_cost_next_to_nothing(lanes: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.laplace(0, 1, (60, 120))).astype(np.int64)
    codes *= (rng.random((60, 1)) < 0.3) & (rng.random((1, 120)) < 0.5)
    spent = 8 * (len(passed(codes, lanes=lanes)) - 4 * lanes)
    assert spent < 0.75 * ideal_bits(codes)


def test_without_any_pattern_it_is_near_the_ideal() -> None:
    codes = np.round(np.random.default_rng(0).laplace(0, 1, (80, 120))).astype(np.int64)
    assert 8 * len(passed(codes)) < 1.02 * ideal_bits(codes)


def test_digits_and_sizes() -> None:
    x = np.array([0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 255, 2**32 - 1])
    assert digits_of(x).tolist() == [int(one).bit_length() for one in x]
    assert coarsen(np.arange(17)).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8]


def test_these_bytes() -> None:
    codes = np.array([[0, 0, 3, 0, -1], [0, 0, 2, 0, 0], [0, 0, -5, 0, 1]])
    assert passed(codes).hex() == GOLDEN


GOLDEN = "8c2c1100c0ed05c4"
