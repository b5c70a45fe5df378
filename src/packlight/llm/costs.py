"""What each type would cost a tensor: numbers that a plan is made from, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.llm.formats import decode, fits, quantize, row_bytes


@dataclass(frozen=True)
class TypeCost:
    """A type that a tensor may get. loss: KL divergence a token to the original, in nats."""

    type: str
    bytes: int
    loss: float


@dataclass(frozen=True)
class TensorCosts:
    """A tensor, the number of its weights, and the types that fit it."""

    name: str
    weights: int
    options: tuple[TypeCost, ...]


Choose: TypeAlias = Callable[[Sequence[TensorCosts], int], Mapping[str, str]]
"""Gives each tensor its type; the number is of the bytes of the file that are not a choice."""


def bytes_of(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor [.., out, in] in a type."""
    return row_bytes(kind, shape[-1]) * prod(shape[:-1])


def costs_without_text(
    name: str, shape: Sequence[int], rows: NDArray[np.float32], candidates: Sequence[str]
) -> TensorCosts:
    """Costs where nothing is known but the weights: loss is weights times the relative error.

    rows: some of the tensor's, [n, in]. The unit is no divergence, so only sizes can be asked for.
    """
    options = []
    power = float(np.vdot(rows, rows)) or 1.0
    for kind in candidates:
        if fits(kind, shape[-1]):
            gap = rows - decode(kind, quantize(kind, rows, threads=1))
            error = float(np.vdot(gap, gap)) / power
            options.append(TypeCost(kind, bytes_of(kind, shape), error * prod(shape)))
    return TensorCosts(name, prod(shape), tuple(options))
