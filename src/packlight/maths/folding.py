"""Channels that are much alike become one, without any data.

What makes a channel (its row, with bias and norm) is averaged over a cluster of channels, and what
reads them adds up: exact where the rows of a cluster are equal, for whatever stands between that
works on each channel alone (model folding, Wang et al. 2025; IFM, Chen et al. 2023). Clusters are
Ward's (1963), then k-means from there: both lower the squared distance to the cluster's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace, device

from packlight.maths.grids import Array


@dataclass(frozen=True)
class Folding:
    """Which channels stand for which.

    kept: one channel a cluster, the one nearest to its mean, ascending.
    stands_in: [channels] the kept channel into which each is folded.
    loss: sum of squared distances of rows to the mean of their cluster.
    """

    kept: tuple[int, ...]
    stands_in: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class Merged:
    """Folded arrays in their full sizes; what belongs to channels that are not kept can be cut.

    makers: rows of all channels, those of a cluster alike. readers: columns of channels that are
    not kept are 0.
    """

    folding: Folding
    makers: tuple[Array, ...]
    readers: tuple[Array, ...]


def merge_channels(
    makers: Sequence[Array],
    readers: Sequence[tuple[Array, Sequence[Sequence[int]]]],
    keep: int,
    *,
    centre: Literal["mean", "medoid"] = "mean",
    rounds: int = 20,
) -> Merged:
    """Fold channels into `keep` of them.

    makers: arrays [channels, ...]: rows of weights, with biases and what norms multiply with as
    the caller wants them to count. readers: (weight [out, in], columns of each channel), as in
    `ChannelReader`; all channels of a reader have as many columns, in the same order of taps.
    centre: rows become the mean of their cluster, or those of the kept channel.
    rounds: of k-means, at most.
    Returns Merged. Raises ValueError for arrays that don't fit each other.
    """
    folding = cluster_channels(makers, keep, rounds=rounds)
    return Merged(
        folding,
        tuple(fold_rows(rows, folding, centre=centre) for rows in makers),
        tuple(fold_columns(weight, columns, folding) for weight, columns in readers),
    )


def cluster_channels(makers: Sequence[Array], keep: int, *, rounds: int = 20) -> Folding:
    """Give `keep` clusters of channels with rows that are alike: Ward's, then k-means.

    makers: arrays [channels, ...], side by side. rounds: of k-means, at most; it never raises the
    loss. Work grows as channels^2 times those that go, with memory for [channels, channels].
    """
    if not makers:
        raise ValueError("channels are folded by the rows that make them: there are none")
    xp = array_namespace(makers[0])
    sizes = {int(rows.shape[0]) for rows in makers}
    if len(sizes) != 1:
        raise ValueError(f"all rows are of the same channels, not {sorted(sizes)}")
    channels = sizes.pop()
    if not 1 <= keep <= channels:
        raise ValueError(f"1 to {channels} channels can be kept, not {keep}")
    flat = [xp.reshape(xp.astype(rows, xp.float64), (channels, -1)) for rows in makers]
    points = xp.concat(flat, axis=1)
    member = _k_means(xp, points, _ward(xp, points, keep), keep, rounds)
    centres = _means(xp, points, member, keep)
    away = xp.sum((points - centres[member, :]) ** 2, axis=1)
    far = [float(value) for value in away]
    numbers = [int(number) for number in member]
    # The first of those as near as each other (both of a pair are), rounding noise aside.
    noise = 1e-12 * float(xp.mean(xp.sum(points * points, axis=1)))
    least = [min(far[c] for c in range(channels) if numbers[c] == n) for n in range(keep)]
    nearest = [
        next(c for c in range(channels) if numbers[c] == n and far[c] <= least[n] + noise)
        for n in range(keep)
    ]
    return Folding(
        kept=tuple(sorted(nearest)),
        stands_in=tuple(nearest[number] for number in numbers),
        loss=float(xp.sum(away)),
    )


def fold_rows(
    rows: Array, folding: Folding, *, centre: Literal["mean", "medoid"] = "mean"
) -> Array:
    """Give each channel the row of its cluster, float64 [channels, ...]: the mean, or the kept."""
    xp = array_namespace(rows)
    wide = xp.astype(rows, xp.float64)
    index = xp.asarray(folding.stands_in, dtype=xp.int64, device=device(rows))
    if centre == "medoid":
        return xp.take(wide, index, axis=0)
    found = xp.zeros_like(wide)
    for kept in folding.kept:
        own = index == kept
        found[own, ...] = xp.mean(wide[own, ...], axis=0)
    return found


def fold_columns(weight: Array, columns: Sequence[Sequence[int]], folding: Folding) -> Array:
    """Add the columns of each channel to those of the kept one it is folded into.

    weight: [out, in]. columns: of each channel. Returns float64 [out, in], 0 at the other columns
    of channels that are not kept. Raises ValueError for channels of unlike columns.
    """
    xp = array_namespace(weight)
    if len(columns) != len(folding.stands_in):
        raise ValueError(f"{len(folding.stands_in)} channels were folded, not {len(columns)}")
    found = xp.asarray(xp.astype(weight, xp.float64), copy=True)
    for channel, kept in enumerate(folding.stands_in):
        if channel == kept:
            continue
        if len(columns[channel]) != len(columns[kept]):
            raise ValueError(
                f"channel {channel} has {len(columns[channel])} columns, {kept} which stands in "
                f"for it has {len(columns[kept])}"
            )
        for source, target in zip(columns[channel], columns[kept], strict=True):
            found[:, target] += found[:, source]
            found[:, source] = 0.0
    return found


def _ward(xp: Any, points: Array, keep: int) -> Array:
    """Merge the two clusters whose merger costs least until `keep` are left; [points] numbers.

    Distances follow by Lance and Williams (1967): nothing is computed twice.
    """
    count = points.shape[0]
    squares = xp.sum(points * points, axis=1)
    gaps = squares[:, None] + squares[None, :] - 2 * xp.matmul(points, points.T)
    gaps = xp.clip((gaps + gaps.T) / 4, 0, None)  # what merging two single points costs
    endless = xp.asarray(float("inf"), dtype=xp.float64, device=device(points))
    gaps = xp.where(xp.eye(count, dtype=xp.bool, device=device(points)), endless, gaps)
    sizes = xp.ones((count,), dtype=xp.float64, device=device(points))
    member = [[c] for c in range(count)]
    for _ in range(count - keep):
        low, high = divmod(int(xp.argmin(xp.reshape(gaps, (-1,)))), count)
        one, two = min(low, high), max(low, high)
        cost, n, m = gaps[one, two], sizes[one], sizes[two]
        new = ((n + sizes) * gaps[one, :] + (m + sizes) * gaps[two, :] - sizes * cost) / (
            n + m + sizes
        )
        new[one] = new[two] = endless
        gaps[one, :] = gaps[:, one] = new
        gaps[two, :] = gaps[:, two] = endless
        sizes[one] += sizes[two]
        member[one] += member[two]
        member[two] = []
    numbers = [0] * count
    for number, own in enumerate(sorted(own for own in member if own)):
        for c in own:
            numbers[c] = number
    return xp.asarray(numbers, dtype=xp.int64, device=device(points))


def _k_means(xp: Any, points: Array, member: Array, keep: int, rounds: int) -> Array:
    """Move points to the nearest mean, until none moves or a cluster would be left empty."""
    for _ in range(rounds):
        centres = _means(xp, points, member, keep)
        gaps = xp.sum(centres * centres, axis=1)[None, :] - 2 * xp.matmul(points, centres.T)
        nearest = xp.argmin(gaps, axis=1)
        row = xp.arange(points.shape[0], device=device(points))
        # Rounding noise must not move a point between clusters as good as each other.
        better = gaps[row, nearest] < gaps[row, member] - 1e-12 * xp.abs(gaps[row, member])
        moved = xp.where(better, nearest, member)
        if not bool(xp.any(better)) or xp.unique_values(moved).shape[0] < keep:
            break
        member = moved
    return member


def _means(xp: Any, points: Array, member: Array, keep: int) -> Array:
    chosen = xp.arange(keep, device=device(points))[:, None] == member[None, :]
    shares = xp.astype(chosen, xp.float64)
    return xp.matmul(shares, points) / xp.sum(shares, axis=1)[:, None]
