"""Layers that read channels, with the columns of each channel side by side.

Channels are worked on many at a time, so that each has as many columns as any other: where one
has fewer, columns that are never fed and weigh nothing fill up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from packlight.maths.factor import invert_moments
from packlight.maths.grids import Array
from packlight.maths.layer import check_moments


@dataclass(frozen=True)
class ChannelReader:
    """A layer that reads channels.

    weight: [out, in]. second_moments: [in, in] of what reaches it, symmetric.
    columns: of each channel the inputs that are its own; () where this layer does not read it.
    Inputs that belong to no channel stay.
    """

    weight: Array
    second_moments: Array
    columns: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Layout:
    """Where inputs stand: `taps` a channel that is present, then those of no channel.

    places: [in, and more where a channel has fewer inputs] input numbers, -1 for what fills up.
    """

    present: tuple[int, ...]
    taps: int
    places: tuple[int, ...]

    def weight(self, reader: ChannelReader) -> Array:
        """The weight in this order, float64 [out, places]; 0 where nothing ever comes."""
        xp = array_namespace(reader.weight)
        index, real = self._index(reader)
        moments = xp.take(xp.linalg.diagonal(reader.second_moments), index)
        fed = real * xp.astype(moments > 0, xp.float64)
        return xp.take(xp.astype(reader.weight, xp.float64), index, axis=1) * fed[None, :]

    def moments(self, reader: ChannelReader) -> Array:
        """The second moments in this order, float64 [places, places]; what fills up is 0."""
        xp = array_namespace(reader.weight)
        index, real = self._index(reader)
        rows = xp.astype(xp.take(reader.second_moments, index, axis=0), xp.float64)
        return xp.take(rows, index, axis=1) * (real[:, None] * real[None, :])

    def inverse(self, reader: ChannelReader, damping: float) -> Array:
        """The inverse of the damped second moments in this order."""
        return invert_moments(self.moments(reader), damping=damping)

    def _index(self, reader: ChannelReader) -> tuple[Array, Array]:
        xp, place = array_namespace(reader.weight), device(reader.weight)
        index = xp.asarray([max(p, 0) for p in self.places], dtype=xp.int64, device=place)
        real = xp.asarray([float(p >= 0) for p in self.places], dtype=xp.float64, device=place)
        return index, real


def check_readers(readers: Sequence[ChannelReader]) -> int:
    """Give the number of channels. Raises ValueError for readers that don't fit each other."""
    if not readers:
        raise ValueError("channels are chosen by the layers that read them: there is none")
    counts = {len(reader.columns) for reader in readers}
    if len(counts) != 1:
        raise ValueError(f"all readers have the same channels, not {sorted(counts)}")
    for reader in readers:
        inputs = reader.weight.shape[1]
        check_moments(reader.second_moments, inputs)
        named = [column for columns in reader.columns for column in columns]
        if len(set(named)) != len(named) or not all(0 <= column < inputs for column in named):
            raise ValueError(f"each of {inputs} inputs belongs to one channel at most")
    return counts.pop()


def arrange(reader: ChannelReader) -> Layout:
    """Lay out a reader's inputs channel by channel."""
    present = tuple(c for c, columns in enumerate(reader.columns) if len(columns))
    taps = max((len(reader.columns[c]) for c in present), default=1)
    places: list[int] = []
    for c in present:
        own = [int(column) for column in reader.columns[c]]
        places += own + [-1] * (taps - len(own))
    named = set(places)
    places += [column for column in range(reader.weight.shape[1]) if column not in named]
    return Layout(present, taps, tuple(places))
