"""Better sets of channels by exchanging one that is kept for one that is not.

All that single removals and additions need stands in one symmetric table of the inputs, swept
(Beaton 1964, Goodnight 1979) at the inputs S that are kept, N being the others:

    -H_SS^-1             H_SS^-1 H_SN
    (H_SS^-1 H_SN)^T     H_NN - H_NS H_SS^-1 H_SN

and beside it, V_S = the refitted weight and V_N = what of the outputs the kept inputs leave to
explain. Sweeping at a channel takes it out of S or in: A_ij - A_ic (A_cc)^-1 A_cj, either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from array_api_compat import array_namespace, device

from packlight.maths.factor import damp_moments, invert_moments
from packlight.maths.grids import Array
from packlight.maths.readers import ChannelReader, arrange

_WORTH = 1e-7
"""An exchange must gain this share of what is lost, or it is rounding noise."""


def improve_by_exchange(
    readers: Sequence[ChannelReader],
    kept: Sequence[int],
    *,
    prices: Sequence[float],
    locked: Iterable[int] = (),
    damping: float = 0.01,
    most: int,
) -> tuple[tuple[int, ...], float, int]:
    """Exchange kept channels for others as long as that lowers what all readers lose together.

    Of the kept channels, each in turn, the one that is missed least first, is exchanged for the
    channel that is best once it is gone. prices: [channels]; no channel comes in for a cheaper
    one. most: exchanges at most. Returns the channels kept, ascending, what was gained, and how
    many were exchanged. The work for an exchange grows as in^2, for each kept channel it takes
    out * in.
    """
    tables = [_Table(reader, kept, damping) for reader in readers]
    inside, stays = set(kept), set(locked)
    gained, made = 0.0, 0
    moved = True
    while moved:
        moved = False
        missed = {c: math.fsum(table.cost(c) for table in tables) for c in inside - stays}
        for out in sorted(missed, key=lambda c: (missed[c], c)):
            lost = math.fsum(table.cost(out) for table in tables)
            others = [c for c in range(len(prices)) if c not in inside and prices[c] <= prices[out]]
            if not others:
                continue
            gains = [0.0] * len(prices)
            for table in tables:
                table.add_gains(gains, out, others)
            best = max(others, key=lambda c: (gains[c], -c))
            scale = math.fsum(table.left() for table in tables)
            if gains[best] - lost <= _WORTH * scale:
                continue
            for table in tables:
                table.sweep(out)
                table.sweep(best)
            inside = (inside - {out}) | {best}
            gained += gains[best] - lost
            made += 1
            moved = True
            if made == most:
                return tuple(sorted(inside)), gained, made
    return tuple(sorted(inside)), gained, made


class _Table:
    """The swept table A [in, in] of one reader and V [out, in] beside it, channel by channel."""

    def __init__(self, reader: ChannelReader, kept: Iterable[int], damping: float) -> None:
        self.xp = xp = array_namespace(reader.weight)
        layout = arrange(reader)
        self.taps = layout.taps
        self.place = {channel: number for number, channel in enumerate(layout.present)}
        wide = len(layout.present) * layout.taps
        h = damp_moments(layout.moments(reader), damping=damping)
        weight = layout.weight(reader)
        chosen = {self.place[c] for c in kept if c in self.place}
        inside = [i for i in range(h.shape[0]) if i >= wide or i // layout.taps in chosen]
        known = set(inside)
        spot = device(h)
        s = xp.asarray(inside, dtype=xp.int64, device=spot)
        n = xp.asarray(
            [i for i in range(h.shape[0]) if i not in known], dtype=xp.int64, device=spot
        )
        inverse = invert_moments(h[s[:, None], s[None, :]], damping=0.0)
        cross = h[s[:, None], n[None, :]]
        through = xp.matmul(inverse, cross)
        seen = xp.matmul(weight, h)
        self.value = xp.empty_like(weight)
        self.value[:, s] = xp.matmul(seen[:, s], inverse)
        self.value[:, n] = seen[:, n] - xp.matmul(self.value[:, s], cross)
        h[s[:, None], s[None, :]] = -inverse
        h[n[:, None], n[None, :]] -= xp.matmul(cross.T, through)
        h[s[:, None], n[None, :]] = through
        h[n[:, None], s[None, :]] = through.T
        self.table = h
        # What is lost now: the part of all that the outputs carry which V_N still holds.
        self._lost = float(xp.sum(weight * seen)) - float(xp.sum(self.value[:, s] * seen[:, s]))
        self._settle()

    def left(self) -> float:
        """What is lost with the channels that are kept now."""
        return max(self._lost, 0.0)

    def cost(self, channel: int) -> float:
        """What is lost besides when a channel that is kept goes."""
        if channel not in self.place:
            return 0.0
        place = self.place[channel]
        found = self.xp.linalg.solve(-self.blocks[place, :, :], self.grams[place, :, :])
        return float(self.xp.sum(self.xp.linalg.diagonal(found)))

    def add_gains(self, gains: list[float], out: int, others: Sequence[int]) -> None:
        """Add to `gains` [channels] what each of the others brings back once `out` is gone."""
        read = [channel for channel in others if channel in self.place]
        if not read:
            return
        xp = self.xp
        chosen = xp.asarray(
            [self.place[channel] for channel in read], dtype=xp.int64, device=device(self.table)
        )
        blocks, grams = xp.take(self.blocks, chosen, axis=0), xp.take(self.grams, chosen, axis=0)
        if out in self.place:
            own = self._own(out)
            inverse = xp.linalg.inv(-self.table[own, own])
            tail = self.value[:, own]
            ahead = xp.take(self._in_blocks(self.table[:, own]), chosen, axis=0)
            met = xp.take(self._in_blocks(xp.matmul(self.value.T, tail)), chosen, axis=0)
            through = xp.matmul(ahead, inverse)
            blocks = blocks + xp.matmul(through, ahead.mT)
            half = xp.matmul(met + xp.matmul(through, xp.matmul(tail.T, tail)) / 2, through.mT)
            grams = grams + half + half.mT
        found = xp.sum(xp.linalg.diagonal(xp.linalg.solve(blocks, grams)), axis=1)
        for number, channel in enumerate(read):
            gains[channel] += float(found[number])

    def sweep(self, channel: int) -> None:
        """Take a channel in, or out."""
        if channel not in self.place:
            return
        xp, own = self.xp, self._own(channel)
        inverse = xp.linalg.inv(self.table[own, own])
        inverse = (inverse + inverse.T) / 2
        sign = 1.0 if float(inverse[0, 0]) > 0 else -1.0
        column = xp.asarray(self.table[:, own], copy=True)
        tail = xp.asarray(self.value[:, own], copy=True)
        through = xp.matmul(column, inverse)
        self._lost -= float(xp.sum(xp.matmul(tail, inverse) * tail))
        self.table -= xp.matmul(through, column.T)
        self.value -= xp.matmul(tail, through.T)
        self.table[:, own] = sign * through
        self.table[own, :] = sign * through.T
        self.table[own, own] = -inverse
        self.value[:, own] = sign * xp.matmul(tail, inverse)
        self._settle()

    def _own(self, channel: int) -> slice:
        start = self.place[channel] * self.taps
        return slice(start, start + self.taps)

    def _in_blocks(self, columns: Array) -> Array:
        count = len(self.place)
        return self.xp.reshape(
            columns[: count * self.taps, :], (count, self.taps, columns.shape[1])
        )

    def _settle(self) -> None:
        """Read the diagonal blocks of A and of V^T V off anew."""
        xp, count = self.xp, len(self.place)
        wide = count * self.taps
        square = xp.reshape(self.table[:wide, :wide], (count, self.taps, count, self.taps))
        each = xp.arange(count, device=device(self.table))
        self.blocks = square[each, :, each, :]
        columns = self._in_blocks(self.value.T)
        self.grams = xp.matmul(columns, columns.mT)
