"""Names, graphs and recipes in few bits: each byte predicted from the bytes before it.

What an ONNX file holds besides its numbers is a few kilobytes of names that repeat, and it is all
the same from model to model. So six small models look at the last 0, 1, 2, 3, 4 and 6 bytes,
a seventh at what followed the last occurrence of the last five, and before they begin they read
a page of what such files usually say. A byte is eight yes/no decisions.
"""

from __future__ import annotations

from packlight.transport.bits import BitReader, encode_alone
from packlight.transport.logistic import EDGE, squash_table, stretch_table
from packlight.transport.usual import USUAL

MOST_BYTES = 1 << 15
"""Longer text takes too long: it goes through LZMA."""

_ORDERS = (0, 1, 2, 3, 4, 6)
_MATCH = 5
_VOTES = len(_ORDERS) + 2


def encode_text(content: bytes) -> bytes:
    """Give coded bytes for text of at most MOST_BYTES bytes."""
    model = _Model()
    for byte in USUAL:
        model.pass_byte(byte, None)
    ones: list[int] = []
    for byte in content:
        model.pass_byte(byte, None, ones)
    bits = [byte >> shift & 1 for byte in content for shift in range(7, -1, -1)]
    return encode_alone(ones, bits)


def decode_text(coded: bytes, length: int) -> bytes:
    """Give the `length` bytes back. Raises UnusablePack for what no writer wrote."""
    reader = BitReader(coded)
    model = _Model()
    for byte in USUAL:
        model.pass_byte(byte, None)
    for _ in range(length):
        model.pass_byte(0, reader)
    reader.finish()
    return bytes(model.seen[len(USUAL) :])


class _Model:
    """Counts by what came before, and the weights of their votes."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.counts: list[dict[int, list[int]]] = [{} for _ in _ORDERS]
        self.weights = [[20000] * _VOTES for _ in range(32)]
        self.places: dict[bytes, int] = {}
        self.follow = 0  # what the byte at this place was is expected next; 0: nothing
        self.matched = 0
        self.match_counts = [[ONE_HALF, 0] for _ in range(64)]
        self.squash: list[int] = squash_table().tolist()
        self.stretch: list[int] = stretch_table().tolist()

    def pass_byte(self, byte: int, reader: BitReader | None, ones: list[int] | None = None) -> None:
        """Predict one byte, learn it, and remember it; it comes from `reader` where there is one.

        ones: takes the probabilities of 1.
        """
        seen, squash, stretch = self.seen, self.squash, self.stretch
        keys = [int.from_bytes(seen[-order:] if order else b"", "big") << 8 for order in _ORDERS]
        expected = seen[self.follow] | 256 if self.follow else 0
        node = 1
        for shift in range(7, -1, -1):
            cells = []
            votes = []
            known = 0
            for table, key in zip(self.counts, keys, strict=True):
                cell = table.get(key | node)
                if cell is None:
                    cell = table[key | node] = [ONE_HALF, 0]
                    votes.append(0)
                else:
                    known += 1
                    votes.append(stretch[cell[0] >> 4])
                cells.append(cell)
            match = None
            if expected and (expected >> (shift + 1)) == node:
                likely = expected >> shift & 1
                match = self.match_counts[min(self.matched, 31) * 2 + likely]
                votes.append(stretch[match[0] >> 4])
            else:
                votes.append(0)
            votes.append(256)
            weights = self.weights[known * 2 + (match is not None)]
            mixed = sum(map(int.__mul__, weights, votes)) >> 16
            mixed = max(-EDGE, min(EDGE, mixed))
            one = squash[mixed + EDGE]
            if ones is not None:
                ones.append(one)
            bit = byte >> shift & 1 if reader is None else reader.read_one(one)
            error = (bit << 16) - one
            for i, vote in enumerate(votes):
                weights[i] += vote * error >> 13
            if match is not None:
                cells.append(match)
            goal = bit * 65535
            for cell in cells:
                cell[0] += (goal - cell[0]) * 2 // (2 * cell[1] + 3)
                if cell[1] < 30:
                    cell[1] += 1
            node = node << 1 | bit
        self._remember(node & 255)

    def _remember(self, byte: int) -> None:
        seen = self.seen
        if self.follow and seen[self.follow] == byte:
            self.follow += 1
            self.matched += 1
        else:
            self.follow = self.matched = 0
        seen.append(byte)
        if len(seen) >= _MATCH:
            last = bytes(seen[-_MATCH:])
            if not self.follow:
                self.follow = self.places.get(last, 0)
            self.places[last] = len(seen)


ONE_HALF = 1 << 15
"""A probability before anything was counted."""
