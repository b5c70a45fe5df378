"""Second moments of what reaches a layer, streamed, and what they are good for.

Rows are the vectors a weight [out, in] is multiplied with: one a sample for Gemm and
MatMul, one an output position for Conv. Memory is [in, in], whatever the number of rows.
A layer whose channels are in groups is a layer a group: everything then has an axis of groups
in front, and memory is [groups, in, in] with the inputs of one group.
"""

from __future__ import annotations

import math
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
    With groups: [groups, in, in] and [groups, in].
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


def empty_moments(inputs: int, *, groups: int | None = None, like: Array | None = None) -> Moments:
    """Give moments without rows, in the library and on the device of `like` (else NumPy).

    inputs: of one group, where there are `groups`; None is without an axis for them.
    """
    xp = array_namespace(np.zeros(1) if like is None else like)
    place = {} if like is None else {"device": device(like)}
    shape = (inputs,) if groups is None else (groups, inputs)
    nothing = xp.zeros(shape, dtype=xp.float64, **place)
    return Moments(xp.zeros((*shape, inputs), dtype=xp.float64, **place), nothing, nothing, 0)


def add_to_moments(moments: Moments, rows: Array) -> Moments:
    """Add rows [n, in] to the second moments sum of x x^T. Raises ValueError for NaN or Inf.

    With groups the rows are [groups, n, in].
    """
    return add_to_cross_moments(moments, rows, rows)


def add_to_cross_moments(moments: Moments, rows: Array, other: Array) -> Moments:
    """Add pairs of rows, both [n, in] or [groups, n, in], to the cross moments sum of x y^T.

    A product of float32 rows is computed in float32, 4096 rows at a time, and added up in
    float64. Raises ValueError where rows are not finite or do not pair.
    """
    xp = array_namespace(rows)
    fitting = (*rows.shape[:-2], rows.shape[-1])
    if rows.shape != other.shape or fitting != tuple(moments.left.shape):
        places = " x ".join(str(size) for size in moments.left.shape)
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
        broken = int(xp.count_nonzero(~(xp.isfinite(rows) & xp.isfinite(other))))
        raise ValueError(f"{broken} of {math.prod(rows.shape)} inputs are NaN or infinite")
    return Moments(products, left, right, moments.count + count)


def refit_to_inputs(
    weight: Array, cross_moments: Array, second_moments: Array, *, damping: float = 0.01
) -> Array:
    """Give the weight that does best on changed inputs what `weight` did on the original ones.

    V = (W C + l W) (S + l I)^-1 minimises E|W x - V y|^2 + l |V - W|^2, with C = E[x y^T],
    S = E[y y^T] and l = damping * mean(diagonal of S): damping pulls towards the given weight,
    not towards 0. x are the original inputs, y those that come out of quantized layers.
    weight: [out, in]. cross_moments, second_moments: [in, in]. Returns float64 [out, in].
    """
    xp = array_namespace(weight)
    w = xp.astype(weight, xp.float64)
    c, s = xp.astype(cross_moments, xp.float64), xp.astype(second_moments, xp.float64)
    diagonal = xp.linalg.diagonal(s)
    pull = damping * float(xp.mean(diagonal))
    # An input that never came is left as it is; the tiny share keeps S regular without damping.
    ridge = xp.where(diagonal > 0, xp.full_like(diagonal, pull), xp.ones_like(diagonal))
    ridge = ridge + 1e-12 * float(xp.mean(diagonal))
    s = s + ridge[:, None] * xp.eye(s.shape[0], dtype=xp.float64)
    right = xp.matmul(w, c) + w * ridge[None, :]
    return cast(Array, xp.linalg.solve(s, right.T).T)


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
