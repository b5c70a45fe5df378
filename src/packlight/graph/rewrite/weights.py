"""Rounds the weights of layers to codes of 2 to 8 bits, held as int8, for integer kernels.

Kernels without VNNI add two products of neighbours in a saturating 16-bit integer: codes of
neighbouring weights therefore keep a pair limit, 255 * (c0 + c1) <= 32767. Codes of 7 bits
and fewer cannot break it: 255 * (-64 - 64) = -32640.
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
from packlight.maths.formats import quantize_to_format
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.grouped import round_groups
from packlight.maths.learned import round_learned
from packlight.maths.moments import Moments, join_moments, mean_shift
from packlight.maths.ranges import range_squared_error_of_array
from packlight.maths.refit import round_and_refit
from packlight.maths.rounding import (
    RoundingInfo,
    limit_pairs,
    round_to_nearest,
    round_with_compensation,
)

PAIR_LIMIT = 128
"""255 * (c0 + c1) <= 32767 for codes of one sign: what a saturating 16-bit sum holds."""

WEIGHTS = IntegerGrid(bits=8, signed=True, symmetric=True)

Rounding = Literal["compensated", "descent", "learned", "nearest"]

GROUP_INPUTS = 128
"""Groups of more inputs are rounded one by one: vectors are long enough then."""

_CHUNK = 1 << 21
"""Weights whose ranges are searched at a time: a dozen float64 arrays of that size."""


def weight_grid(bits: int) -> IntegerGrid:
    """The grid of weights with one scale a channel: -127 to 127, with fewer bits -2^(b-1) and up.

    Measured on correlated inputs, normal and Laplace weights: the lowest code takes a third off
    the error at 2 bits, a seventh at 3 and a tenth at 4.
    """
    if bits == 8:
        return WEIGHTS
    return IntegerGrid(bits=bits, signed=True, symmetric=True, low=-(1 << (bits - 1)))


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
    bits: int = 8,
    seed: int = 0,
) -> None:
    """Add to `cache` the weights of those of `layers` that it lacks, rounded to `bits`.

    Layers that share a weight are rounded once, for the inputs of all of them, so that they
    share the codes too. Which of them are in `layers` makes no difference.
    """
    missing = [layer for layer in layers if layer.name not in cache]
    if not missing:
        return
    families = find_families(model)
    for layer in missing:
        if layer.name in cache:
            continue
        family = families.get(family_of(layer), [layer])
        seen = {one.name: moments[one.name] for one in family if one.name in moments}
        merged = sum_moments(seen.values())
        common = round_layer(
            layer, merged, rounding=rounding, pair_limit=pair_limit, bits=bits, seed=seed
        )
        for one in family:
            own = common
            if len(family) > 1:
                shift = _bias_shift(one, common.codes, common.scale, seen.get(one.name))
                own = replace(common, bias_shift=shift)
            cache.setdefault(one.name, own)


def round_layer(
    layer: Layer,
    moments: Moments | None,
    *,
    rounding: Rounding,
    pair_limit: bool,
    bits: int = 8,
    seed: int = 0,
) -> Rounded:
    """Round a layer's weight to codes of `bits`, one scale an output channel.

    moments: of what reaches the layer, in kernel order, group by group where it has groups;
    without them the rounding is to nearest. Depthwise kernels multiply single channels: no pairs
    there.
    """
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    limit = PAIR_LIMIT if pair_limit and bits == 8 and not is_depthwise(layer) else None
    codes, scale, note = round_matrix(
        matrix, moments, bits=bits, rounding=rounding, pair_limit=limit, seed=seed
    )
    plain = np.empty_like(codes)
    plain[:, order] = codes
    return Rounded(plain, scale, _bias_shift(layer, plain, scale, moments), note)


def round_matrix(
    matrix: NDArray[np.float64],
    moments: Moments | None,
    *,
    bits: int,
    rounding: Rounding,
    pair_limit: int | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.int8], NDArray[np.float32], str]:
    """Codes [out, in] and scales [out] of a weight [out, in], and what the report should say.

    moments: of the inputs, in the order of the columns. The scale is searched for by what an
    error at each input costs; then the codes are found as `rounding` says. With groups each of
    them is a weight of its own; few inputs have one good way of rounding, and "nearest".
    """
    known = moments if moments is not None and moments.count > 0 else None
    if known is not None and known.grouped:
        return _round_groups(
            matrix, known, bits=bits, rounding=rounding, pair_limit=pair_limit, seed=seed
        )
    second = None if known is None else known.second
    nearest = second is None or rounding == "nearest"
    grid = weight_grid(bits)
    if bits == 8:
        importance = None if second is None else np.diag(second)[None, :]
        codes, scale = round_rows(matrix, pair_limit=pair_limit, importance=importance)
        info = None
        if second is not None and not nearest:
            codes, info = round_with_compensation(
                matrix,
                second,
                scale,
                np.zeros(len(scale), np.int32),
                grid,
                order="descending",
                pair_limit=pair_limit,
            )
    else:
        weights = np.diag(second) if second is not None and nearest else second
        found = quantize_to_format(matrix, f"int{bits}", second_moments=weights)
        codes = (found.codes.astype(np.int16) + grid.minimum).astype(np.int8)
        scale, info = found.scale.reshape(-1), found.info
    if known is None or nearest:
        return codes, scale, ""
    if rounding == "learned" and pair_limit is None:
        codes, _ = round_learned(
            matrix,
            known.second,
            scale,
            np.zeros(len(scale), np.int32),
            grid,
            seed=seed,
            start_codes=codes,
        )
    elif rounding in ("descent", "learned"):
        codes, scale, refit = round_and_refit(
            matrix,
            known.second,
            scale,
            np.zeros(len(scale), np.int32),
            grid,
            order="descending",
            pair_limit=pair_limit,
        )
        info = refit.rounding
    return codes, scale, describe_moments(known, info)


def _round_groups(
    matrix: NDArray[np.float64],
    moments: Moments,
    *,
    bits: int,
    rounding: Rounding,
    pair_limit: int | None,
    seed: int,
) -> tuple[NDArray[np.int8], NDArray[np.float32], str]:
    """As `round_matrix`, for a weight [groups * out, in] whose groups read other channels each."""
    groups, inputs = moments.left.shape
    if rounding != "nearest" and inputs > GROUP_INPUTS:
        parts = [
            round_matrix(
                part,
                moments.of_group(group),
                bits=bits,
                rounding=rounding,
                pair_limit=pair_limit,
                seed=seed,
            )
            for group, part in enumerate(np.split(matrix, groups))
        ]
        codes, scale = (np.concatenate([part[end] for part in parts]) for end in (0, 1))
        return codes, scale, "; ".join(dict.fromkeys(part[2] for part in parts if part[2]))
    codes, scale, _ = round_matrix(
        matrix, None, bits=bits, rounding="nearest", pair_limit=pair_limit
    )
    if rounding == "nearest":
        return codes, scale, ""
    found, fitted, info = round_groups(
        matrix.reshape(groups, -1, inputs),
        codes.reshape(groups, -1, inputs),
        moments.second,
        scale.reshape(groups, -1),
        weight_grid(bits),
        pair_limit=pair_limit,
    )
    note = describe_moments(moments, info)
    return found.reshape(codes.shape), fitted.reshape(-1), note


def describe_moments(moments: Moments, info: RoundingInfo | None) -> str:
    """What was singular about second moments, in words; '' where nothing was."""
    inputs = moments.left.size
    told = []
    if moments.count < moments.left.shape[-1]:
        each = f"{moments.left.shape[-1]} inputs" + (" of each group" if moments.grouped else "")
        told.append(f"only {moments.count} rows were seen for its {each}")
    if info is not None and info.dead_inputs:
        told.append(f"{info.dead_inputs} of its {inputs} inputs were always 0")
    if info is not None and info.damping > 0.01:
        told.append(f"second moments needed damping of {info.damping:g} to be invertible")
    return "; ".join(told)


def round_rows(
    matrix: NDArray[np.float64],
    *,
    pair_limit: int | None = None,
    importance: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Nearest 8-bit codes [out, in] and scales [out] of least squared error for a weight [out, in].

    importance: [1, in], what an error there costs.
    """
    rows = max(1, _CHUNK // max(matrix.shape[1], 1))
    if len(matrix) > rows:
        parts = [
            round_rows(matrix[at : at + rows], pair_limit=pair_limit, importance=importance)
            for at in range(0, len(matrix), rows)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([p[1] for p in parts])
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


def is_depthwise(layer: Layer) -> bool:
    """Whether the runtime has a kernel of its own; more outputs than groups have none."""
    channels = layer.weight_shape[:2]
    return layer.kind == "Conv" and layer.groups > 1 and channels == (layer.groups, 1)


def find_families(model: ir.Model) -> dict[Any, list[Layer]]:
    """The layers of a model by `family_of`."""
    families: dict[Any, list[Layer]] = {}
    for layer in find_layers(model):
        families.setdefault(family_of(layer), []).append(layer)
    return families


def family_of(layer: Layer) -> tuple[Any, ...]:
    """Equal for layers whose matrices are the same: one weight, read in one way."""
    alpha = float_of(layer.node, "alpha", 1.0) if layer.kind == "Gemm" else 1.0
    kind = "MatMul" if layer.kind in ("MatMul", "Gemm") else layer.kind
    return (layer.weight, kind, layer.out_axis, alpha, layer.groups)


def sum_moments(moments: Iterable[Moments]) -> Moments | None:
    """The moments of several streams as if they were one; None without any."""
    total: Moments | None = None
    for one in moments:
        total = one if total is None else join_moments(total, one)
    return total
