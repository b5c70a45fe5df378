from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.entropy import conditional_bits, ideal_bits, share_counts


def test_two_even_values_take_a_bit_each() -> None:
    assert ideal_bits(np.array([[0, 5], [5, 0]])) == pytest.approx(4.0)
    assert ideal_bits(np.array([3, 3, 3])) == 0
    assert ideal_bits(np.array([], np.int8)) == 0
    # 6 * H(1/6, 1/3, 1/2)
    assert ideal_bits(np.array([-1, 0, 0, 9, 9, 9])) == pytest.approx(8.754887502)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_it_is_shannons_sum(codes: list[int]) -> None:
    slow = sum(-math.log2(codes.count(code) / len(codes)) for code in codes)
    assert ideal_bits(np.array(codes)) == pytest.approx(slow, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=60))
def test_contexts_never_cost(pairs: list[tuple[int, int]]) -> None:
    codes, contexts = np.array(pairs).T
    slow = sum(ideal_bits(codes[contexts == context]) for context in set(contexts.tolist()))
    found = conditional_bits(codes, contexts)
    assert found == pytest.approx(slow, abs=1e-9)
    assert found <= ideal_bits(codes) + 1e-9
    assert conditional_bits(codes, codes) == pytest.approx(0, abs=1e-9)


def test_contexts_must_fit() -> None:
    with pytest.raises(ValueError, match="3 contexts do not fit 4 codes"):
        conditional_bits(np.zeros(4), np.zeros(3))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40), st.integers(40, 5000))
def test_shares_add_up_and_none_is_lost(counts: list[int], total: int) -> None:
    shares = share_counts(counts, total=total)
    assert shares.sum() == total
    if any(counts):
        assert all((share > 0) == (count > 0) for share, count in zip(shares, counts, strict=True))


def test_shares_are_these() -> None:
    np.testing.assert_array_equal(share_counts([1, 0, 1, 1000], total=16), [1, 0, 1, 14])
    np.testing.assert_array_equal(share_counts([3, 3, 3], total=10), [4, 3, 3])
    np.testing.assert_array_equal(share_counts([0, 0], total=10), [10, 0])
    with pytest.raises(ValueError, match="3 symbols cannot share 2"):
        share_counts([1, 1, 1], total=2)


def test_shares_lose_little() -> None:
    counts = np.random.default_rng(0).integers(1, 1000, 50)
    shares = share_counts(counts, total=4096)
    spent = -float(np.sum(counts * np.log2(shares / 4096)))
    ideal = -float(np.sum(counts * np.log2(counts / counts.sum())))
    assert spent < ideal * 1.0002


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    codes = np.random.default_rng(0).integers(-4, 4, (5, 9)).astype(np.int8)
    contexts = np.tile(np.arange(9) % 3, (5, 1))
    assert ideal_bits(torch.asarray(codes)) == ideal_bits(codes)
    given = torch.asarray(contexts)
    assert conditional_bits(torch.asarray(codes), given) == conditional_bits(codes, contexts)
