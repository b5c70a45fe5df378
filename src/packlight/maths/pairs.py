"""Codes of neighbouring inputs that must not add up to too much: the arithmetic of pair limits.

A pair limit holds for codes c0, c1 of inputs (2j, 2j + 1): where they have the same sign,
|c0 + c1| <= limit, and neither lies beyond it alone.
"""

from __future__ import annotations

from typing import Any

from packlight.maths.grids import Array, Grid, IntegerGrid


def code_limits(grid: Grid, pair_limit: int | None) -> tuple[int, int]:
    """Give the lowest and highest code that the grid and the pair limit allow.

    Raises ValueError for a limit below 1, or on a grid whose codes are not the integers
    that are multiplied.
    """
    if pair_limit is None:
        return grid.minimum, grid.maximum
    if not isinstance(grid, IntegerGrid):
        raise ValueError(f"a pair limit holds for codes of integer grids, not of {grid}")
    if pair_limit < 1:
        raise ValueError(f"a pair limit is above 0, not {pair_limit}")
    return max(grid.minimum, -pair_limit), min(grid.maximum, pair_limit)


def fit_partner(xp: Any, code: Array, partner: Array, pair_limit: int) -> Array:
    """Clamp codes to what their partners leave of the pair limit."""
    nothing = xp.zeros_like(partner)
    code = xp.minimum(code, pair_limit - xp.maximum(partner, nothing))
    return xp.maximum(code, -pair_limit - xp.minimum(partner, nothing))


def leave_room(xp: Any, code: Array, target: Array, ahead: Array, pair_limit: int) -> Array:
    """Take a code back by half the excess that its partner, not yet rounded, would bring."""
    total = target + ahead
    bound = xp.sign(total) * pair_limit
    half = xp.round((bound + target - ahead) / 2)
    broken = (target * ahead > 0) & (xp.abs(xp.round(total)) > pair_limit)
    inside = xp.sign(total) * (xp.sign(total) * half).clip(0, pair_limit)
    return xp.where(broken, inside, code)
