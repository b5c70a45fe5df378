"""Rounds the weights of layers to int8 codes that x86 kernels multiply exactly.

Kernels without VNNI add two products of neighbours in a saturating 16-bit integer: codes of
neighbouring weights therefore keep a pair limit, 255 * (c0 + c1) <= 32767.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.single import float_of
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.moments import Moments, mean_shift
from packlight.maths.ranges import range_squared_error_of_array
from packlight.maths.rounding import limit_pairs, round_to_nearest, round_with_compensation

PAIR_LIMIT = 128
"""255 * (c0 + c1) <= 32767 for codes of one sign: what a saturating 16-bit sum holds."""

WEIGHTS = IntegerGrid(bits=8, signed=True, symmetric=True)

Rounding = Literal["compensated", "nearest"]


@dataclass(frozen=True)
class Rounded:
    """A layer's weight as codes.

    codes: int8 [out, in] as `weight_matrix` lays it out. scale: float32 [out].
    bias_shift: float64 [out], what the bias must gain so that the mean output stays.
    note: what the rounding had to do beyond the ordinary, for the report.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias_shift: NDArray[np.float64]
    note: str = ""


def round_layers(
    model: ir.Model,
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    cache: dict[str, Rounded],
    *,
    rounding: Rounding,
    pair_limit: bool,
) -> None:
    """Add to `cache` the rounded weights of those of `layers` that it lacks.

    Layers that share a weight are rounded once, for the inputs of all of them, so that they
    share the codes too. Which of them are in `layers` makes no difference.
    """
    missing = [layer for layer in layers if layer.name not in cache]
    if not missing:
        return
    families: dict[Any, list[Layer]] = {}
    for layer in find_layers(model):
        families.setdefault(_family(layer), []).append(layer)
    for layer in missing:
        if layer.name in cache:
            continue
        family = families.get(_family(layer), [layer])
        seen = {one.name: moments[one.name] for one in family if one.name in moments}
        merged = _sum(seen.values())
        common = round_layer(layer, merged, rounding=rounding, pair_limit=pair_limit)
        for one in family:
            own = common
            if len(family) > 1:
                shift = _bias_shift(one, common.codes, common.scale, seen.get(one.name))
                own = replace(common, bias_shift=shift)
            cache.setdefault(one.name, own)


def round_layer(
    layer: Layer, moments: Moments | None, *, rounding: Rounding, pair_limit: bool
) -> Rounded:
    """Round a layer's weight to int8 codes, one scale an output channel.

    moments: of what reaches the layer, in kernel order; without them (or with groups) the
    rounding is to nearest. Depthwise kernels multiply single channels: no pairs there.
    """
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    limit = PAIR_LIMIT if pair_limit and not _is_depthwise(layer) else None
    known = moments is not None and moments.count > 0
    importance = None
    if moments is not None and known:
        importance = np.broadcast_to(np.diag(moments.second), matrix.shape)
    codes, scale = round_rows(matrix, pair_limit=limit, importance=importance)
    note = ""
    if rounding == "compensated" and moments is not None and known:
        zero = np.zeros(len(scale), np.int32)
        codes, info = round_with_compensation(
            matrix, moments.second, scale, zero, WEIGHTS, order="descending", pair_limit=limit
        )
        if info.damping > 0.01:
            note = f"second moments needed damping of {info.damping:g} to be invertible"
    plain = np.empty_like(codes)
    plain[:, order] = codes
    return Rounded(plain, scale, _bias_shift(layer, plain, scale, moments), note)


def round_rows(
    matrix: NDArray[np.float64],
    *,
    pair_limit: int | None,
    importance: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Nearest codes [out, in] and scales [out] of least squared error for a weight [out, in].

    importance: broadcasts to the weight, what an error there costs.
    """
    low, high = range_squared_error_of_array(
        matrix, WEIGHTS, block_shape=(1, -1), importance=importance, pair_limit=pair_limit
    )
    scale, zero = (
        np.asarray(part).reshape(-1) for part in scale_and_zero_point(low, high, WEIGHTS)
    )
    codes = round_to_nearest(matrix, scale, zero, WEIGHTS)
    if pair_limit is not None:
        codes = limit_pairs(codes, matrix / scale[:, None], WEIGHTS, pair_limit=pair_limit)
    return codes, scale.astype(np.float32)


def _bias_shift(
    layer: Layer,
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    moments: Moments | None,
) -> NDArray[np.float64]:
    if moments is None or not moments.count:
        return np.zeros(len(codes))
    order = kernel_order(layer)
    values = codes[:, order].astype(np.float64) * scale[:, None]
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    shift: NDArray[np.float64] = mean_shift(matrix, moments.mean, values, moments.mean)
    return shift


def _is_depthwise(layer: Layer) -> bool:
    """Whether the runtime has a kernel of its own; more outputs than groups have none."""
    channels = layer.weight_shape[:2]
    return layer.kind == "Conv" and layer.groups > 1 and channels == (layer.groups, 1)


def _family(layer: Layer) -> tuple[Any, ...]:
    """Equal for layers whose matrices are the same: one weight, read in one way."""
    alpha = float_of(layer.node, "alpha", 1.0) if layer.kind == "Gemm" else 1.0
    kind = "MatMul" if layer.kind in ("MatMul", "Gemm") else layer.kind
    return (layer.weight, kind, layer.out_axis, alpha, layer.groups)


def _sum(moments: Iterable[Moments]) -> Moments | None:
    total: Moments | None = None
    for one in moments:
        if total is None:
            total = one
            continue
        total = Moments(
            total.products + one.products,
            total.left + one.left,
            total.right + one.right,
            total.count + one.count,
        )
    return total
