"""Finds the tensors in an ONNX file, reading nothing but the wire format of protobuf.

A message is a row of fields: a tag (number and kind) and a varint, 4 or 8 bytes, or a
length and so many bytes. Only the few numbers below of onnx.proto are followed. What is not
as expected ends the search: the file is then packed as plain bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

Buffer = bytes | memoryview

MOST_TENSORS = 100_000
_DEEPEST = 40

# What a message holds that leads on to tensors: {message: {field number: message}}.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DIMS, _DATA_TYPE, _RAW_DATA = 1, 2, 9

# Bits of an element by TensorProto.DataType; others are not followed.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64}
_BITS |= {16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}


@dataclass(frozen=True)
class Tensor:
    """Where the raw bytes of a tensor lie in a file.

    offset, length: in bytes. data_type: TensorProto.DataType. dims: its shape.
    """

    offset: int
    length: int
    data_type: int
    dims: tuple[int, ...]


class NotOnnx(Exception):
    """The bytes are not what this scanner expects of an ONNX file."""


def find_tensors(content: Buffer) -> tuple[Tensor, ...]:
    """Give the tensors with raw data in file order; none for what is no ONNX file."""
    found: list[Tensor] = []
    try:
        _scan(content, 0, len(content), "model", 0, found)
    except NotOnnx:
        return ()
    return tuple(sorted(found, key=lambda tensor: tensor.offset))


def _scan(
    content: Buffer, start: int, stop: int, message: str, depth: int, found: list[Tensor]
) -> None:
    if depth > _DEEPEST or len(found) > MOST_TENSORS:
        raise NotOnnx
    if message == "tensor":
        tensor = _read_tensor(content, start, stop)
        if tensor is not None:
            found.append(tensor)
        return
    follow = _FIELDS[message]
    for number, kind, begin, end in _fields(content, start, stop):
        if kind == 2 and number in follow:
            _scan(content, begin, end, follow[number], depth + 1, found)


def _read_tensor(content: Buffer, start: int, stop: int) -> Tensor | None:
    dims: list[int] = []
    data_type, raw = 0, None
    for number, kind, begin, end in _fields(content, start, stop):
        if number == _DIMS and kind == 0:
            dims.append(_varint(content, begin, end)[0])
        elif number == _DIMS and kind == 2:
            while begin < end:
                value, begin = _varint(content, begin, end)
                dims.append(value)
        elif number == _DATA_TYPE and kind == 0:
            data_type = _varint(content, begin, end)[0]
        elif number == _RAW_DATA and kind == 2:
            raw = (begin, end)
    if raw is None or data_type not in _BITS or len(dims) > 16:
        return None
    length = raw[1] - raw[0]
    if length != -(-prod(dims) * _BITS[data_type] // 8) or not length:
        return None
    return Tensor(raw[0], length, data_type, tuple(dims))


def _fields(content: Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, kind, begin, end) of each field."""
    at = start
    while at < stop:
        tag, at = _varint(content, at, stop)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == 0:
            at = _varint(content, at, stop)[1]
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            length, begin = _varint(content, at, stop)
            at = begin + length
        else:
            raise NotOnnx
        if at > stop or not number:
            raise NotOnnx
        yield number, kind, begin, at


def _varint(content: Buffer, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise NotOnnx
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise NotOnnx
