"""Magnitudes that neighbouring inputs may only have together: rounding to a codebook.

Eight inputs of one output are rounded at a time. Their signs come first: those of the target,
and where a format stores no sign for the last of them, an even number below 0. Then each word of
the codebook is held against what is left, w = s m with signs s and magnitudes m:

    (t - w)^T A (t - w) = t^T A t - 2 m . (s * (A t)) + sum_ij A_ij s_i s_j m_i m_j,

which is a row of numbers that depend on the target times a table that depends on the words: one
matrix product for all targets. Values are in steps of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace

from packlight.maths.grids import Array

GROUP = 8
"""Inputs that are rounded together, and share what a format says of their signs."""

_SCORES = 1 << 17
"""Words that are held against targets at a time: half a megabyte stays in the cache."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """words: [words, width], float32 magnitudes above 0; width: 4 or 8.

    even_signs: whether of eight inputs an even number is below 0.
    """

    words: Array
    even_signs: bool

    @property
    def width(self) -> int:
        """Inputs of a word."""
        return int(self.words.shape[1])

    @cached_property
    def table(self) -> Array:
        """[2 * width, words]: what the products a_i w_i and the weights w_i are multiplied by."""
        xp = array_namespace(self.words)
        turned = self.words.T
        return xp.concat([-2 * turned, turned * turned], axis=0)

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


def nearest_words(x: Array, weight: Array, codebook: Codebook) -> Array:
    """Give the levels, in steps, of least sum weight * (x - level)^2.

    x: [size, ...], size a multiple of 8: the inputs. weight: broadcasts against it, above 0.
    """
    xp = array_namespace(x)
    levels = xp.empty_like(x)
    full = xp.broadcast_to(weight, x.shape)
    for start in range(0, x.shape[0], GROUP):
        some = slice(start, start + GROUP)
        flat = xp.reshape(x[some, ...], (GROUP, -1))
        weights = xp.reshape(full[some, ...], (GROUP, -1))
        levels[some, ...] = xp.reshape(_nearest(xp, flat, weights, codebook), x[some, ...].shape)
    return levels


def improve_words(x: Array, metric: Array, levels: Array, codebook: Codebook) -> Array:
    """Give levels of no larger (x - w)^T A (x - w), with the signs of those given.

    x, levels: [8, n]. metric: A [8, 8], symmetric. The best of all words where they have eight
    inputs; of four, the best for the one half and then for the other.
    """
    xp = array_namespace(x)
    signs = _signs(xp, levels)
    found = xp.asarray(levels, copy=True)
    for start in range(0, GROUP, codebook.width):
        some = slice(start, start + codebook.width)
        rest = x - found
        rest[some, :] = x[some, :]
        sign = signs[some, :]
        near = metric[some, some]
        linear = xp.matmul(metric[some, :], rest) * sign
        cross = [
            sign[i, :] * sign[j, :] * ((1 if i == j else 2) * near[i, j]) for i, j in codebook.pairs
        ]
        best = _pick(xp, xp.concat([linear, xp.stack(cross)], axis=0), codebook.full_table)
        found[some, :] = xp.take(codebook.words, best, axis=0).T * sign
    return found


def _nearest(xp: Any, x: Array, weights: Array, codebook: Codebook) -> Array:
    """The same as `nearest_words` for eight inputs, [8, n]."""
    signs = _signs(xp, x)
    if codebook.even_signs:
        # The one that is turned where it costs least.
        odd = xp.sum(signs, axis=0) % 4 != 0
        place = xp.argmin(weights * xp.abs(x), axis=0)
        turned = (xp.arange(GROUP, dtype=place.dtype)[:, None] == place) & odd
        signs = xp.where(turned, -signs, signs)
    aim = x * signs
    aim *= weights
    found = xp.empty_like(x)
    for start in range(0, GROUP, codebook.width):
        some = slice(start, start + codebook.width)
        features = xp.concat([aim[some, :], weights[some, :]], axis=0)
        best = _pick(xp, features, codebook.table)
        found[some, :] = xp.take(codebook.words, best, axis=0).T * signs[some, :]
    return found


def _signs(xp: Any, x: Array) -> Array:
    return xp.where(x < 0, -xp.ones_like(x), xp.ones_like(x))


def _pick(xp: Any, features: Array, table: Array) -> Array:
    """Give the word of least score for each target. features: [terms, n]. table: [terms, words]."""
    rows = xp.asarray(features.T, copy=True)
    step = max(_SCORES // table.shape[1], 1)
    parts = [
        xp.argmin(xp.matmul(rows[start : start + step, :], table), axis=1)
        for start in range(0, rows.shape[0], step)
    ]
    return xp.concat(parts)
