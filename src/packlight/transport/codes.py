"""Whole numbers of a layer in few bits: each one predicted from those before it.

A matrix of codes [rows, columns] is walked in stretches of some hundred codes. Each code is a
few yes/no decisions: is it 0, how many binary digits has its magnitude (asked one by one),
its sign, its other digits. For each decision several small models look up how often it was
1 so far: in this row, in this column, in this input channel, next to neighbours as large as
these, ... A mixer joins them. Nothing is sent but the decisions, since a reader can count
along; and everything in a stretch is computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packlight.transport.bits import Ints, Link
from packlight.transport.logistic import EDGE, STEPS, Mixer, squash_table, stretch_table

MOST_DIGITS = 32
"""A magnitude is below 2^32."""

_NODES = MOST_DIGITS + 2
_SIGN = MOST_DIGITS + 1
_TURNS = (0, 2, 1, 3)
"""Of four columns, which comes when: the later ones know their neighbours on both sides."""

_MOST_COUNTED = 1 << 14
"""Rows and columns beyond so many share their counts, which bounds the memory."""

_LIMIT = 1 << 10
"""Counts are halved here, so that what was long ago counts less."""


@dataclass(frozen=True)
class Layout:
    """How codes lie in their layer.

    rows, columns: of the matrix. kernel: so many neighbouring columns belong to one input
    channel (1 for dense layers).
    """

    rows: int
    columns: int
    kernel: int = 1


@dataclass(frozen=True)
class _View:
    """What is known of n codes before they are coded.

    contexts: [models, n]. near: size of the neighbours. when: how early in the matrix.
    """

    contexts: Ints
    near: Ints
    when: Ints


class _Counts:
    """How often a decision was 0 and 1, in each context of each model."""

    def __init__(self, sizes: list[int]) -> None:
        self._starts = np.cumsum([0, *sizes[:-1]])[:, None]
        self._zeros = np.zeros(sum(sizes), np.int64)
        self._ones = np.zeros(sum(sizes), np.int64)

    def predict(self, contexts: Ints) -> tuple[Ints, Ints]:
        """Give where the contexts [models, n] are counted, and their votes [models, n]."""
        at = contexts + self._starts
        zeros, ones = self._zeros[at], self._ones[at]
        # (ones + 0.4) / (zeros + ones + 0.8), in 4096ths.
        share = ((5 * ones + 2) << 12) // (5 * (zeros + ones) + 4)
        return at, stretch_table()[share]

    def learn(self, at: Ints, bits: Ints) -> None:
        """Count decisions [n] in all contexts that predicted them."""
        flat = at.ravel()
        np.add.at(self._ones, flat, np.tile(bits, len(at)))
        np.add.at(self._zeros, flat, np.tile(1 - bits, len(at)))
        full = flat[self._zeros[flat] + self._ones[flat] > _LIMIT]
        if len(full):
            full = np.unique(full)
            self._zeros[full] >>= 1
            self._ones[full] >>= 1


def walk_codes(link: Link, layout: Layout, known: Ints | None) -> Ints:
    """Pass a matrix of codes through `link`; gives it back, known or read.

    known: [rows, columns] in writing, None in reading. Magnitudes are below 2^32.
    """
    return _Walk(link, layout, known).run()


class _Walk:
    def __init__(self, link: Link, layout: Layout, known: Ints | None) -> None:
        rows, columns, kernel = layout.rows, layout.columns, layout.kernel
        self.link, self.layout, self.known = link, layout, known
        # A border of zeros: two above, two to the left, two to the right.
        self.codes = np.zeros((rows + 2, columns + 4), np.int64)
        self.sizes = np.zeros((rows + 2, columns + 4), np.int64)  # binary digits of codes
        contexts = [rows, columns, -(-columns // kernel), 256, 64, 256, kernel * 16]
        self.counts = _Counts([_NODES * min(one, _MOST_COUNTED) for one in contexts])
        votes = len(contexts) + 1
        self.mixers = (Mixer(_NODES * 8, votes), Mixer(_NODES * 16, votes))
        self.digits = _Counts([1 << 13])
        self.row_digits = np.zeros(rows, np.int64)
        self.row_seen = np.zeros(rows, np.int64)
        self.column_digits = np.zeros(columns, np.int64)

    def run(self) -> Ints:
        rows, columns = self.layout.rows, self.layout.columns
        # Short stretches learn sooner, long ones take less time.
        stretch = max(24, min(rows * columns // 256, 256), min(rows * columns // 2048, 8192))
        tall = max(1, stretch * len(_TURNS) // columns)
        for top in range(0, rows, tall):
            r = np.arange(top, min(top + tall, rows))
            for turn, first in enumerate(_TURNS):
                c = np.arange(first, columns, len(_TURNS))
                if len(c):
                    self._pass_stretch(np.repeat(r, len(c)), np.tile(c, len(r)), turn, top)
        return self.codes[2:, 2 : 2 + columns]

    def _pass_stretch(self, r: Ints, c: Ints, turn: int, top: int) -> None:
        known = np.zeros(len(r), np.int64) if self.known is None else self.known[r, c]
        known_size = digits_of(abs(known))
        view = self._look(r, c, turn, top)
        size = np.zeros(len(r), np.int64)
        alive = np.arange(len(r))
        for node in range(MOST_DIGITS):
            bits = self._decide(node, alive, view, (known_size[alive] > node).astype(np.int64))
            alive = alive[bits == 1]
            if not len(alive):
                break
            size[alive] += 1
        alive = np.flatnonzero(size)
        if len(alive):
            target = known[alive]
            negative = self._decide(_SIGN, alive, view, (target < 0).astype(np.int64))
            magnitude = self._pass_digits(size[alive], abs(target))
            self.codes[r[alive] + 2, c[alive] + 2] = np.where(negative == 1, -magnitude, magnitude)
            self.sizes[r + 2, c + 2] = size
            np.add.at(self.row_digits, r, size)
            np.add.at(self.column_digits, c, size)
        np.add.at(self.row_seen, r, 1)

    def _look(self, r: Ints, c: Ints, turn: int, top: int) -> _View:
        s, i, j, kernel = self.sizes, r + 2, c + 2, self.layout.kernel
        left, right, above, above2 = s[i, j - 1], s[i, j + 1], s[i - 1, j], s[i - 2, j]
        left2, right2 = s[i, j - 2], s[i, j + 2 - (j + 2 >= s.shape[1])]
        corners = s[i - 1, j - 1] + s[i - 1, j + 1]
        near = 2 * (left + right + above) + left2 + right2 + above2 + corners
        row = coarsen((self.row_digits[r] * 8 + 4) // (self.row_seen[r] + 1))
        column = coarsen((self.column_digits[c] * 8 + 4) // (top + 1))
        beside = np.minimum(left, 3) * 64 + np.minimum(right, 3) * 16 + np.minimum(above, 3) * 4
        contexts = (
            r % _MOST_COUNTED,
            c % _MOST_COUNTED,
            c // kernel % _MOST_COUNTED,
            np.minimum(left + right, 7) * 32 + np.minimum(column, 15) * 2 + np.minimum(above, 1),
            np.minimum(row, 7) * 8 + np.minimum(column, 7),
            beside + np.minimum(left2 + right2, 3),
            (c % kernel * 16 + np.minimum(above + 2 * above2, 15)) % _MOST_COUNTED,
        )
        when = np.full(len(r), turn + 4 * (top > 8))
        return _View(np.stack(contexts), np.minimum(coarsen(near), 15), when)

    def _decide(self, node: int, alive: Ints, view: _View, wanted: Ints) -> Ints:
        at, votes = self.counts.predict(view.contexts[:, alive] * _NODES + node)
        votes = np.concatenate([votes, np.full((1, len(alive)), STEPS, np.int64)])
        sets = (node * 8 + view.when[alive], node * 16 + view.near[alive])
        mixed = [mixer.mix(own, votes) for mixer, own in zip(self.mixers, sets, strict=True)]
        bits = self.link.code(squash_table()[((mixed[0] + mixed[1]) >> 1) + EDGE], wanted)
        for mixer, own, one in zip(self.mixers, sets, mixed, strict=True):
            mixer.learn(own, votes, one, bits)
        self.counts.learn(at, bits)
        return bits

    def _pass_digits(self, size: Ints, target: Ints) -> Ints:
        """Give magnitudes [n] of `size` binary digits; the first digit is 1, the others coded."""
        magnitude = np.ones(len(size), np.int64)
        alive = np.flatnonzero(size > 1)
        done = 1
        while len(alive):
            wanted = (target[alive] >> np.maximum(size[alive] - done - 1, 0)) & 1
            # Digits far behind the first are as good as random: their place is all they know.
            seen = magnitude[alive] if done < 7 else np.full(len(alive), 64 + done)
            at, votes = self.digits.predict((seen + 128 * size[alive])[None, :])
            bits = self.link.code(squash_table()[votes[0] + EDGE], wanted)
            self.digits.learn(at, bits)
            magnitude[alive] = 2 * magnitude[alive] + bits
            done += 1
            alive = alive[size[alive] > done]
        return magnitude


def digits_of(magnitudes: Ints) -> Ints:
    """Give the number of binary digits of whole numbers from 0 to 2^32 - 1."""
    powers = np.left_shift(1, np.arange(MOST_DIGITS, dtype=np.int64))
    return np.searchsorted(powers, magnitudes, side="right").astype(np.int64)


def coarsen(x: Ints) -> Ints:
    """Give the rough size of whole numbers on a logarithmic scale: 0, 1, 2, 3, 4, 4, 5, 5, ..."""
    half = digits_of(x >> 1)
    return np.where(x < 4, x, 2 * half + ((x >> np.maximum(half - 1, 0)) & 1))
