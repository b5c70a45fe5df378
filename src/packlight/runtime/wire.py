"""The messages between this process and a worker: a JSON header, then raw array bytes.

    8 bytes   length of the header, little-endian
    header    one JSON object; "arrays" lists [name, dtype, shape] in order
    bytes     of every array, C order, nothing in between

Nothing is pickled and every header is checked before anything is allocated,
since a worker may have been taken over by the file that it runs. Both sides
use the same functions: a worker's descriptors block, the parent's do not and it
passes `wait`, which returns when the descriptor is ready and raises when time is up.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["bool", "float16", "float32", "float64"]
)
HEADER_LIMIT_BYTES = 1 << 24
_DIMENSION_LIMIT = 1 << 40
_RANK_LIMIT = 64
# The kernel takes at most 1024 buffers at once.
_BUFFERS_AT_ONCE = 1000
_LENGTH = struct.Struct("<Q")

Wait = Callable[[], None]


class Malformed(ValueError):
    """A message that breaks the rules of this file."""


def send(
    descriptor: int,
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    wait: Wait | None = None,
) -> None:
    """Write one message: `header` (JSON values) and `arrays`, of any shape."""
    flat = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    listing = [[name, array.dtype.name, list(array.shape)] for name, array in flat.items()]
    text = json.dumps({**header, "arrays": listing}, allow_nan=False).encode("ascii")
    if len(text) > HEADER_LIMIT_BYTES:
        raise Malformed(f"a header of {len(text)} bytes")
    queue = deque([memoryview(_LENGTH.pack(len(text)) + text)])
    queue.extend(_bytes_of(array) for array in flat.values() if array.nbytes)
    while queue:
        try:
            written = os.writev(descriptor, [queue[k] for k in range(_at_once(queue))])
        except BlockingIOError:
            _wait(wait)
            continue
        while queue and written >= len(queue[0]):
            written -= len(queue.popleft())
        if written:
            queue[0] = queue[0][written:]


def receive(
    descriptor: int, *, limit_bytes: int, wait: Wait | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read one message: its header and its arrays by name.

    limit_bytes: of all arrays together.
    Raises Malformed; EOFError if the other side is gone; MemoryError when an array
    cannot be allocated, after its bytes were read, so that the next message is in step.
    """
    start = bytearray(_LENGTH.size)
    _fill(descriptor, memoryview(start), wait)
    (length,) = _LENGTH.unpack(start)
    if length > HEADER_LIMIT_BYTES:
        raise Malformed(f"a header of {length} bytes")
    text = bytearray(length)
    _fill(descriptor, memoryview(text), wait)
    header, listing = parse_header(bytes(text), limit_bytes=limit_bytes)
    arrays: dict[str, NDArray[Any]] = {}
    missing = 0
    for name, dtype, shape in listing:
        try:
            array = np.empty(shape, dtype)
        except MemoryError:
            size = np.dtype(dtype).itemsize
            for extent in shape:
                size *= extent
            missing += size
            _skip(descriptor, size, wait)
            continue
        except ValueError as error:
            raise Malformed(f"an array of shape {shape}") from error
        if array.nbytes:
            _fill(descriptor, _bytes_of(array), wait)
        arrays[name] = array
    if missing:
        raise MemoryError(f"no room for arrays of {missing} bytes")
    return header, arrays


def parse_header(
    text: bytes, *, limit_bytes: int
) -> tuple[dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]:
    """The header's object without "arrays", and the checked list of (name, dtype, shape)."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("a header that is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
        raise Malformed("a header without a list of arrays")
    listing: list[tuple[str, str, tuple[int, ...]]] = []
    total = 0
    for entry in header.pop("arrays"):
        if not isinstance(entry, list) or len(entry) != 3:
            raise Malformed("an array without name, type and shape")
        name, dtype, shape = entry
        if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPES:
            raise Malformed("an array of a type that is not allowed")
        if not isinstance(shape, list) or len(shape) > _RANK_LIMIT:
            raise Malformed("an array with an impossible shape")
        size = np.dtype(dtype).itemsize
        for extent in shape:
            if type(extent) is not int or not 0 <= extent <= _DIMENSION_LIMIT:
                raise Malformed("an array with an impossible shape")
            size *= extent
        total += size
        listing.append((name, dtype, tuple(shape)))
    if total > limit_bytes:
        raise Malformed(f"arrays of {total} bytes, where {limit_bytes} are allowed")
    if len({name for name, _, _ in listing}) != len(listing):
        raise Malformed("two arrays of one name")
    return header, listing


def _at_once(queue: deque[memoryview]) -> int:
    return min(len(queue), _BUFFERS_AT_ONCE)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array as bytes: memoryview.cast knows too few types."""
    return array.reshape(-1).view(np.uint8).data


def _fill(descriptor: int, view: memoryview, wait: Wait | None) -> None:
    while view:
        try:
            count = os.readv(descriptor, [view])
        except BlockingIOError:
            _wait(wait)
            continue
        if count == 0:
            raise EOFError
        view = view[count:]


def _skip(descriptor: int, size: int, wait: Wait | None) -> None:
    scratch = memoryview(bytearray(min(size, 1 << 16)))
    while size:
        part = scratch[: min(size, len(scratch))]
        _fill(descriptor, part, wait)
        size -= len(part)


def _wait(wait: Wait | None) -> None:
    if wait is None:
        raise Malformed("a descriptor that does not block, and nothing to wait with")
    wait()
