"""Codes yes/no decisions in as many bits as their probabilities say: a binary range ANS.

A state x in [2^16, 2^32) takes in a decision of probability f / 2^16 as
x -> (x // f) 2^16 + x mod f + start, after giving off a 16-bit word where x would grow too
large, and is read backwards (Duda 2013; Giesen 2014). Several states take turns ("lanes"), so that
NumPy decodes as many decisions at once. All arithmetic is on integers: every machine decodes
the same.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusablePack

Ints = NDArray[np.int64]

ONE = 1 << 16
"""Probabilities are whole numbers of 1 / 65536."""

LEAST = 24
"""No decision is less probable than LEAST / ONE."""

MOST_LANES = 512

_LOW = 1 << 16


class Link(Protocol):
    """What a model of codes is connected to: a writer or a reader."""

    def code(self, ones: Ints, wanted: Ints) -> Ints:
        """Pass decisions whose probability of 1 is `ones` / ONE; gives them, known or read.

        wanted: the decisions; a reader, which does not know them, does not look.
        """


class BitWriter:
    """Collects decisions; `finish` codes them."""

    def __init__(self) -> None:
        self._ones: list[NDArray[np.uint16]] = []
        self._bits: list[NDArray[np.uint8]] = []
        self.bits = 0.0

    def code(self, ones: Ints, wanted: Ints) -> Ints:
        """Take decisions in; gives them back."""
        # A probability is below ONE, so that 16 bits hold it.
        self._ones.append(ones.astype(np.uint16))
        self._bits.append(wanted.astype(np.uint8))
        self.bits -= float(np.sum(np.log2(np.where(wanted == 1, ones, ONE - ones) / ONE)))
        return wanted

    def finish(self, lanes: int = 1) -> bytes:
        """Give the coded bytes: the lanes' last states, then 16-bit words, little-endian."""
        if lanes > 1:
            turns = [
                (ones[at : at + lanes], bits[at : at + lanes])
                for ones, bits in zip(self._ones, self._bits, strict=True)
                for at in range(0, len(ones), lanes)
            ]
            return _encode_lanes(turns, lanes)
        ones = np.concatenate([np.zeros(0, np.uint16), *self._ones])
        return encode_alone(ones.tolist(), np.concatenate([ones[:0], *self._bits]).tolist())


class BitReader:
    """Reads decisions back, given the same probabilities."""

    def __init__(self, coded: bytes, lanes: int = 1) -> None:
        if not 1 <= lanes <= MOST_LANES or len(coded) < 4 * lanes or len(coded) % 2:
            raise UnusablePack("A segment of coded numbers is cut short or damaged.")
        self._lanes = lanes
        words = np.frombuffer(coded, "<u2", offset=4 * lanes)
        self._words = words.astype(np.int64)
        self._list: list[int] = words.tolist() if lanes == 1 else []
        self._states = np.frombuffer(coded, "<u4", lanes).astype(np.int64)
        self._state = int(self._states[0])  # of a lane alone
        self._at = 0

    def code(self, ones: Ints, wanted: Ints) -> Ints:
        """Give the next decisions; `wanted` is not looked at."""
        if self._lanes == 1:
            return self._decode_alone(ones)
        read = np.empty(len(ones), np.int64)
        for start in range(0, len(ones), self._lanes):
            part = ones[start : start + self._lanes]
            read[start : start + self._lanes] = self._decode_lanes(part)
        return read

    def read_one(self, one: int) -> int:
        """Give the next decision, whose probability of 1 is `one` / ONE; for one lane."""
        x, zero = self._state, ONE - one
        slot = x & 0xFFFF
        bit = int(slot >= zero)
        x = one * (x >> 16) + slot - zero if bit else zero * (x >> 16) + slot
        if x < _LOW:
            if self._at >= len(self._list):
                raise UnusablePack("A segment of coded numbers is cut short.")
            x = x << 16 | self._list[self._at]
            self._at += 1
        self._state = x
        return bit

    def finish(self) -> None:
        """Check that all was read and that every state is where the writer began."""
        if self._lanes == 1:
            self._states[0] = self._state
        if self._at != len(self._words) or bool(np.any(self._states != _LOW)):
            raise UnusablePack("A segment of coded numbers is damaged: it does not end as it must.")

    def _decode_alone(self, ones: Ints) -> Ints:
        return np.array([self.read_one(one) for one in ones.tolist()], np.int64)

    def _decode_lanes(self, ones: Ints) -> Ints:
        x = self._states[: len(ones)]
        slot, zero = x & 0xFFFF, ONE - ones
        bits = (slot >= zero).astype(np.int64)
        x = np.where(bits == 1, ones, zero) * (x >> 16) + slot - bits * zero
        empty = np.flatnonzero(x < _LOW)
        words = self._words[self._at : self._at + len(empty)]
        if len(words) < len(empty):
            raise UnusablePack("A segment of coded numbers is cut short.")
        x[empty] = x[empty] << 16 | words
        self._at += len(empty)
        self._states[: len(ones)] = x
        return bits


def lanes_for(bits: float) -> int:
    """How many lanes `bits` of coded decisions bear: what they cost is under 0.2 %."""
    lanes = 1 << max(0, math.floor(math.log2(max(bits, 1.0) / 16384)))
    return 1 if lanes < 64 else min(lanes, MOST_LANES)


def encode_alone(ones: list[int], bits: list[int]) -> bytes:
    """Give the coded bytes of decisions `bits` with probabilities of 1 `ones`, for one lane."""
    x = _LOW
    words: list[int] = []
    for one, bit in zip(reversed(ones), reversed(bits), strict=True):
        f, low = (one, ONE - one) if bit else (ONE - one, 0)
        if x >= f << 16:
            words.append(x & 0xFFFF)
            x >>= 16
        x = ((x // f) << 16) + x % f + low
    words.reverse()
    return x.to_bytes(4, "little") + np.array(words, "<u2").tobytes()


def _encode_lanes(turns: list[tuple[NDArray[np.uint16], NDArray[np.uint8]]], lanes: int) -> bytes:
    states = np.full(lanes, _LOW, np.int64)
    words: list[NDArray[np.uint16]] = []
    for ones, bits in reversed(turns):
        zero = ONE - ones.astype(np.int64)
        f, low = np.where(bits, ONE - zero, zero), np.where(bits, zero, 0)
        x = states[: len(f)]
        full = x >= f << 16
        # Read forwards, the words of one turn come in the order of their lanes.
        words.append((x[full] & 0xFFFF).astype("<u2"))
        quotient, rest = np.divmod(np.where(full, x >> 16, x), f)
        states[: len(f)] = (quotient << 16) + rest + low
    words.reverse()
    tail = np.concatenate([np.zeros(0, "<u2"), *words]).astype("<u2")
    return states.astype("<u4").tobytes() + tail.tobytes()
