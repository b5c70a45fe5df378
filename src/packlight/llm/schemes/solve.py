"""Which codes and scales a weight gets under a scheme, or which of its weights become 0.

With second moments H = E[x x^T] of what reaches a layer tr((W - V) H (W - V)^T) is minimised:
scales are searched under H's diagonal, codes are chosen by compensation and descent and scales
fitted to them in turn (`packlight.maths.refit`). Without, each weight is rounded to the nearest
code on the scale of least squared error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from packlight.llm.schemes.layouts import Coded, Floats, encode_e4m3, from_half, to_half
from packlight.llm.schemes.table import Scheme
from packlight.maths.grids import Array, Grid, split_blocks
from packlight.maths.importance import score_by_activation, score_by_magnitude
from packlight.maths.levels import E4M3, float_values
from packlight.maths.refit import round_and_refit
from packlight.maths.rounding import round_to_nearest
from packlight.maths.scales import Store, scale_by_search
from packlight.maths.sparsity import keep_highest, prune_with_compensation, refit_masked

FACTORS = {4: np.geomspace(1.0, 0.35, 24), 8: np.geomspace(1.0, 0.5, 12)}
"""Of the scale that reaches every weight, by bits."""
_PHASES = np.geomspace(2.1, 0.5, 28)
"""Above 1 the highest levels idle, which small groups of floats often gain by."""

ROUNDS = {4: 4, 8: 1}
"""Of fitting scales to codes, by bits: with 8 there is little left to gain."""

_SEARCHED = 1 << 16
"""Weights whose scales are searched at a time: what goes over them again stays in the cache."""

_LARGEST_E4M3, _LARGEST_E2M1 = 448.0, 6.0
_PATTERNS = float_values(E4M3)


def global_scale_of(peak: float) -> float:
    """nvfp4's number for a tensor: it puts the largest scale at the end of 8 bits."""
    found = np.float32(_LARGEST_E4M3 * _LARGEST_E2M1 / peak) if peak > 0 else np.float32(1)
    return float(found) if np.isfinite(found) else 1.0


def solve_codes(
    scheme: Scheme,
    weight: Floats,
    moments: NDArray[np.floating] | None,
    *,
    half: str,
    global_scale: float = 1.0,
    damping: float = 0.01,
) -> Coded:
    """Codes and scales of a weight [out, in] in a scheme with a grid.

    moments: [in, in] or None. half: F16 or BF16, in which scales are stored. global_scale: of
    nvfp4. damping: of the moments. Raises ValueError for moments that are not finite.
    """
    assert scheme.grid is not None
    inputs = weight.shape[1]
    group = scheme.group_of(inputs)
    if group is None:
        raise ValueError(f"rows of {inputs} do not divide into groups of {scheme.groups}")
    store = _storage(scheme, half, global_scale)
    importance = np.ones(inputs) if moments is None else np.diagonal(moments).astype(np.float64)
    factors = _PHASES if scheme.groups == (16,) else FACTORS[scheme.bits]
    scale = _search_scales(weight, importance, scheme.grid, group, store, factors)
    if moments is None:
        codes = round_to_nearest(weight, scale, 0.0, scheme.grid, group_size=group)
    else:
        codes, scale, _ = round_and_refit(
            weight, moments, scale, np.zeros(1), scheme.grid,
            damping=damping, order="descending", group_size=group, store=store,
            rounds=ROUNDS[scheme.bits],
        )  # fmt: skip
    return Coded(codes, np.asarray(scale, np.float32), global_scale)


def sparsify(
    scheme: Scheme,
    weight: Floats,
    moments: NDArray[np.floating] | None,
    *,
    damping: float = 0.01,
) -> Floats:
    """A weight [out, in] with the zeros of a scheme's pattern, the rest made up for them.

    refit: SparseGPT's choice of zeros, and the least squares of the rest. wanda: what is least
    in |w| times the size of its input goes, and nothing makes up for it. Without moments the
    smallest weights go.
    """
    assert scheme.pattern is not None
    if moments is None:
        kept = keep_highest(score_by_magnitude(weight), scheme.pattern)
        return np.where(kept, weight, np.float32(0))
    if scheme.solver == "wanda":
        kept = keep_highest(score_by_activation(weight, moments), scheme.pattern)
        return np.where(kept, weight, np.float32(0))
    found = prune_with_compensation(weight, moments, scheme.pattern, damping=damping)
    if scheme.solver == "sparsegpt":
        return np.asarray(found.weight, np.float32)
    best = refit_masked(weight, found.kept, moments, start=found.weight, damping=damping)
    return np.asarray(best, np.float32)


def _storage(scheme: Scheme, half: str, global_scale: float) -> Store:
    """What stores scales as the scheme does."""
    if scheme.format != "nvfp4-pack-quantized":
        least = _least_half(half)

        def in_half(scale: Array) -> Array:
            flat = np.maximum(np.asarray(scale, np.float32).reshape(1, -1), least)
            return from_half(to_half(flat, half), half).reshape(np.shape(scale)).astype(float)

        return in_half

    def in_bytes(scale: Array) -> Array:
        whole = np.asarray(scale, np.float32) * np.float32(global_scale)
        # A scale of 0 would take all weights of its group with it.
        bytes_ = np.maximum(encode_e4m3(whole), 1)
        return (_PATTERNS[bytes_] / np.float32(global_scale)).astype(np.float32).astype(float)

    return in_bytes


def _least_half(half: str) -> np.float32:
    return np.float32(2.0**-24 if half == "F16" else 2.0**-120)


def _search_scales(
    weight: Floats,
    importance: NDArray[np.float64],
    grid: Grid,
    group: int,
    store: Store,
    factors: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Scales [out, groups], some rows at a time."""
    outputs, inputs = weight.shape
    found = np.empty((outputs, inputs // group))
    step = max(1, _SEARCHED // inputs)
    for start in range(0, outputs, step):
        part = weight[start : start + step].astype(np.float64)
        rows = split_blocks(part, (1, group))
        shares = split_blocks(np.broadcast_to(importance, part.shape), (1, group))
        # Where nothing ever arrives all weights count alike.
        shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 1.0)
        scale = scale_by_search(
            rows, shares, grid, store, factors=[float(one) for one in factors], refinements=1
        )
        found[start : start + step] = scale.reshape(len(part), -1)
    return found
