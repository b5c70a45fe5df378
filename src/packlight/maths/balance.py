"""Moving range from where it hurts to where it does not, without changing the function."""

from __future__ import annotations

from array_api_compat import array_namespace

from packlight.maths.grids import Array


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
