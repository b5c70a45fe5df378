"""The levels of small floats, NF4 and powers of two, computed from their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri


@dataclass(frozen=True)
class FloatLayout:
    """How the bits of a small float are read: sign, exponent, mantissa, from the highest.

    special: what the highest exponent means: "none" (ordinary numbers), "nan" (ordinary but
        for a mantissa of ones, which is NaN), "ieee" (infinity and NaN).
    signed: whether there is a sign bit. subnormal: whether the exponent 0 drops the leading
        one of the mantissa (otherwise it is ordinary, and there is no 0).
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: Literal["none", "nan", "ieee"]
    signed: bool = True
    subnormal: bool = True


E4M3 = FloatLayout(4, 3, 7, "nan")
E5M2 = FloatLayout(5, 2, 15, "ieee")
E2M1 = FloatLayout(2, 1, 1, "none")
E8M0 = FloatLayout(8, 0, 127, "nan", signed=False, subnormal=False)


def float_values(layout: FloatLayout) -> NDArray[np.float64]:
    """Give the number that each bit pattern stands for, from pattern 0 on.

    (-1)^sign 2^(exponent - bias) (1 + mantissa / 2^mantissa_bits); an exponent of 0 is read
    as 1 without the leading one where the layout has subnormal numbers.
    (OCP 8-bit floating point 2023; OCP microscaling formats 2023.)
    """
    bits = layout.exponent_bits + layout.mantissa_bits
    patterns = np.arange(1 << (bits + layout.signed))
    mantissa = patterns & ((1 << layout.mantissa_bits) - 1)
    exponent = (patterns >> layout.mantissa_bits) & ((1 << layout.exponent_bits) - 1)
    small = (exponent == 0) & layout.subnormal
    fraction = mantissa / (1 << layout.mantissa_bits) + np.where(small, 0.0, 1.0)
    values = np.ldexp(fraction, np.where(small, 1, exponent) - layout.bias)
    top = exponent == (1 << layout.exponent_bits) - 1
    full = mantissa == (1 << layout.mantissa_bits) - 1
    if layout.special == "ieee":
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    if layout.special == "nan":
        values = np.where(top & full, np.nan, values)
    signed: NDArray[np.float64] = np.where(patterns >> bits == 1, -values, values)
    return signed


def float_levels(layout: FloatLayout) -> tuple[float, ...]:
    """Give the finite numbers of a layout, ascending; -0 and 0 are one."""
    values = float_values(layout)
    return tuple(float(value) for value in np.unique(values[np.isfinite(values)] + 0.0))


def normal_levels(bits: int) -> tuple[float, ...]:
    """Levels that a normally distributed weight takes about equally often, 0 and +-1 among them.

    Quantiles of the normal distribution at evenly spaced probabilities from 1/2 to
    1 - (1/(2 (n - 1)) + 1/(2 n)) / 2, n = 2^bits: n/2 - 1 of them below 0 and n/2 above,
    divided by the largest (Dettmers et al. 2023, QLoRA, section 3 and appendix E).
    """
    count = 1 << bits
    furthest = 1 - (1 / (2 * (count - 1)) + 1 / (2 * count)) / 2
    below = -ndtri(np.linspace(furthest, 0.5, count // 2)[:-1])
    above = ndtri(np.linspace(furthest, 0.5, count // 2 + 1)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above])) / ndtri(furthest)
    return tuple(float(level) for level in levels)


def power_levels(bits: int) -> tuple[float, ...]:
    """Give 0 and plus and minus 1, 1/2, 1/4, ...: 2^bits - 1 levels."""
    sizes = [2.0**-power for power in range((1 << (bits - 1)) - 1)]
    return (*(-size for size in sizes), 0.0, *reversed(sizes))
