"""Bytes in few bits by one table of how often each occurs: fast, for what is large.

The same range ANS as in `bits`, with 4096ths and a whole byte a step, over many lanes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusablePack
from packlight.maths.entropy import share_counts

SHARE_BITS = 14
_WHOLE = 1 << SHARE_BITS
_LOW = 1 << 16
_MOST_LANES = 256


def encode_bytes(content: bytes) -> bytes:
    """Give the table (which bytes occur, their shares), the states, and 16-bit words."""
    symbols = np.frombuffer(content, np.uint8)
    shares = share_counts(np.bincount(symbols, minlength=256), total=_WHOLE)
    starts = np.cumsum(shares) - shares
    lanes = _lanes_for(len(symbols))
    states = np.full(lanes, _LOW, np.int64)
    words: list[NDArray[np.uint16]] = []
    for at in range((max(len(symbols), 1) - 1) // lanes * lanes, -1, -lanes):
        part = symbols[at : at + lanes]
        f, low = shares[part], starts[part]
        x = states[: len(part)]
        full = x >= f << (32 - SHARE_BITS)
        words.append((x[full] & 0xFFFF).astype("<u2"))
        x = np.where(full, x >> 16, x)
        quotient, rest = np.divmod(x, f)
        states[: len(part)] = (quotient << SHARE_BITS) + rest + low
    words.reverse()
    present = shares > 0
    head = np.packbits(present).tobytes() + (shares[present] - 1).astype("<u2").tobytes()
    tail = np.concatenate([np.zeros(0, "<u2"), *words]).astype("<u2")
    return head + states.astype("<u4").tobytes() + tail.tobytes()


def decode_bytes(coded: bytes, length: int) -> bytes:
    """Give the `length` bytes back. Raises UnusablePack for what no writer wrote."""
    if len(coded) < 32:
        raise UnusablePack("A segment of coded bytes is cut short.")
    present = np.unpackbits(np.frombuffer(coded, np.uint8, 32)).astype(bool)
    begin = 32 + 2 * int(present.sum())
    lanes = _lanes_for(length)
    if len(coded) < begin + 4 * lanes or (len(coded) - begin) % 2:
        raise UnusablePack("A segment of coded bytes is cut short.")
    shares = np.zeros(256, np.int64)
    shares[present] = np.frombuffer(coded, "<u2", int(present.sum()), 32).astype(np.int64) + 1
    if int(shares.sum()) != _WHOLE:
        raise UnusablePack("A segment of coded bytes is damaged: its table does not add up.")
    starts = np.cumsum(shares) - shares
    owner = np.repeat(np.arange(256), shares)
    states = np.frombuffer(coded, "<u4", lanes, begin).astype(np.int64)
    words = np.frombuffer(coded, "<u2", offset=begin + 4 * lanes).astype(np.int64)
    read = np.empty(length, np.uint8)
    at = 0
    for begin in range(0, length, lanes):
        x = states[: min(lanes, length - begin)]
        slot = x & (_WHOLE - 1)
        symbol = owner[slot]
        x = shares[symbol] * (x >> SHARE_BITS) + slot - starts[symbol]
        empty = np.flatnonzero(x < _LOW)
        more = words[at : at + len(empty)]
        if len(more) < len(empty):
            raise UnusablePack("A segment of coded bytes is cut short.")
        x[empty] = x[empty] << 16 | more
        at += len(empty)
        states[: len(x)] = x
        read[begin : begin + len(x)] = symbol
    if at != len(words) or bool(np.any(states != _LOW)):
        raise UnusablePack("A segment of coded bytes is damaged: it does not end as it must.")
    return read.tobytes()


def _lanes_for(length: int) -> int:
    return min(max(length // 4096, 8), _MOST_LANES)
