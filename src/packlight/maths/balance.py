"""Moving range from where it hurts to where it does not, without changing the function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from packlight.maths.grids import (
    Array,
    IntegerGrid,
    dequantize,
    quantize,
    scale_and_zero_point,
    split_blocks,
)
from packlight.maths.layer import check_moments, row_slices

STRENGTHS = tuple(step / 20 for step in range(1, 21))
"""What AWQ's search tries (Lin et al. 2023, section 3.2), and nothing at all."""


@dataclass(frozen=True)
class Smoothing:
    """Scales for the inputs of a layer: activations are divided by them, weights multiplied.

    scales: float64 [in], 1 throughout where nothing was better.
    rule: "none", "ranges" (SmoothQuant) or "moments" (AWQ). strength: its exponent.
    error, error_without: mean squared error at the outputs, summed over outputs and weights,
        with the scales and without any; `error` is never above.
    """

    scales: Array
    rule: str
    strength: float
    error: float
    error_without: float


def equalize_channels(first_ranges: Array, second_ranges: Array) -> Array:
    """Scales that give channel i of two layers in a row the same range: s = sqrt(r1 / r2).

    The first layer's output channel i (weights and bias) is divided by s_i and the second's
    input channel i multiplied by it; both ranges become sqrt(r1_i r2_i). Exact where what lies
    between is positively homogeneous, as ReLU is (Nagel et al. 2019, equation 11).
    first_ranges, second_ranges: [channels], largest magnitudes. Returns float64 [channels];
    1 where either range is 0.
    """
    return equalizing_scales(first_ranges, second_ranges, strength=0.5, normalize=False)


def equalizing_scales(
    activation_ranges: Array,
    weight_ranges: Array,
    *,
    strength: float = 0.5,
    normalize: bool = True,
) -> Array:
    """Scales that move range from activations into weights: s = r_a^strength / r_w^(1-strength).

    Activations are divided by s and the weight's inputs multiplied by it (SmoothQuant, Xiao et
    al. 2023, equation 4). strength: 0 evens the weights out, 1 the activations.
    normalize: divide by the geometric mean, so that the scales neither grow nor shrink on the
    whole. activation_ranges, weight_ranges: [channels], largest magnitudes.
    Returns float64 [channels]; 1 where either range is 0.
    Raises ValueError for a strength outside 0..1 or ranges that are negative or not finite.
    """
    xp = array_namespace(activation_ranges)
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of equalization lies from 0 to 1, not at {strength}")
    a = xp.astype(activation_ranges, xp.float64)
    w = xp.astype(weight_ranges, xp.float64)
    if not bool(xp.all(xp.isfinite(a) & xp.isfinite(w) & (a >= 0) & (w >= 0))):
        raise ValueError("ranges of channels are finite and not negative")
    alive = (a > 0) & (w > 0)
    one = xp.ones_like(a)
    # Logarithms: the quotient of a tiny and a huge range stays finite on the way.
    logs = strength * xp.log(xp.where(alive, a, one))
    logs = logs - (1 - strength) * xp.log(xp.where(alive, w, one))
    if normalize and bool(xp.any(alive)):
        total = xp.sum(xp.where(alive, logs, 0 * logs))
        logs = logs - total / xp.count_nonzero(alive)
    return xp.where(alive, xp.exp(logs), one)


