"""Second moments of what reaches a layer, streamed, and what they are good for.

Rows are the vectors a weight [out, in] is multiplied with: one a sample for Gemm and
MatMul, one an output position for Conv. Memory is [in, in], whatever the number of rows.
A layer whose channels are in groups is a layer a group: everything then has an axis of groups
in front, and memory is [groups, in, in] with the inputs of one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, device

from packlight.maths.grids import Array


@dataclass(frozen=True)
class Moments:
    """Sums over rows x [in] of one stream, or of two streams x and y side by side.

    products: [in, in] sum of x y^T (x x^T where there is one stream), float64.
    left, right: [in] sums of x and of y. count: number of rows, in each group the same.
    With groups: [groups, in, in] and [groups, in]. Two streams need not be equally wide: with a
    layer's outputs as x, products are [out, in].
    """

    products: Array
    left: Array
    right: Array
    count: int

    @property
    def second(self) -> Array:
        """[in, in] E[x y^T], zeros while empty; with groups [groups, in, in]."""
        return self.products / max(self.count, 1)

    @property
    def grouped(self) -> bool:
        """Whether there is an axis of groups in front."""
        return len(self.products.shape) == 3

    def of_group(self, group: int) -> Moments:
        """The moments of one group by itself."""
        return Moments(
            self.products[group, ...], self.left[group, ...], self.right[group, ...], self.count
        )

    @property
    def mean(self) -> Array:
        """[in] E[x], zeros while empty."""
        return self.left / max(self.count, 1)

    @property
    def mean_right(self) -> Array:
        """[in] E[y], zeros while empty."""
        return self.right / max(self.count, 1)


def reorder_moments(moments: Moments, order: Array) -> Moments:
    """Give the moments with their inputs in another order.

    order: [in] which input comes next; of each group, where there are groups.
    """
    products = moments.products[..., order[:, None], order]
    return Moments(products, moments.left[..., order], moments.right[..., order], moments.count)


def empty_moments(
    inputs: int,
    *,
    outputs: int | None = None,
    groups: int | None = None,
    like: Array | None = None,
) -> Moments:
    """Give moments without rows, in the library and on the device of `like` (else NumPy).

    inputs: of one group, where there are `groups`; None is without an axis for them.
    outputs: the width of the first of two streams, where it is another one.
    """
    xp = array_namespace(np.zeros(1) if like is None else like)
    place = {} if like is None else {"device": device(like)}
    wide = inputs if outputs is None else outputs
    front = () if groups is None else (groups,)
    left, right = (xp.zeros((*front, n), dtype=xp.float64, **place) for n in (wide, inputs))
    return Moments(xp.zeros((*front, wide, inputs), dtype=xp.float64, **place), left, right, 0)


def add_to_moments(moments: Moments, rows: Array) -> Moments:
    """Add rows [n, in] to the second moments sum of x x^T. Raises ValueError for NaN or Inf.

    With groups the rows are [groups, n, in].
    """
    return add_to_cross_moments(moments, rows, rows)


def add_to_cross_moments(moments: Moments, rows: Array, other: Array) -> Moments:
    """Add pairs of rows, [n, in] or [groups, n, in] each, to the cross moments sum of x y^T.

    A product of float32 rows is computed in float32, 4096 rows at a time, and added up in
    float64. Raises ValueError where rows are not finite or do not pair.
    """
    xp = array_namespace(rows)
    pairs = [(tuple(rows.shape), moments.left), (tuple(other.shape), moments.right)]
    fit = all((*shape[:-2], shape[-1]) == tuple(sums.shape) for shape, sums in pairs)
    if not fit or rows.shape[-2] != other.shape[-2]:
        places = " and ".join(" x ".join(map(str, sums.shape)) for _, sums in pairs)
        raise ValueError(
            f"rows {tuple(rows.shape)} and {tuple(other.shape)} do not fit moments of "
            f"{places} inputs"
        )
    products, left, right = moments.products, moments.left, moments.right
    count = int(rows.shape[-2])
    for start in range(0, count, 4096):
        x, y = rows[..., start : start + 4096, :], other[..., start : start + 4096, :]
        products = products + xp.astype(xp.matmul(xp.matrix_transpose(x), y), xp.float64)
        left = left + xp.sum(x, axis=-2, dtype=xp.float64)
        right = left if other is rows else right + xp.sum(y, axis=-2, dtype=xp.float64)
    if not bool(xp.all(xp.isfinite(left)) & xp.all(xp.isfinite(right))):
        streams = (rows,) if other is rows else (rows, other)
        broken = sum(int(xp.count_nonzero(~xp.isfinite(stream))) for stream in streams)
        raise ValueError(f"{broken} of {math.prod(rows.shape)} inputs are NaN or infinite")
    return Moments(products, left, right, moments.count + count)


def join_moments(first: Moments, second: Moments) -> Moments:
    """Give the moments of both one's rows together."""
    return Moments(
        first.products + second.products,
        first.left + second.left,
        first.right + second.right,
        first.count + second.count,
    )


