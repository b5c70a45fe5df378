"""Which channels may go, and what the rest costs once it is fitted again.

A channel is a set of columns in every layer that reads it: one for Gemm, one a kernel tap for
Conv. Without the channels of a set G a layer W [out, in] with second moments H does its best with
the columns that are kept as least squares has it, and loses

    min over V with V_G = 0 of tr((W - V) H (W - V)^T) = tr(W_G ([H^-1]_GG)^-1 W_G^T).

Optimal brain surgeon (Hassibi and Stork 1993) by blocks of columns; of whole channels as in ZipLM
(Kurtic et al. 2023) and optimal BERT surgeon (2022). A layer adds up what its readers lose, so
that readers whose outputs are not alike want second moments scaled to what an error of theirs
costs. Where a bias can take over what is constant, give the covariance H - m m^T in H's stead,
and let the bias gain `mean_shift`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from packlight.maths.exchange import improve_by_exchange
from packlight.maths.grids import Array
from packlight.maths.readers import ChannelReader, arrange, check_readers

_PENDING = 192
"""Columns of downdates that wait until one matrix product does them all."""


@dataclass(frozen=True)
class ChannelOrder:
    """Channels in the order in which they go.

    removed: channels, the first to go first. losses: [removed + 1] what all readers lose together
    once so many are gone, under the damped second moments; losses[0] is 0, and where all channels
    go the last is everything that they carried.
    channels: how many there are.
    """

    removed: tuple[int, ...]
    losses: tuple[float, ...]
    channels: int

    def kept(self, count: int) -> tuple[int, ...]:
        """The channels that are left when `count` are kept, ascending."""
        gone = self.channels - count
        if not 0 <= gone <= len(self.removed):
            raise ValueError(
                f"{self.channels - len(self.removed)} to {self.channels} channels can be kept, "
                f"not {count}"
            )
        return tuple(sorted(set(range(self.channels)) - set(self.removed[:gone])))

    def loss(self, count: int) -> float:
        """What is lost when `count` channels are kept."""
        self.kept(count)
        return self.losses[self.channels - count]


@dataclass(frozen=True)
class Selection:
    """Channels to keep, ascending, what is lost without the others, and exchanges made."""

    kept: tuple[int, ...]
    loss: float
    exchanges: int


def order_channels(
    readers: Sequence[ChannelReader],
    *,
    costs: Sequence[float] | None = None,
    locked: Iterable[int] = (),
    damping: float = 0.01,
    down_to: int = 0,
) -> ChannelOrder:
    """Remove one channel after another, each time the one that is missed least once all is refit.

    After each removal of columns c the rest is W - W_c M W'_c, H^-1 - P_c M P_c^T with P = H^-1,
    M = (P_cc)^-1: nothing is solved twice. Work grows as in^3, with memory for two arrays [in, in].
    costs: what a channel weighs, [channels], above 0: then the least loss for its cost goes first.
    locked: channels that stay. damping: share of the mean diagonal added to second moments.
    down_to: so many channels are left over.
    Raises ValueError for readers that don't fit each other, or costs that are not above 0.
    """
    channels = check_readers(readers)
    prices = _checked_costs(costs, channels)
    stays = set(locked)
    least = max(down_to, len(stays))
    states = [_Elimination(reader, damping) for reader in readers]
    free = [c for c in range(channels) if c not in stays]
    removed: list[int] = []
    losses = [0.0]
    while channels - len(removed) > least:
        total = [0.0] * channels
        for state in states:
            state.add_costs(total)
        chosen = min(free, key=lambda c: (total[c] / prices[c], c))
        lost = math.fsum(state.remove(chosen) for state in states)
        free.remove(chosen)
        removed.append(chosen)
        losses.append(losses[-1] + lost)
    return ChannelOrder(tuple(removed), tuple(losses), channels)


def select_channels(
    readers: Sequence[ChannelReader],
    keep: int,
    *,
    costs: Sequence[float] | None = None,
    locked: Iterable[int] = (),
    damping: float = 0.01,
    exchanges: int = 0,
    order: ChannelOrder | None = None,
) -> Selection:
    """Choose `keep` channels by removal one at a time, then by exchanging one for another.

    exchanges: at most so many, each the best for the channel that goes; with enough of them none
    is left that gains. With costs a channel is only exchanged for one that costs no more.
    order: that of the same readers, where it is known. The others are those of `order_channels`.
    """
    channels = check_readers(readers)
    stays = tuple(sorted(set(locked)))
    if not len(stays) <= keep <= channels:
        raise ValueError(f"{len(stays)} to {channels} channels can be kept, not {keep}")
    if order is None:
        order = order_channels(readers, costs=costs, locked=stays, damping=damping, down_to=keep)
    kept, loss = order.kept(keep), order.loss(keep)
    if not exchanges or not 0 < keep < channels:
        return Selection(kept, loss, 0)
    prices = _checked_costs(costs, channels)
    better, gain, count = improve_by_exchange(
        readers, kept, prices=prices, locked=stays, damping=damping, most=exchanges
    )
    return Selection(better, loss - gain, count)


def _checked_costs(costs: Sequence[float] | None, channels: int) -> list[float]:
    if costs is None:
        return [1.0] * channels
    if len(costs) != channels or not all(cost > 0 for cost in costs):
        raise ValueError(f"costs are {channels} numbers above 0, one a channel")
    return [float(cost) for cost in costs]


class _Elimination:
    """One reader while channels go: W and P = H^-1 of what is left, updated lazily.

    As of now they are weight - tails @ trail^T and inverse - trail @ trail^T. Diagonal blocks of
    P and of W^T W, which tell the costs, are kept up to date.
    """

    def __init__(self, reader: ChannelReader, damping: float) -> None:
        layout = arrange(reader)
        self.xp = xp = array_namespace(reader.weight)
        self.taps = layout.taps
        self.trail: Any = None
        self.tails: Any = None
        self.blocks: Any = None
        self.grams: Any = None
        self.present = list(layout.present)
        self.weight = layout.weight(reader)
        self.inverse = layout.inverse(reader, damping)
        self._settle()
        if self.weight.shape[0] > self.weight.shape[1]:
            # W counts by W^T W alone: its triangular root has fewer rows.
            self.weight = xp.linalg.qr(self.weight)[1]

    def add_costs(self, total: list[float]) -> None:
        """Add what each channel would cost now to `total` [channels]."""
        if not self.present:
            return
        xp = self.xp
        found = xp.linalg.solve(self.blocks, self.grams)
        values = xp.sum(xp.linalg.diagonal(found), axis=1)
        for place, channel in enumerate(self.present):
            if channel >= 0:
                total[channel] += max(float(values[place]), 0.0)

    def remove(self, channel: int) -> float:
        """Take a channel out, and give what that loses."""
        if channel not in self.present:
            return 0.0
        xp, place = self.xp, self.present.index(channel)
        own = slice(place * self.taps, (place + 1) * self.taps)
        column, tail = self.inverse[:, own], self.weight[:, own]
        if self.trail is not None:
            column = column - xp.matmul(self.trail, self.trail[own, :].T)
            tail = tail - xp.matmul(self.tails, self.trail[own, :].T)
        root = xp.linalg.cholesky((column[own, :] + column[own, :].T) / 2)
        column = xp.linalg.solve(root, column.T).T
        tail = xp.linalg.solve(root, tail.T).T
        lost = float(xp.sum(tail * tail))

        reach = xp.matmul(self.weight.T, tail)
        if self.trail is not None:
            reach = reach - xp.matmul(self.trail, xp.matmul(self.tails.T, tail))
        part, met = self._in_blocks(column), self._in_blocks(reach)
        half = xp.matmul(met - xp.matmul(part, xp.matmul(tail.T, tail)) / 2, part.mT)
        self.grams = self.grams - half - half.mT
        self.blocks = self.blocks - xp.matmul(part, part.mT)
        self.present[place] = -1
        # What is gone must not look singular: its blocks are never asked again.
        self.blocks[place, :, :] = xp.eye(self.taps, dtype=xp.float64, device=device(column))
        if self.trail is None:
            self.trail, self.tails = column, tail
        else:
            self.trail = xp.concat([self.trail, column], axis=1)
            self.tails = xp.concat([self.tails, tail], axis=1)
        if self.trail.shape[1] + self.taps > max(_PENDING, self.taps):
            self._flush()
        return lost

    def _in_blocks(self, columns: Array) -> Array:
        """The rows of each channel, [channels, taps, ...]."""
        count = len(self.present)
        rows = columns[: count * self.taps, :]
        return self.xp.reshape(rows, (count, self.taps, columns.shape[1]))

    def _flush(self) -> None:
        """Do the updates that wait, and drop what is gone."""
        xp, taps = self.xp, self.taps
        left = [place for place, channel in enumerate(self.present) if channel >= 0]
        wide = len(self.present) * taps
        places = [place * taps + tap for place in left for tap in range(taps)]
        places += range(wide, self.weight.shape[1])
        index = xp.asarray(places, dtype=xp.int64, device=device(self.weight))
        trail = xp.take(self.trail, index, axis=0)
        inverse = xp.take(xp.take(self.inverse, index, axis=0), index, axis=1)
        inverse -= xp.matmul(trail, trail.T)
        self.inverse = inverse
        self.weight = xp.take(self.weight, index, axis=1) - xp.matmul(self.tails, trail.T)
        self.present = [self.present[place] for place in left]
        self._settle()

    def _settle(self) -> None:
        """Nothing waits; the blocks are read off anew, so that rounding errors don't add up."""
        xp, count, taps = self.xp, len(self.present), self.taps
        self.trail = self.tails = None
        wide = count * taps
        square = xp.reshape(self.inverse[:wide, :wide], (count, taps, count, taps))
        each = xp.arange(count, device=device(self.weight))
        self.blocks = xp.asarray(square[each, :, each, :], copy=True)
        columns = xp.reshape(self.weight[:, :wide].T, (count, taps, self.weight.shape[0]))
        self.grams = xp.matmul(columns, columns.mT)