def search_smoothing(
    weights: Sequence[Array],
    second_moments: Array,
    activation_ranges: Array,
    grid: IntegerGrid,
    *,
    block_shape: Sequence[int] = (1, -1),
    activation_bits: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Smoothing:
    """Find the input scales s of least error when W diag(s) is rounded instead of W.

    With Q = round(W diag(s)) to nearest on min-max ranges, the error is
    tr((W - Q / s) H (W - Q / s)^T), and with rounded activations step^2 / 12 |Q|^2 more, where
    step is that of x / s, one for the whole tensor. Tried are, for each strength t,
    s = a^t / w^(1-t) of the largest magnitudes a of the activations and w of the weights
    (SmoothQuant, Xiao et al. 2023, equation 4), s = (E[x^2])^(t/2) (AWQ, Lin et al. 2023,
    equation 5), and s = 1.

    weights: [out, in] each, all that read the same activations (q, k and v), judged together.
    second_moments: [in, in]. activation_ranges: [in], largest magnitudes, or [2, in], lowest
    and highest values. grid, block_shape: of the weights. activation_bits: of unsigned codes
    for the activations, one scale and zero point a tensor; None leaves them in float.
    Returns Smoothing. Raises ValueError for shapes that do not fit, no weight, ranges or
    second moments that are not finite, or a strength outside 0..1.
    """
    if not weights:
        raise ValueError("smoothing needs at least one weight that reads the activations")
    xp = array_namespace(*weights)
    inputs = weights[0].shape[1]
    low, high = _low_and_high(xp, activation_ranges, inputs)
    if any(weight.shape[1] != inputs for weight in weights):
        raise ValueError(
            "weights that read the same activations have as many inputs, "
            f"not {[int(weight.shape[1]) for weight in weights]}"
        )
    w = [xp.astype(weight, xp.float64) for weight in weights]
    check_moments(second_moments, inputs)
    h = xp.astype(second_moments, xp.float64)
    largest = xp.maximum(-low, high)
    columns = xp.max(xp.abs(xp.concat(w, axis=0)), axis=0)
    magnitudes = xp.sqrt(xp.clip(xp.linalg.diagonal(h), 0, None))

    def error(scales: Array) -> float:
        step = 0.0
        if activation_bits is not None:
            step = float(xp.max(high / scales) - xp.min(low / scales)) / (2**activation_bits - 1)
        total = 0.0
        for array in w:
            rounded = _round_min_max(xp, array * scales, grid, block_shape)
            off = array - rounded / scales
            total += float(xp.sum(xp.matmul(off, h) * off))
            total += step * step / 12 * float(xp.sum(rounded * rounded))
        return total

    return _try_scales(error, largest, columns, magnitudes, strengths)


def search_token_smoothing(
    weights: Sequence[Array],
    activations: Array,
    *,
    bits: int = 8,
    strengths: Sequence[float] = STRENGTHS,
) -> Smoothing:
    """Find input scales, powers of two, where both sides are rounded to symmetric integers.

    Activations have a step a token, step_t = max_j |x_tj / s_j| / (2^(bits-1) - 1), and weights one
    an output, step_i of |w_ij s_j| likewise. With errors of step^2 / 12 that know nothing of each
    other, the error at the outputs is

        E[step_t^2] / 12 |W diag(s)|^2 + sum_i step_i^2 / 12 sum_j E[x_j^2] / s_j^2.

    Tried are the scales of `search_smoothing`, rounded to powers of two: numbers with few digits,
    as norms in bfloat16 have, are divided by them without an error.
    weights: [out, in] each, all that read the same. activations: [tokens, in].
    Returns Smoothing. Raises ValueError for no weight, shapes that do not fit, or what is not
    finite.
    """
    if not weights or any(one.shape[1] != activations.shape[1] for one in weights):
        raise ValueError("smoothing needs weights that read the activations")
    xp = array_namespace(*weights)
    x = xp.astype(activations, xp.float64)
    columns = 0 * x[0, :]
    for w in _some_rows(xp, weights):
        columns = xp.maximum(columns, xp.max(xp.abs(w), axis=0))
    if not bool(xp.all(xp.isfinite(x))) or not bool(xp.all(xp.isfinite(columns))):
        raise ValueError("activations and weights that are smoothed are finite")
    top = 2 ** (bits - 1) - 1
    power = xp.mean(x * x, axis=0)

    def error(scales: Array) -> float:
        norm = steps = 0.0
        for w in _some_rows(xp, weights):
            scaled = xp.abs(w * scales)
            norm += float(xp.sum(scaled * scaled))
            steps += float(xp.sum((xp.max(scaled, axis=1) / top) ** 2))
        by_token = xp.max(xp.abs(x) / scales, axis=1) / top
        by_input = float(xp.sum(power / scales**2))
        return (float(xp.mean(by_token**2)) * norm + steps * by_input) / 12

    def to_power(scales: Array) -> Array:
        return 2.0 ** xp.round(xp.log2(scales))

    largest = xp.max(xp.abs(x), axis=0)
    return _try_scales(error, largest, columns, xp.sqrt(power), strengths, to_power)


def _try_scales(
    error: Callable[[Array], float],
    largest: Array,
    columns: Array,
    magnitudes: Array,
    strengths: Sequence[float],
    stored: Callable[[Array], Array] = lambda scales: scales,
) -> Smoothing:
    """The scales of least error by either rule, of any strength, or none.

    largest, magnitudes: of the activations' channels; columns: largest of the weights'. stored:
    gives the scales that there may be.
    """
    one = array_namespace(largest).ones_like(largest)
    without = error(one)
    best = Smoothing(one, "none", 0.0, without, without)
    for rule, a, b in (("ranges", largest, columns), ("moments", magnitudes, one)):
        for strength in strengths:
            scales = stored(equalizing_scales(a, b, strength=strength))
            found = error(scales)
            if found < best.error:
                best = Smoothing(scales, rule, strength, found, without)
    return best


def _some_rows(xp: Any, weights: Sequence[Array]) -> Iterator[Array]:
    """Yield all weights in float64, some rows at a time."""
    for weight in weights:
        for rows in row_slices(weight.shape[0], 1024):
            yield xp.astype(weight[rows, :], xp.float64)


def _low_and_high(xp: Any, ranges: Array, inputs: int) -> tuple[Array, Array]:
    """Read ranges [in] or [2, in] as lowest and highest values that contain 0."""
    if tuple(ranges.shape) not in ((inputs,), (2, inputs)):
        raise ValueError(
            f"ranges of shape {tuple(ranges.shape)} do not fit {inputs} inputs: "
            f"expected ({inputs},) or (2, {inputs})"
        )
    wide = xp.astype(ranges, xp.float64)
    low, high = (-wide, wide) if wide.ndim == 1 else (wide[0, :], wide[1, :])
    if not bool(xp.all(xp.isfinite(low) & xp.isfinite(high) & (low <= high))):
        raise ValueError("ranges of activations are finite, with low <= high")
    return xp.minimum(low, 0 * low), xp.maximum(high, 0 * high)


def _round_min_max(xp: Any, array: Array, grid: IntegerGrid, block_shape: Sequence[int]) -> Array:
    """Give the values that an array takes on a grid that spans each block."""
    blocks = split_blocks(array, block_shape)
    low, high = xp.min(blocks, axis=1), xp.max(blocks, axis=1)
    scale, zero = scale_and_zero_point(low, high, grid)
    codes = quantize(array, scale, zero, grid, block_shape=block_shape)
    return dequantize(codes, xp.astype(scale, xp.float64), zero, block_shape=block_shape)
