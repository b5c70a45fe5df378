"""Levels that neighbouring inputs may only have together: rounding to a codebook.

Eight inputs of one output are rounded at a time. Their signs come first: those of the target,
and where a format stores no sign for the last of them, an even number below 0. Then each word of
the codebook is held against what is left, w = s m with signs s and magnitudes m:

    (t - w)^T A (t - w) = t^T A t - 2 m . (s * (A t)) + sum_ij A_ij s_i s_j m_i m_j,

which is a row of numbers that depend on the target times a table that depends on the words: one
matrix product for all targets. Values are in steps of the grid.

Where words have signs of their own, -2 w . (A t) + w^T A w is all there is to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from array_api_compat import array_namespace

from packlight.maths.grids import Array

GROUP = 8
"""Inputs that are rounded together, and share what a format says of their signs."""

_SCORES = 1 << 17
"""Words that are held against targets at a time: half a megabyte stays in the cache."""


class Words(Protocol):
    """What neighbouring inputs may be together."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the highest level to which a value of largest size may well go."""

    def nearest(self, x: Array, weights: Array, below: Array | None) -> Array:
        """Give the levels of least sum weights * (x - level)^2, all [8, n].

        below: [n], where the step of the grid is below 0; None: nowhere.
        """

    def improve(self, x: Array, metric: Array, levels: Array, below: Array | None) -> Array:
        """Give levels [8, n] of no larger (x - w)^T A (x - w). metric: A [8, 8], symmetric."""


def nearest_words(x: Array, weight: Array, words: Words, below: Array | None = None) -> Array:
    """Give the levels, in steps, of least sum weight * (x - level)^2.

    x: [size, ...], size a multiple of 8: the inputs. weight: broadcasts against it, above 0.
    below: [...], where the step is below 0; None: nowhere.
    """
    xp = array_namespace(x)
    levels = xp.empty_like(x)
    full = xp.broadcast_to(weight, x.shape)
    side = None if below is None else xp.reshape(below, (-1,))
    for start in range(0, x.shape[0], GROUP):
        some = slice(start, start + GROUP)
        flat = xp.reshape(x[some, ...], (GROUP, -1))
        weights = xp.reshape(full[some, ...], (GROUP, -1))
        levels[some, ...] = xp.reshape(words.nearest(flat, weights, side), x[some, ...].shape)
    return levels


