"""Weights of which many are 0: the file is as large as before, once packed it is smaller.

What stays is floats, or codes with one scale an output channel. Where second moments of a layer's
inputs are known the weights that stay make up for those that go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.graph.layers import Layer
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.weights import (
    Rounding,
    describe_moments,
    round_matrix,
    weight_grid,
)
from packlight.maths.importance import score_by_magnitude
from packlight.maths.moments import Moments, mean_shift, reorder_moments
from packlight.maths.refit import refit_scales
from packlight.maths.sparsity import (
    Pattern,
    keep_highest,
    prune_with_compensation,
    refit_masked,
)
from packlight.recipe import Zeros


def prune_matrix(
    layer: Layer,
    matrix: NDArray[np.float64],
    moments: Moments | None,
    zeros: Zeros,
    *,
    bits: int | None = None,
    rounding: Rounding = "compensated",
    movable: bool = False,
) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.float64] | None, str]:
    """Give a sparse weight, its scales and what the bias must gain, and a note.

    matrix: [rows, in], in the order of `weight_matrix`. moments: in that order too, by groups
    where the layer has them; without them, and with "nearest", the largest weights stay as they
    are. zeros: so many of so many neighbours are neighbours to a kernel: of a Conv, channels.
    bits: of codes, 2 to 8, or None for floats. movable: a bias takes over what is constant.
    Returns float32 values without scales, or int8 codes with float32 scales [rows, 1].
    """
    order = np.arange(matrix.shape[1])
    if layer.kind == "Conv":
        order = kernel_order(layer)
    back = np.argsort(order)
    known = None if rounding == "nearest" else moments
    pattern = Pattern(share=zeros.share, keep=zeros.keep, of=zeros.of)
    parts = []
    groups = known.left.shape[0] if known is not None and known.grouped else 1
    for group, part in enumerate(np.split(matrix[:, order], groups)):
        seen = None
        if known is not None:
            seen = reorder_moments(known.of_group(group) if known.grouped else known, order)
        parts.append(_prune(part, seen, pattern, bits, movable))
    values = np.concatenate([part[0] for part in parts])[:, back]
    scales = [part[1] for part in parts if part[1] is not None]
    shifts = [part[2] for part in parts if part[2] is not None]
    return (
        values,
        np.concatenate(scales) if scales else None,
        np.concatenate(shifts) if shifts else None,
        "" if known is None else describe_moments(known, None),
    )


def _prune(
    matrix: NDArray[np.float64],
    moments: Moments | None,
    pattern: Pattern,
    bits: int | None,
    movable: bool,
) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.float64] | None]:
    """One group's weight, in the order in which kernels walk its columns."""
    second = None
    if moments is None:
        kept = keep_highest(score_by_magnitude(matrix), pattern)
        values = matrix * kept
    else:
        second = moments.second
        if movable:
            second = second - np.outer(moments.mean, moments.mean)
        found = prune_with_compensation(matrix, second, pattern)
        kept = found.kept
        values = refit_masked(matrix, kept, second, start=found.weight)
    scale = None
    result: NDArray[Any] = values.astype(np.float32)
    if bits is not None:
        result, scale = _round_kept(values, kept, second, bits)
        values = result * scale.astype(np.float64)
    shift = None
    if movable and moments is not None:
        shift = mean_shift(matrix, moments.mean, values, moments.mean)
    return result, scale, shift


def _round_kept(
    values: NDArray[np.float64],
    kept: NDArray[np.bool_],
    second: NDArray[np.float64] | None,
    bits: int,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [rows, in] with the same zeros, and scales [rows, 1].

    The refitted values are what to come near to: what they leave is at right angles to all that
    weights with these zeros can be. Rows are rounded to nearest or with compensation, whichever is
    better: what zeros should make up for is lost.
    """
    codes, scale, _ = round_matrix(values, None, bits=bits, rounding="nearest")
    scale = scale.reshape(-1, 1)
    if second is None:
        return codes, scale
    grid = weight_grid(bits)
    nothing = np.zeros(scale.shape, np.int32)
    found = prune_with_compensation(
        values, second, Pattern(share=0.0), grid=grid, scale=scale, kept=kept
    )
    made_up = np.asarray(found.codes)
    off = [values - each * scale.astype(np.float64) for each in (made_up, codes)]
    better, worse = (np.sum(each @ second * each, axis=1, keepdims=True) for each in off)
    codes = np.where(better < worse, made_up, codes).astype(np.int8)
    fitted = refit_scales(values, codes, second, nothing, grid, block_shape=(1, -1), scale=scale)
    return codes, np.asarray(fitted, np.float32)
