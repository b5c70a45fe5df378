"""Brings a tensor into the bytes of its type, or says why that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.formats.table import encode_plain
from packlight.llm.storage import TYPES


def encode_blocks(
    name: str, kind: str, content: NDArray[Any] | Iterable[NDArray[Any]], shape: tuple[int, ...]
) -> Iterator[NDArray[np.uint8]]:
    """Yield uint8 [rows, row_bytes] of a tensor that comes whole, or as blocks of its rows.

    content: as in `encode_rows`, or blocks [n, in] of floats or [n, row_bytes] of bytes,
    which must add up to all rows. Raises UnusableModel.
    """
    if isinstance(content, np.ndarray):
        yield encode_rows(name, kind, content, shape)
        return
    rows, done = prod(shape[:-1]), 0
    for block in content:
        done += len(block)
        if done > rows:
            break
        yield encode_rows(name, kind, block, (len(block), shape[-1]))
    if done != rows:
        raise UnusableModel(f"{name} has {rows} rows, and {done} are given.")


def encode_rows(
    name: str, kind: str, content: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Give uint8 [rows, row_bytes] of a tensor of `shape` [.., out, in] in the type `kind`.

    content: floats of that shape where the type is F32, F16 or BF16; else the bytes
    themselves, in any shape of that size. Raises UnusableModel.
    """
    if kind not in TYPES:
        raise UnusableModel(
            f"{name} is to be stored as {kind!r}, which is none of GGUF's types: "
            f"{', '.join(TYPES)}."
        )
    inputs, rows = shape[-1], prod(shape[:-1])
    if inputs % TYPES[kind].block:
        raise UnusableModel(
            f"{name} has rows of {inputs} weights, and {kind} stores blocks of "
            f"{TYPES[kind].block}: choose a type that fits."
        )
    row_bytes = TYPES[kind].row_bytes(inputs)
    if content.dtype == np.uint8:
        if content.size != rows * row_bytes:
            raise UnusableModel(
                f"{name} of shape {list(shape)} takes {rows * row_bytes} bytes as {kind}, and "
                f"{content.size} are given."
            )
        return np.ascontiguousarray(content).reshape(rows, row_bytes)
    if tuple(content.shape) != shape:
        raise UnusableModel(
            f"{name} has the shape {list(shape)}, and {list(content.shape)} is given."
        )
    return _encode_floats(name, kind, content).reshape(rows, row_bytes)


def _encode_floats(name: str, kind: str, content: NDArray[Any]) -> NDArray[np.uint8]:
    if kind not in ("F32", "F16", "BF16"):
        raise UnusableModel(f"{name} is to be stored as {kind}: encode it first.")
    if not np.isfinite(content).all():
        raise UnusableModel(f"{name} holds NaN or infinity: the model is damaged.")
    floats = np.ascontiguousarray(content, np.float32)
    limit = float(np.finfo(np.float16).max)
    if kind == "F16" and floats.size and float(np.abs(floats).max()) > limit:
        raise UnusableModel(
            f"{name} holds weights above {limit:.0f}, which F16 cannot: store it as BF16 or F32."
        )
    return encode_plain(kind, floats)
