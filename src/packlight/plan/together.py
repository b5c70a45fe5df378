"""Pairs of outputs taken apart, without holding more than one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

Outputs = dict[str, NDArray[Any]]


def unzip(
    pairs: Iterator[tuple[Outputs, Outputs, int]],
) -> tuple[Iterator[Outputs], Iterator[Outputs], Iterator[int]]:
    """Three iterators that advance together, one pair held at a time."""
    second: list[Outputs] = []
    rows: list[int] = []

    def firsts() -> Iterator[Outputs]:
        for first, other, count in pairs:
            second.append(other)
            rows.append(count)
            yield first

    def seconds() -> Iterator[Outputs]:
        while second:
            yield second.pop(0)

    def counts() -> Iterator[int]:
        while rows:
            yield rows.pop(0)

    return firsts(), seconds(), counts()
