"""Whole numbers in few bytes, seven bits a byte, the lowest first, as protobuf has them."""

from __future__ import annotations

from packlight.errors import UnusablePack

_DAMAGED = "The file is damaged: it ends where more was announced."


def write_number(value: int) -> bytes:
    """Give the bytes of a whole number of at least 0."""
    coded = bytearray()
    while value > 127:
        coded.append(value & 127 | 128)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def zigzag(value: int) -> int:
    """Give a number of at least 0 for any: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


class Numbers:
    """Reads numbers and bytes one after another; nothing beyond the end is ever read."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self, *, most: int) -> int:
        """Give the next number. Raises UnusablePack where it is above `most` or cut short."""
        value = 0
        for shift in range(0, 70, 7):
            if self._at >= len(self._content):
                raise UnusablePack(_DAMAGED)
            byte = self._content[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value > most:
                    raise UnusablePack(
                        f"The file is damaged: it says {value} where at most {most} is possible."
                    )
                return value
        raise UnusablePack("The file is damaged: a number in it has no end.")

    def read_signed(self, *, most: int) -> int:
        """Give the next number, which `zigzag` made; `most` is for its magnitude."""
        value = self.read(most=2 * most)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def take(self, length: int) -> bytes:
        """Give the next `length` bytes."""
        if length > len(self._content) - self._at:
            raise UnusablePack(_DAMAGED)
        self._at += length
        return self._content[self._at - length : self._at]

    def rest(self) -> bytes:
        """Give all that is left."""
        return self.take(len(self._content) - self._at)

    def end(self) -> None:
        """Raise UnusablePack where something is left."""
        if self._at != len(self._content):
            raise UnusablePack("The file is damaged: it goes on where it must end.")
