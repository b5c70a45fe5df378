"""How few bits codes can take: ideal code lengths, and tables of counts for real coders.

Everything from counts on is whole numbers or sums of their logarithms: a table made here is
the same on every machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import is_numpy_array
from numpy.typing import ArrayLike, NDArray

from packlight.maths.grids import Array


def ideal_bits(codes: Array) -> float:
    """Give the order-0 code length of `codes` in bits: sum of -log2(count / n).

    codes: any shape, whole numbers. What a coder needs to know the counts is not included
    (Shannon 1948, theorem 9). 0 for no codes.
    """
    return _bits_of(np.unique(_flat(codes), return_counts=True)[1])


def conditional_bits(codes: Array, contexts: Array) -> float:
    """Give the code length in bits of `codes` where each context has counts of its own.

    codes, contexts: of one shape, whole numbers. Never above `ideal_bits(codes)`.
    Raises ValueError where the shapes differ.
    """
    flat, given = _flat(codes), _flat(contexts)
    if flat.shape != given.shape:
        raise ValueError(f"{given.size} contexts do not fit {flat.size} codes")
    _, place = np.unique(given, return_inverse=True)
    _, symbol = np.unique(flat, return_inverse=True)
    symbols = int(symbol.max(initial=0)) + 1
    pairs = np.unique(place * symbols + symbol, return_counts=True)[1]
    return _bits_of(pairs) - _bits_of(np.unique(given, return_counts=True)[1])


def share_counts(counts: ArrayLike, *, total: int) -> NDArray[np.int64]:
    """Give whole shares of `total` that are nearly proportional to counts, none lost.

    counts: [symbols], whole numbers of at least 0. What was counted keeps a share of at least
    1; the others get 0. What is over goes, one by one, where it shortens the code most, and is
    taken where it lengthens it least, by exact comparison of whole numbers:
    a share s + 1 instead of s saves about count / s. Returns int64 [symbols] that add up to
    `total`; all zero where nothing was counted, but for the first symbol.
    Raises ValueError where `total` is less than the symbols counted.
    """
    given = np.asarray(counts, np.int64)
    if bool(np.any(given < 0)) or given.ndim != 1 or not given.size:
        raise ValueError("counts are a list of whole numbers, none of them below 0")
    present = np.flatnonzero(given)
    if len(present) > total:
        raise ValueError(f"{len(present)} symbols cannot share {total}")
    shares = np.zeros_like(given)
    if not len(present):
        shares[0] = total
        return shares
    whole = sum(int(one) for one in given)
    for i in present:
        shares[i] = max(1, int(given[i]) * total // whole)
    while (left := total - int(shares.sum())) > 0:
        # In each round every symbol may grow by one, those that gain most first.
        order = sorted(present, key=lambda i: (-int(given[i]) * _SCALE // int(shares[i]), i))
        shares[order[:left]] += 1
    while int(shares.sum()) > total:
        able = [i for i in present if shares[i] > 1]
        least = min(able, key=lambda i: (int(given[i]) * _SCALE // (int(shares[i]) - 1), i))
        shares[least] -= 1
    return shares


_SCALE = 1 << 40


def _bits_of(counts: NDArray[Any]) -> float:
    total = int(counts.sum())
    each = [int(count) * math.log2(int(count)) for count in counts]
    return max(0.0, total * math.log2(total) - math.fsum(each)) if total else 0.0


def _flat(codes: Array) -> NDArray[Any]:
    # Counting is done in NumPy: array libraries differ in what they can count.
    own = codes if is_numpy_array(codes) else np.asarray(codes.tolist())
    return np.ravel(own)
