"""How a file is taken apart: runs of plain bytes, and tensors between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from packlight.transport.codes import Layout
from packlight.transport.segments import MOST_SEGMENT_BYTES, MOST_WALKED, Form
from packlight.transport.wire import Buffer, Tensor, find_tensors

LEAST_SEGMENT = 24
"""Smaller tensors stay with the plain bytes: to name them costs more than they do."""

MOST_PLAIN = 1 << 20
"""Plain bytes beyond this much are segments, so that no reader holds more."""

# TensorProto.DataType -> (kind, bits of an element). 0: bytes of no known meaning.
FORMS = {
    0: ("b", 8), 1: ("f", 32), 2: ("u", 8), 3: ("i", 8), 4: ("u", 16), 5: ("i", 16),
    6: ("i", 32), 7: ("i", 64), 9: ("u", 8), 10: ("f", 16), 11: ("b", 64), 12: ("u", 32),
    13: ("b", 64), 16: ("f", 16), 17: ("u", 8), 18: ("u", 8), 19: ("u", 8), 20: ("u", 8),
    21: ("u", 4), 22: ("i", 4), 23: ("u", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A tensor, or a run of its rows, in a file: plain bytes up to `offset`, then `form`."""

    offset: int
    data_type: int
    form: Form


def form_of(data_type: int, layout: Layout) -> Form:
    """Give the form of elements of an ONNX data type."""
    kind, bits = FORMS[data_type]
    return Form(kind, bits, layout)


def cut_file(content: Buffer, *, onnx: bool) -> tuple[Piece, ...]:
    """Give the pieces of a file in order; what lies between and after them is plain."""
    pieces: list[Piece] = []
    at = 0
    for tensor in find_tensors(content) if onnx else ():
        if tensor.offset < at or tensor.length < LEAST_SEGMENT:
            continue
        pieces += _cut_plain(at, tensor.offset)
        pieces += _cut_tensor(tensor)
        at = tensor.offset + tensor.length
    return (*pieces, *_cut_plain(at, len(content)))


def _cut_plain(start: int, stop: int) -> Iterator[Piece]:
    if stop - start <= MOST_PLAIN:
        return
    for at in range(start, stop, MOST_WALKED):
        yield Piece(at, 0, form_of(0, Layout(1, min(MOST_WALKED, stop - at))))


def _cut_tensor(tensor: Tensor) -> Iterator[Piece]:
    """Cut a tensor into runs of rows [out, rest] that are not too large."""
    dims = tensor.dims
    rows = dims[0] if len(dims) > 1 else 1
    columns = prod(dims) // rows
    kernel = prod(dims[2:]) if len(dims) > 2 else 1
    bits = FORMS[tensor.data_type][1]
    if columns > MOST_WALKED or (columns * bits % 8 and rows * columns > MOST_WALKED):
        # Rows of half a byte, or enormous ones: the shape does not help to cut.
        rows, columns, kernel = 1, prod(dims), 1
    if rows == 1 and columns > MOST_WALKED:
        for at in range(0, columns, MOST_WALKED):
            layout = Layout(1, min(MOST_WALKED, columns - at))
            form = form_of(tensor.data_type, layout)
            yield Piece(tensor.offset + at * bits // 8, tensor.data_type, form)
        return
    tall = max(1, MOST_WALKED // columns)
    for top in range(0, rows, tall):
        layout = Layout(min(tall, rows - top), columns, kernel)
        offset = tensor.offset + top * columns * bits // 8
        yield Piece(offset, tensor.data_type, form_of(tensor.data_type, layout))


assert MOST_WALKED * 8 <= MOST_SEGMENT_BYTES
