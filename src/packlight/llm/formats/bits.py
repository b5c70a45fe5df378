"""Several small numbers in a byte, and half precision in two: what all block layouts share.

Blocks are rows here: arrays [blocks, bytes] of uint8.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[Any]


def join_fields(fields: Bytes, bits: int) -> Bytes:
    """Put fields [blocks, n, width] side by side in bytes [blocks, width], first one lowest."""
    joined = fields[:, 0].copy()
    for place in range(1, fields.shape[1]):
        joined |= fields[:, place] << np.uint8(bits * place)
    return joined


def split_fields(joined: Bytes, bits: int) -> Bytes:
    """Give back fields [blocks, 8 // bits, width] of bytes [blocks, width]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (joined[:, None, :] >> shifts) & np.uint8((1 << bits) - 1)


def half_bytes(values: Numbers) -> Bytes:
    """Give numbers [blocks] in half precision, [blocks, 2]."""
    return values.astype("<f2").reshape(-1, 1).view(np.uint8)


def half_values(data: Bytes) -> NDArray[np.float32]:
    """Read numbers in half precision, [blocks, 2] to float32 [blocks]."""
    return np.ascontiguousarray(data).view("<f2")[:, 0].astype(np.float32)