@dataclass(frozen=True, eq=False)
class Codebook:
    """Words of magnitudes, whose signs are free.

    words: [words, width], float32 magnitudes above 0; width: 4 or 8.
    even_signs: whether of eight inputs an even number is below 0.
    """

    words: Array
    even_signs: bool

    @property
    def width(self) -> int:
        """Inputs of a word."""
        return int(self.words.shape[1])

    @property
    def shares(self) -> tuple[float, ...]:
        """As in `Words`."""
        return (0.66, 0.76, 0.84, 0.92, 1.0, 1.1)

    @cached_property
    def table(self) -> Array:
        """[2 * width, words]: what the products a_i w_i and the weights w_i are multiplied by."""
        return _table(self.words)

    @cached_property
    def full_table(self) -> Array:
        """[width + width (width + 1) / 2, words]: by s_i (A t)_i, and by s_i s_j A_ij, i <= j."""
        xp = array_namespace(self.words)
        turned = self.words.T
        pairs = [turned[i, :] * turned[j, :] for i, j in self.pairs]
        return xp.concat([-2 * turned, xp.stack(pairs)], axis=0)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Places i <= j of a word."""
        return tuple((i, j) for i in range(self.width) for j in range(i, self.width))

    def nearest(self, x: Array, weights: Array, below: Array | None = None) -> Array:
        """As in `Words`: the nearest, except for which sign is turned where one must be."""
        xp = array_namespace(x)
        signs = _signs(xp, x)
        if self.even_signs:
            # The one that is turned where it costs least.
            odd = xp.sum(signs, axis=0) % 4 != 0
            place = xp.argmin(weights * xp.abs(x), axis=0)
            turned = (xp.arange(GROUP, dtype=place.dtype)[:, None] == place) & odd
            signs = xp.where(turned, -signs, signs)
        aim = x * signs
        aim *= weights
        found = xp.empty_like(x)
        for start in range(0, GROUP, self.width):
            some = slice(start, start + self.width)
            features = xp.concat([aim[some, :], weights[some, :]], axis=0)
            best = _pick(xp, features, self.table)
            found[some, :] = xp.take(self.words, best, axis=0).T * signs[some, :]
        return found

    def improve(self, x: Array, metric: Array, levels: Array, below: Array | None = None) -> Array:
        """As in `Words`, with the signs of the levels given.

        The best of all words where they have eight inputs; of four, the best for the one half and
        then for the other.
        """
        xp = array_namespace(x)
        signs = _signs(xp, levels)
        found = xp.asarray(levels, copy=True)
        for start in range(0, GROUP, self.width):
            some = slice(start, start + self.width)
            rest = x - found
            rest[some, :] = x[some, :]
            sign = signs[some, :]
            near = metric[some, some]
            linear = xp.matmul(metric[some, :], rest) * sign
            cross = [
                sign[i, :] * sign[j, :] * ((1 if i == j else 2) * near[i, j]) for i, j in self.pairs
            ]
            best = _pick(xp, xp.concat([linear, xp.stack(cross)], axis=0), self.full_table)
            found[some, :] = xp.take(self.words, best, axis=0).T * sign
        return found


@dataclass(frozen=True, eq=False)
class SignedCodebook:
    """Words of eight levels as they are, signs and all.

    words: [words, 8], float32. below: those to be had where the step is below 0, where they are
    others.
    """

    words: Array
    below: Array | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """As in `Words`: of few levels the highest is far below the largest value."""
        return (0.85, 1.0, 1.2, 1.4, 1.7, 2.0)

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """As `Codebook.table`, for steps above 0 and below."""
        return _table(self._words(0)), _table(self._words(1))

    def nearest(self, x: Array, weights: Array, below: Array | None = None) -> Array:
        """As in `Words`."""
        xp = array_namespace(x)
        features = xp.concat([x * weights, weights], axis=0)
        return self._on_each_side(
            xp, features, below, lambda some, side: _pick(xp, some, self.tables[side])
        )

    def improve(self, x: Array, metric: Array, levels: Array, below: Array | None = None) -> Array:
        """As in `Words`: the best of all words."""
        xp = array_namespace(x)

        def pick(some: Array, side: int) -> Array:
            words = self._words(side)
            own = xp.sum(xp.matmul(words, metric) * words, axis=1)
            return _pick(xp, some, -2 * words.T, own)

        return self._on_each_side(xp, xp.matmul(metric, x), below, pick)

    def _words(self, side: int) -> Array:
        return self.below if side and self.below is not None else self.words

    def _on_each_side(
        self, xp: Any, features: Array, below: Array | None, pick: Callable[[Array, int], Array]
    ) -> Array:
        """Levels [8, n] of the words picked for features [terms, n], by the side of their step."""
        if self.below is None or below is None:
            return xp.take(self.words, pick(features, 0), axis=0).T
        found = xp.empty((GROUP, features.shape[1]), dtype=features.dtype)
        for side, mask in enumerate((~below, below)):
            places = xp.nonzero(mask)[0]
            if not places.shape[0]:
                continue
            best = pick(xp.take(features, places, axis=1), side)
            found[:, mask] = xp.take(self._words(side), best, axis=0).T
        return found


def _table(words: Array) -> Array:
    xp = array_namespace(words)
    turned = words.T
    return xp.concat([-2 * turned, turned * turned], axis=0)


def _signs(xp: Any, x: Array) -> Array:
    return xp.where(x < 0, -xp.ones_like(x), xp.ones_like(x))


def _pick(xp: Any, features: Array, table: Array, own: Array | None = None) -> Array:
    """Give the word of least score for each target.

    features: [terms, n]. table: [terms, words]. own: [words], added to every target's scores.
    """
    rows = xp.asarray(features.T, copy=True)
    step = max(_SCORES // table.shape[1], 1)
    parts = []
    for start in range(0, rows.shape[0], step):
        scores = xp.matmul(rows[start : start + step, :], table)
        parts.append(xp.argmin(scores if own is None else scores + own, axis=1))
    return xp.concat(parts)
