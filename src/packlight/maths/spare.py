"""What of a weight is spare: directions it hardly uses, rows like others, rows of nothing."""

from __future__ import annotations

from array_api_compat import array_namespace

from packlight.maths.grids import Array

ALIKE = 0.99
"""Cosine from which on two rows count as the same up to a factor."""


def effective_rank(weight: Array) -> float:
    """Give exp(-sum p_i log p_i) with p_i = s_i / sum s, of the singular values s.

    From 1 to min(out, in); equal singular values give their number, one alone gives 1
    (Roy and Vetterli 2007, "The effective rank"). weight: [out, in]. 0 for a weight of 0.
    """
    xp = array_namespace(weight)
    values = xp.linalg.svdvals(xp.astype(weight, xp.float64))
    total = xp.sum(values)
    if float(total) == 0:
        return 0.0
    shares = values / total
    logs = xp.log(xp.where(shares > 0, shares, xp.ones_like(shares)))
    return float(xp.exp(-xp.sum(shares * logs)))


def rows_alike(rows: Array, *, cosine: float = ALIKE) -> list[int]:
    """Give the rows that point as an earlier one does, ascending; rows of 0 are none of them.

    rows: [n, in], what makes a channel: its weights, and its bias should there be one.
    """
    xp = array_namespace(rows)
    wide = xp.astype(rows, xp.float64)
    norms = xp.sqrt(xp.sum(wide * wide, axis=1, keepdims=True))
    unit = wide / xp.where(norms > 0, norms, xp.ones_like(norms))
    products = xp.tril(xp.matmul(unit, unit.T), k=-1)
    alike = xp.any(products >= cosine, axis=1)
    return [row for row in range(int(rows.shape[0])) if bool(alike[row])]


def rows_of_nothing(rows: Array) -> list[int]:
    """Give the rows [n, in] that are 0 throughout: what they make does not depend on the input."""
    xp = array_namespace(rows)
    dead = xp.all(rows == 0, axis=1)
    return [row for row in range(int(rows.shape[0])) if bool(dead[row])]
