"""How much weights and channels seem to matter, without mending anything: what pruning goes by.

Scores are compared, never added up to an error: what removal truly costs once the rest is
fitted again is in `channels` and `sparsity`.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace, device

from packlight.maths.factor import invert_moments
from packlight.maths.grids import Array
from packlight.maths.layer import check_moments
from packlight.maths.readers import ChannelReader, check_readers


def score_by_magnitude(weight: Array) -> Array:
    """Give |w|, float64 [out, in] (Han et al. 2015)."""
    xp = array_namespace(weight)
    return xp.abs(xp.astype(weight, xp.float64))


def score_by_activation(weight: Array, second_moments: Array) -> Array:
    """Give |w_ij| sqrt(H_jj), float64 [out, in]: what removing one weight alone does at the output.

    second_moments: [in, in], or the diagonal alone, [in]. To be compared within a row
    (Wanda, Sun et al. 2023).
    """
    xp = array_namespace(weight)
    moments = second_moments
    if len(moments.shape) == 2:
        check_moments(moments, weight.shape[1])
        moments = xp.linalg.diagonal(moments)
    return score_by_magnitude(weight) * xp.sqrt(xp.astype(moments, xp.float64))[None, :]


def score_by_removal(weight: Array, second_moments: Array, *, damping: float = 0.01) -> Array:
    """Give w_ij^2 / [H^-1]_jj, float64 [out, in]: the cost of one weight once the rest is refit.

    Inputs that never came score 0. second_moments: [in, in]. damping: as in
    `round_with_compensation` (optimal brain surgeon, Hassibi and Stork 1993).
    """
    xp = array_namespace(weight)
    check_moments(second_moments, weight.shape[1])
    inverse = xp.linalg.diagonal(invert_moments(second_moments, damping=damping))
    fed = xp.astype(xp.linalg.diagonal(second_moments) > 0, xp.float64)
    return xp.astype(weight, xp.float64) ** 2 * (fed / inverse)[None, :]


def score_rows(rows: Array, *, norm: int = 1) -> Array:
    """Give sum |w| (norm 1) or sqrt(sum w^2) (norm 2) of each channel's row, float64 [channels].

    rows: [channels, ...] of the layer that makes the channels (Li et al. 2016).
    Raises ValueError for another norm.
    """
    xp = array_namespace(rows)
    if norm not in (1, 2):
        raise ValueError(f"channels are compared by norm 1 or 2, not {norm}")
    wide = xp.abs(xp.reshape(xp.astype(rows, xp.float64), (rows.shape[0], -1)))
    return xp.sum(wide, axis=1) if norm == 1 else xp.sqrt(xp.sum(wide * wide, axis=1))


def score_channels(readers: Sequence[ChannelReader]) -> Array:
    """Give tr(W_c H_cc W_c^T) of each channel, float64 [channels], summed over its readers.

    What removing the channel alone does at their outputs, nothing refitted.
    """
    channels = check_readers(readers)
    xp = array_namespace(readers[0].weight)
    total = [0.0] * channels
    for reader in readers:
        for channel, columns in enumerate(reader.columns):
            if not len(columns):
                continue
            index = xp.asarray(list(columns), dtype=xp.int64, device=device(reader.weight))
            own = xp.astype(xp.take(reader.weight, index, axis=1), xp.float64)
            moments = xp.take(xp.take(reader.second_moments, index, axis=0), index, axis=1)
            reach = xp.matmul(own, xp.astype(moments, xp.float64))
            total[channel] += float(xp.sum(reach * own))
    return xp.asarray(total, dtype=xp.float64, device=device(readers[0].weight))


def score_by_gradient(values: Array, gradients: Array) -> Array:
    """Give the mean over batches of (sum_j v_cj g_cj)^2, float64 [channels].

    To first order the square of what the loss changes by when all of a channel's values become 0.
    values: [channels, ...], weights or activations. gradients: [batches, channels, ...] of the
    loss with respect to them (Molchanov et al. 2019, equation 8).
    Raises ValueError for gradients of another shape.
    """
    xp = array_namespace(values)
    if tuple(gradients.shape[1:]) != tuple(values.shape):
        raise ValueError(
            f"gradients of shape {tuple(gradients.shape)} are no batches of {tuple(values.shape)}"
        )
    products = xp.astype(values, xp.float64)[None, ...] * xp.astype(gradients, xp.float64)
    sums = xp.sum(xp.reshape(products, (*products.shape[:2], -1)), axis=2)
    return xp.mean(sums * sums, axis=0)
