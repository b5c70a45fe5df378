"""The words for ranks, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.ranks import KINDS, Rank, parse_rank


@given(st.sampled_from(KINDS), st.integers(1, 10**6))
def test_there_and_back(kind: str, rank: int) -> None:
    one = Rank(kind, rank)  # type: ignore[arg-type]
    assert parse_rank(one.word) == one


@pytest.mark.parametrize(
    "text",
    ["", "spatial", "12", "spatial 0", "spatial -3", "spatial 1.5", "tucker 4", "matrix ²", 12,
     None, "matrix 4 4", ["matrix", 4], True],
)  # fmt: skip
def test_what_is_no_rank(text: object) -> None:
    assert parse_rank(text) is None