def refit_to_inputs(
    weight: Array, cross_moments: Array, second_moments: Array, *, damping: float = 0.01
) -> Array:
    """Give the weight that does best on changed inputs what `weight` did on the original ones.

    x are the original inputs, y those that come out of quantized layers.
    weight: [out, in]. cross_moments, second_moments: [in, in]. Returns float64 [out, in].
    `refit_kept` of all inputs.
    """
    kept = range(int(weight.shape[1]))
    return refit_kept(weight, cross_moments, second_moments, kept, damping=damping)


def refit_kept(
    weight: Array,
    cross_moments: Array,
    second_moments: Array,
    kept: Sequence[int],
    *,
    damping: float = 0.01,
) -> Array:
    """Give the weight that does best with some inputs K what `weight` did on the original ones.

    V = (W C + l W_K) (S + l I)^-1 minimises E|W x - V y|^2 + l |V - W_K|^2, with C = E[x y^T],
    S = E[y y^T] and l = damping * mean(diagonal of S): damping pulls towards the given weight,
    not towards 0. x are the original inputs, y those that reach the kept ones. Where these are
    the original ones too, C is the columns K of H = E[x x^T], and S its rows and columns K.
    weight: [out, in]. kept: the inputs K, each once, in the order of the result.
    cross_moments: [in, K], or [in, in] of which the columns K count. second_moments: [K, K], or
    [in, in] likewise.
    Returns float64 [out, K]. Raises ValueError for moments that do not fit.
    """
    xp = array_namespace(weight)
    inputs = int(weight.shape[1])
    chosen = [int(column) for column in kept]
    if len(set(chosen)) != len(chosen) or not all(0 <= column < inputs for column in chosen):
        raise ValueError(f"inputs to keep are different ones of {inputs}")
    index = xp.asarray(chosen, dtype=xp.int64, device=device(weight))
    count = len(chosen)
    w = xp.astype(weight, xp.float64)
    c, s = xp.astype(cross_moments, xp.float64), xp.astype(second_moments, xp.float64)
    if tuple(c.shape) == (inputs, inputs):
        c = xp.take(c, index, axis=1)
    if tuple(s.shape) == (inputs, inputs):
        s = xp.take(xp.take(s, index, axis=0), index, axis=1)
    if tuple(c.shape) != (inputs, count) or tuple(s.shape) != (count, count):
        raise ValueError(
            f"moments of shapes {tuple(cross_moments.shape)} and {tuple(second_moments.shape)} "
            f"do not fit {inputs} inputs of which {count} are kept"
        )
    diagonal = xp.linalg.diagonal(s)
    mean = float(xp.mean(diagonal)) if count else 0.0
    # An input that never came is left as it is; the tiny share keeps S regular without damping.
    ridge = xp.where(diagonal > 0, xp.full_like(diagonal, damping * mean), xp.ones_like(diagonal))
    ridge = ridge + 1e-12 * mean
    s = s + ridge[:, None] * xp.eye(count, dtype=xp.float64, device=device(s))
    right = xp.matmul(w, c) + xp.take(w, index, axis=1) * ridge[None, :]
    return cast(Array, xp.linalg.solve(s, right.T).T)


def refit_to_targets(
    weight: Array, target_moments: Array, second_moments: Array, *, damping: float = 0.01
) -> Array:
    """Give the weight whose outputs are nearest to given targets.

    V = (T + l W) (S + l I)^-1 minimises E|t - V y|^2 + l |V - W|^2, with T = E[t y^T],
    S = E[y y^T] and l = damping * mean(diagonal of S): damping pulls towards the given weight.
    t is what the layer ought to give, y what reaches it; `refit_kept` is the case t = W x.
    weight, target_moments: [out, in]. second_moments: [in, in]. With groups all of them have an
    axis of groups in front. Returns float64 of the weight's shape.
    """
    xp = array_namespace(weight)
    w, t = xp.astype(weight, xp.float64), xp.astype(target_moments, xp.float64)
    s = xp.astype(second_moments, xp.float64)
    diagonal = xp.linalg.diagonal(s)
    mean = xp.mean(diagonal, axis=-1, keepdims=True)
    # An input that never came is left as it is; the tiny share keeps S regular without damping.
    ridge = xp.where(diagonal > 0, damping * mean, xp.ones_like(diagonal)) + 1e-12 * mean
    s = s + ridge[..., :, None] * xp.eye(s.shape[-1], dtype=xp.float64, device=device(s))
    right = t + w * ridge[..., None, :]
    return cast(Array, xp.linalg.solve(s, right.mT).mT)


def mean_shift(weight: Array, mean: Array, new_weight: Array, new_mean: Array) -> Array:
    """Give what must be added to a layer's bias so that its mean output stays: W E[x] - V E[y].

    weight, new_weight: [out, in]. mean, new_mean: [in], or [groups, in] where the outputs stand
    one group below the other. Returns float64 [out]
    (Nagel et al. 2019, section 4.2, measured on data).
    """
    xp = array_namespace(weight)
    wide: Any = [xp.astype(a, xp.float64) for a in (weight, mean, new_weight, new_mean)]

    def product(matrix: Array, vector: Array) -> Array:
        if len(vector.shape) == 1:
            return xp.matmul(matrix, vector)
        stack = xp.reshape(matrix, (vector.shape[0], -1, vector.shape[1]))
        return xp.reshape(xp.matmul(stack, vector[:, :, None]), (-1,))

    return product(wide[0], wide[1]) - product(wide[2], wide[3])
