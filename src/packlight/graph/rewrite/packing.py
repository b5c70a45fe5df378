"""Brings the weights of layers into the form in which a file stores them: codes and scales.

Every form is codes, perhaps levels that the codes count (a codebook), and one scale a channel
or block. Where second moments of a layer's inputs are known its codes are error-compensated,
otherwise they are the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer, weight_matrix
from packlight.graph.patches import in_plain_order
from packlight.graph.rewrite.single import float_of
from packlight.graph.rewrite.sparse import prune_matrix
from packlight.graph.rewrite.weights import (
    Rounding,
    describe_moments,
    family_of,
    find_families,
    round_matrix,
    sum_moments,
    weight_grid,
)
from packlight.graph.walk import constant_of
from packlight.maths.blocks import block_grid, fit_blocks
from packlight.maths.formats import FORMATS, quantize_to_format
from packlight.maths.grids import (
    Grid,
    LevelGrid,
    expand_blocks,
    scale_and_zero_point,
)
from packlight.maths.grouped import round_groups
from packlight.maths.moments import Moments, mean_shift
from packlight.maths.rate import round_to_rate
from packlight.maths.refit import round_and_refit
from packlight.maths.rounding import (
    coordinate_descent,
    round_to_nearest,
    round_with_compensation,
)
from packlight.maths.sharing import share_weights
from packlight.recipe import Choice

BLOCK = 32
"""Weights that share a scale and a zero point where an operator reads blocks."""


@dataclass(frozen=True)
class Packed:
    """A weight matrix [rows, in] as it is stored: levels[codes] (or codes - zero) * scale.

    codes: [rows, in]; int8 where they are numbers, uint8 where they count levels or
        steps from the zero points. width: bits of a code, 1 to 8; 32 where they are floats.
    levels: float32 [K]. scale: float32, one a block; None is 1. zero: uint8, one a block.
    block: elements that share a scale, along rows and inputs; -1 is all.
    bias_shift: float64 [rows], what the bias must gain so that the mean output stays; the
        codes rely on it. bias_step: the bias is as good in multiples of it; 0 is as it is.
    note: what had to be done beyond the ordinary, for the report.
    """

    codes: NDArray[Any]
    width: int
    levels: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    zero: NDArray[np.uint8] | None = None
    block: tuple[int, int] = (1, -1)
    note: str = ""
    bias_shift: NDArray[np.float64] | None = None
    bias_step: float = 0.0


PackCache: TypeAlias = MutableMapping[tuple[str, int], Packed]


def unpack(packed: Packed) -> NDArray[np.float32]:
    """The float32 matrix [rows, in] that a runtime gets back."""
    if packed.levels is not None:
        values = packed.levels[packed.codes]
    else:
        values = packed.codes.astype(np.float32)
    shape = packed.codes.shape
    if packed.zero is not None:
        values = values - expand_blocks(packed.zero.astype(np.float32), shape, packed.block)
    if packed.scale is not None:
        values = values * expand_blocks(packed.scale, shape, packed.block)
    return np.asarray(values, np.float32)


def pack_layers(
    model: ir.Model,
    layers: Sequence[tuple[Layer, Choice]],
    moments: Mapping[str, Moments],
    caches: Mapping[str, PackCache],
    *,
    rounding: Rounding,
    seed: int = 0,
) -> None:
    """Add to `caches[choice.word]` the weights of the layers that are lacking there.

    By (layer, number of the weight). Layers that share a weight are packed once, for the inputs
    of all of them; which of them are in `layers` makes no difference.
    """
    families = find_families(model) if layers else {}
    for layer, choice in layers:
        cache = caches[choice.word]
        family = families.get(family_of(layer), [layer])
        for index in range(len(layer.weights)):
            if (layer.name, index) in cache:
                continue
            seen = None
            if index == 0:
                seen = sum_moments(moments[one.name] for one in family if one.name in moments)
            found = pack_weight(layer, choice, seen, index=index, rounding=rounding, seed=seed)
            for one in family if index == 0 else [layer]:
                cache.setdefault((one.name, index), found)


def pack_weight(
    layer: Layer,
    choice: Choice,
    moments: Moments | None,
    *,
    index: int = 0,
    rounding: Rounding = "compensated",
    seed: int = 0,
) -> Packed:
    """One weight of a layer in the form of a choice, as `weight_matrix` lays it out.

    A Gemm's alpha is left out where the layer keeps it (all but blocks).
    moments: of what reaches the layer, in kernel order, by groups where it has groups.
    """
    matrix = weight_matrix(layer, index)
    alpha = float_of(layer.node, "alpha", 1.0) if layer.kind == "Gemm" else 1.0
    if choice.compute != "blocks" and alpha not in (0.0, 1.0):
        matrix = matrix / matrix.dtype.type(alpha)
    known = moments if moments is not None and moments.count else None
    if known is not None:
        known = in_plain_order(layer, known)
    wide = matrix.astype(np.float64)
    if choice.zeros is not None:
        movable = alpha == 1.0 and index == 0 and own_bias(layer) is not None
        return _sparse(layer, wide, known, choice, rounding, movable)
    if choice.compute == "blocks":
        return _in_blocks(wide, known, int(choice.weights[3:]), rounding)
    if choice.weights.startswith("int"):
        return _as_integers(wide, known, int(choice.weights[3:]), rounding, seed)
    second = None if known is None or known.grouped else known.second
    nearest = rounding == "nearest"
    if choice.weights == "coded":
        movable = alpha == 1.0 and index == 0 and own_bias(layer) is not None
        # One scale for all groups, whose errors don't weigh alike: they are rounded as unseen.
        seen = None if nearest or known is None or known.grouped else known
        return _coded(wide, seen, choice.bits, movable)
    if choice.weights.startswith("shared") and known is not None and known.grouped:
        return _shared_by_groups(wide, None if nearest else known, choice, seed)
    if choice.weights.startswith("shared"):
        bits = int(choice.weights[len("shared") :])
        importance = np.diag(second) if second is not None and nearest else second
        count = max(2, min(1 << bits, wide.size))
        found = share_weights(wide, count=count, second_moments=importance, seed=seed)
        note = describe_moments(known, None) if known is not None else ""
        levels = np.asarray(found.codebook, np.float32)
        return Packed(found.codes, bits, levels=levels, block=(-1, -1), note=note)
    return _in_format(wide, known, choice.weights, rounding)


def _sparse(
    layer: Layer,
    matrix: NDArray[np.float64],
    moments: Moments | None,
    choice: Choice,
    rounding: Rounding,
    movable: bool,
) -> Packed:
    """Weights of which many are 0, as floats or as codes."""
    assert choice.zeros is not None
    bits = None if choice.weights == "sparse" else int(choice.weights[3:])
    values, scale, shift, note = prune_matrix(
        layer, matrix, moments, choice.zeros, bits=bits, rounding=rounding, movable=movable
    )
    if scale is None:
        return Packed(values, 32, block=(-1, -1), note=note, bias_shift=shift)
    return Packed(values, bits or 8, scale=scale, note=note, bias_shift=shift)


def _shared_by_groups(
    matrix: NDArray[np.float64], moments: Moments | None, choice: Choice, seed: int
) -> Packed:
    """A codebook found without moments, as all groups share it; its codes with them."""
    bits = int(choice.weights[len("shared") :])
    count = max(2, min(1 << bits, matrix.size))
    found = share_weights(matrix, count=count, seed=seed)
    levels, codes, note = np.asarray(found.codebook, np.float32), found.codes, ""
    if moments is not None and len(levels) > 1 and (np.diff(levels) > 0).all():
        grid = LevelGrid("codebook", tuple(map(float, levels)))
        ones = np.ones((len(matrix), 1), np.float32)
        codes, _, note = _by_groups(matrix, codes, ones, moments, grid, fit_scale=False)
    return Packed(codes, bits, levels=levels, block=(-1, -1), note=note)


def _by_groups(
    matrix: NDArray[np.float64],
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    moments: Moments,
    grid: Grid,
    *,
    fit_scale: bool,
) -> tuple[NDArray[Any], NDArray[np.float32], str]:
    """Better codes [rows, in] and scales [rows, 1] of a weight with groups, and a note."""
    groups, inputs = moments.left.shape
    found, fitted, info = round_groups(
        matrix.reshape(groups, -1, inputs),
        codes.reshape(groups, -1, inputs),
        moments.second,
        scale.reshape(groups, -1),
        grid,
        fit_scale=fit_scale,
    )
    note = describe_moments(moments, info)
    return found.reshape(codes.shape), fitted.reshape(scale.shape), note


def own_bias(layer: Layer) -> ir.TensorProtocol | None:
    """The bias that belongs to this layer alone and is added as it stands; None without one."""
    bias = constant_of(layer.bias)
    value = layer.bias
    if bias is None or value is None or layer.shared or layer.kind not in ("Conv", "Gemm"):
        return None
    alone = value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()
    beta = float_of(layer.node, "beta", 1.0) if layer.kind == "Gemm" else 1.0
    plain = bias.dtype == ir.DataType.FLOAT and bias.size == layer.weight_shape[layer.out_axis]
    return bias if alone and plain and beta == 1.0 else None


def _coded(
    matrix: NDArray[np.float64], moments: Moments | None, bits: float, movable: bool
) -> Packed:
    """Codes of about so many bits; a bias that can move takes over what is constant."""
    if moments is None:
        rated = round_to_rate(matrix, None, bits=bits)
        scale = np.full((1, 1), rated.scale, np.float32)
        return Packed(rated.codes.astype(np.int8), 8, scale=scale, block=(-1, -1))
    mean, second = moments.mean, moments.second
    rated = round_to_rate(matrix, second - np.outer(mean, mean) if movable else second, bits=bits)
    scale = np.full((1, 1), rated.scale, np.float32)
    codes = rated.codes.astype(np.int8)
    note = describe_moments(moments, None)
    if not movable:
        return Packed(codes, 8, scale=scale, block=(-1, -1), note=note)
    shift = mean_shift(matrix, mean, codes * scale.astype(np.float64), mean)
    # Half of the error that is there anyway adds a fiftieth to it.
    each = math.sqrt(max(rated.error, 0.0) / len(matrix)) / 2
    step = math.ldexp(1.0, math.frexp(each)[1] - 1) if each > 0 else 0.0
    return Packed(codes, 8, None, scale, None, (-1, -1), note, shift, step)


def _as_integers(
    matrix: NDArray[np.float64],
    moments: Moments | None,
    bits: int,
    rounding: Rounding,
    seed: int,
) -> Packed:
    if bits == 8 and moments is None:
        # 127 steps to the largest weight: no search betters that by anything that shows.
        grid = weight_grid(8)
        reach = np.abs(matrix).max(axis=1, initial=0.0)
        scale, zero = scale_and_zero_point(-reach, reach, grid)
        codes = round_to_nearest(matrix, scale, zero, grid)
        return Packed(codes, 8, scale=np.asarray(scale, np.float32).reshape(-1, 1))
    codes, scale, note = round_matrix(matrix, moments, bits=bits, rounding=rounding, seed=seed)
    return Packed(codes, bits, scale=scale.reshape(-1, 1), note=note)


def _in_format(
    matrix: NDArray[np.float64], moments: Moments | None, name: str, rounding: Rounding
) -> Packed:
    grouped = moments is not None and moments.grouped
    second = None if moments is None or grouped else moments.second
    if second is not None and rounding == "nearest":
        second = np.diag(second)
    found = quantize_to_format(matrix, name, second_moments=second)
    codes: NDArray[Any] = found.codes
    scale: NDArray[np.float32] = found.scale
    note = describe_moments(moments, found.info) if moments is not None else ""
    if moments is not None and moments.grouped:
        # One scale an output, as rows of so few inputs have it; others stay the nearest.
        if scale.shape == (len(matrix), 1) and rounding != "nearest":
            format_ = FORMATS[name]
            start = codes.astype(np.int64) + format_.grid.minimum
            fit = format_.storage.grid is None
            better, scale, note = _by_groups(
                matrix, start, scale, moments, format_.grid, fit_scale=fit
            )
            codes = (better - format_.grid.minimum).astype(np.uint8)
    elif moments is not None and rounding in ("descent", "learned"):
        format_ = FORMATS[name]
        zero = np.zeros_like(scale)
        size = matrix.shape[1] if found.block_shape[1] == -1 else found.block_shape[1]
        if format_.storage.grid is None:
            better, scale, _ = round_and_refit(
                matrix,
                moments.second,
                scale,
                zero,
                format_.grid,
                order="descending",
                group_size=size,
            )
        else:  # a fitted scale would have to be rounded to those that the format has
            start = codes.astype(np.int64) + format_.grid.minimum
            better = coordinate_descent(
                matrix, start, moments.second, scale, zero, format_.grid, group_size=size
            )
        codes = (np.asarray(better, np.int64) - format_.grid.minimum).astype(np.uint8)
    levels = found.levels
    if not (levels % 1).any() and np.abs(levels).max() < 8:
        # Whole numbers need no table of levels: ternary and binary.
        codes, width = levels.astype(np.int8)[codes], 2
        return Packed(codes, width, scale=scale, block=found.block_shape, note=note)
    width = max(int(len(levels) - 1).bit_length(), 1)
    return Packed(codes, width, levels, scale, None, found.block_shape, note)


def _in_blocks(
    matrix: NDArray[np.float64], moments: Moments | None, bits: int, rounding: Rounding
) -> Packed:
    """Unsigned codes with a scale and a zero point for each 32 inputs of an output."""
    grid = block_grid(bits)
    second = None if moments is None else moments.second
    importance = None if second is None else np.diag(second)
    scale, zero = fit_blocks(matrix, bits, BLOCK, importance)
    note = ""
    if moments is not None and second is not None and rounding != "nearest":
        if rounding == "compensated":
            codes, info = round_with_compensation(
                matrix, second, scale, zero, grid, order="descending", group_size=BLOCK
            )
        else:
            codes, scale, refit = round_and_refit(
                matrix, second, scale, zero, grid, order="descending", group_size=BLOCK
            )
            info = refit.rounding
        note = describe_moments(moments, info)
    else:
        codes = round_to_nearest(matrix, scale, zero, grid, group_size=BLOCK)
    return Packed(
        codes.astype(np.uint8),
        bits,
        scale=scale.astype(np.float32),
        zero=zero.astype(np.uint8),
        block=(1, BLOCK),
        note=note,
    )
