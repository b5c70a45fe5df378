"""What each type would cost a tensor: numbers that a plan is made from, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.llm.formats import (
    FORMATS,
    decode,
    fallback,
    fits,
    quantize,
    quantize_with_info,
    row_bytes,
)

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class FormatTable:
    """The formats of a kind of file, whichever it is.

    blocks: by name, the weights that are stored together. fits: whether rows of so many inputs are
    whole blocks. fallback: the format, or the next that fits such rows. row_bytes: of such rows.
    round_quickly: the values of a weight [out, in] in a format, under second moments [in, in],
    their diagonal [in], or None, and a damping. encode: the bytes [out, row_bytes] of a weight
    rounded on its own, on one thread; decode: what they stand for.
    """

    blocks: Mapping[str, int]
    fits: Callable[[str, int], bool]
    fallback: Callable[[str, int], str]
    row_bytes: Callable[[str, int], int]
    round_quickly: Callable[[str, Floats, Floats | None, float], Floats]
    encode: Callable[[str, Floats], Bytes]
    decode: Callable[[str, Bytes], Floats]


def _round_to_gguf(kind: str, weight: Floats, moments: Floats | None, damping: float) -> Floats:
    threads = 1 if moments is None else None  # tensors are spread over threads already
    return decode(
        kind,
        quantize_with_info(kind, weight, moments, damping=damping, sweeps=0, threads=threads).data,
    )


def _encode_for_gguf(kind: str, weight: Floats) -> Bytes:
    return quantize(kind, weight, threads=1)


GGUF = FormatTable(
    {name: one.block for name, one in FORMATS.items()},
    fits,
    fallback,
    row_bytes,
    _round_to_gguf,
    _encode_for_gguf,
    decode,
)


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


def bytes_of(kind: str, shape: Sequence[int], formats: FormatTable = GGUF) -> int:
    """Bytes of a tensor [.., out, in] in a type."""
    return formats.row_bytes(kind, shape[-1]) * prod(shape[:-1])


def costs_without_text(
    name: str,
    shape: Sequence[int],
    rows: Floats,
    candidates: Sequence[str],
    formats: FormatTable = GGUF,
) -> TensorCosts:
    """Costs where nothing is known but the weights: loss is weights times the relative error.

    rows: some of the tensor's, [n, in]. The unit is no divergence, so only sizes can be asked for.
    """
    options = []
    power = float(np.vdot(rows, rows)) or 1.0
    for kind in candidates:
        if formats.fits(kind, shape[-1]):
            gap = rows - formats.round_quickly(kind, rows, None, 0.0)
            error = float(np.vdot(gap, gap)) / power
            options.append(TypeCost(kind, bytes_of(kind, shape, formats), error * prod(shape)))
    return TensorCosts(name, prod(shape), tuple(options))
