"""How a tensor of the model is made of what the checkpoint stores, whole or by rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from packlight.llm.checkpoint.stored import read_rows
from packlight.llm.storage import Stored


@dataclass(frozen=True, eq=False)
class Scales:
    """What a tensor's last axis is multiplied by, inputs [in], and its rows, outputs [rows]."""

    inputs: NDArray[np.float32] | None = None
    outputs: NDArray[np.float32] | None = None

    def also(self, other: Scales) -> Scales:
        """Both, one scaling inputs and the other outputs."""
        inputs = self.inputs if other.inputs is None else other.inputs
        return Scales(inputs, self.outputs if other.outputs is None else other.outputs)

    def of_rows(self, rows: NDArray[np.float32], begin: int, end: int) -> NDArray[np.float32]:
        """Rows begin..end of the tensor, scaled."""
        if self.inputs is not None:
            rows = rows * self.inputs
        return rows if self.outputs is None else rows * self.outputs[begin:end, None]


@dataclass(frozen=True)
class Part:
    """What a tensor of `shape` is read from. change: as in `Piece`; head_width: rows of a head,
    for "rotary"; numbers: the tensor itself where the checkpoint stores none. scales: by
    which what is read is multiplied (`packlight.llm.checkpoint.scaled`).
    """

    shape: tuple[int, ...]
    sources: tuple[Stored, ...]
    change: str = ""
    head_width: int = 0
    numbers: tuple[float, ...] = ()
    scales: Scales | None = None

    @property
    def rows(self) -> int:
        """Rows of shape[-1] weights, all leading axes together."""
        return prod(self.shape[:-1])


def read_part(part: Part, begin: int, end: int) -> NDArray[np.float32]:
    """Read rows begin..end of the tensor as the model has it: float32 [end - begin, in].

    Only as much is read as they need, but for transposed matrices. Raises UnusableModel.
    """
    rows = _read(part, begin, end)
    return rows if part.scales is None else part.scales.of_rows(rows, begin, end)


def _read(part: Part, begin: int, end: int) -> NDArray[np.float32]:
    if not part.sources:
        return np.array(part.numbers, np.float32).reshape(part.rows, -1)[begin:end]
    first = part.sources[0]
    if part.change == "plus_one":
        return read_rows(first, begin, end) + np.float32(1)
    if part.change == "rotary":
        return _read_rotary(part, begin, end)
    if part.change == "transpose":
        whole = read_rows(first, 0, first.rows)
        return np.ascontiguousarray(whole.T[begin:end])
    if part.change == "stack":
        return _read_stacked(part, begin, end)
    if part.change == "flatten":
        return read_rows(first, 0, first.rows).reshape(part.rows, -1)[begin:end]
    return read_rows(first, begin, end)


def _read_rotary(part: Part, begin: int, end: int) -> NDArray[np.float32]:
    """Read rows in the order in which llama.cpp rotates them.

    transformers rotates row j of a head with row j + head_width / 2, llama.cpp row 2 j with row
    2 j + 1: output row (h, j, half) is stored row (h, half, j).
    """
    first, width = part.sources[0], part.head_width
    if len(part.shape) == 1:
        vector = read_rows(first, 0, 1).reshape(-1, 1)
        return _interleave(vector, width).reshape(1, -1)
    head, stop = begin // width, -(-end // width)
    rows = _interleave(read_rows(first, head * width, stop * width), width)
    return rows[begin - head * width : end - head * width]


def _interleave(rows: NDArray[np.float32], head_width: int) -> NDArray[np.float32]:
    halves = rows.reshape(-1, 2, head_width // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _read_stacked(part: Part, begin: int, end: int) -> NDArray[np.float32]:
    out = np.empty((end - begin, part.shape[-1]), np.float32)
    each = part.sources[0].rows
    at = begin
    while at < end:
        expert, row = divmod(at, each)
        stop = min(each, row + end - at)
        out[at - begin : at - begin + stop - row] = read_rows(part.sources[expert], row, stop)
        at += stop - row
    return out
