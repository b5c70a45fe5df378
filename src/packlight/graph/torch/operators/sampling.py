"""Reading pictures at given places: grids, regions of interest, boxes, deformed kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.operators.windows import pad_space
from packlight.graph.torch.values import Ints, Tensor, ints, whole

_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(
    X: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """X read at the places of a grid, with coordinates from -1 to 1."""
    return functional.grid_sample(
        X, grid, _GRID_MODES.get(mode, mode), padding_mode, bool(align_corners)
    )


def affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    """The grid of an affine map of a picture or volume."""
    return functional.affine_grid(theta, ints(size), align_corners=bool(align_corners))


def _corners(
    places: Tensor, size: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The two elements around each place with their weights, and whether it lies inside."""
    inside = (places >= -1) & (places <= size)
    clamped = places.clamp(min=0)
    low = clamped.floor().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = torch.where(low >= size - 1, 0, clamped - low)
    return (low.long(), 1 - share), (high.long(), share), inside


def roi_align(
    X: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions of X at one size: each result the mean (or largest part) of samples in its bin."""
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    found = []
    for box, batch in zip(rois.tolist(), batch_indices.tolist(), strict=True):
        left, top, right, bottom = (one * spatial_scale - shift for one in box)
        width, height = right - left, bottom - top
        if not shift:
            width, height = max(width, 1.0), max(height, 1.0)
        rows = _samples(top, height, output_height, sampling_ratio).to(X.device, X.dtype)
        columns = _samples(left, width, output_width, sampling_ratio).to(X.device, X.dtype)
        found.append(_read_bins(X[batch], rows, columns, mode))
    if not found:
        return X.new_zeros((0, X.shape[1], output_height, output_width))
    return torch.stack(found)


def roi_align_10(X: Tensor, rois: Tensor, batch_indices: Tensor, **attributes: Any) -> Tensor:
    """RoiAlign before it had half a pixel's shift."""
    return roi_align(
        X, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", **attributes
    )


def _samples(start: float, length: float, bins: int, ratio: int) -> Tensor:
    """Sampling places [bins, samples] along one axis."""
    count = ratio if ratio > 0 else max(math.ceil(length / bins), 1)
    each = length / bins
    within = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return start + (torch.arange(bins, dtype=torch.float64).unsqueeze(1) + within) * each


def _read_bins(picture: Tensor, rows: Tensor, columns: Tensor, mode: str) -> Tensor:
    """Picture [channels, h, w] at the product of rows [bins, n] and columns [bins, m]."""
    *row_corners, row_inside = _corners(rows, picture.shape[1])
    *column_corners, column_inside = _corners(columns, picture.shape[2])
    parts = []
    for row, row_share in row_corners:
        for column, column_share in column_corners:
            values = picture[:, row[:, :, None, None], column[None, None]]
            parts.append(values * (row_share[:, :, None, None] * column_share[None, None]))
    inside = row_inside[:, :, None, None] & column_inside[None, None]
    stacked = torch.stack(parts)
    if mode == "max":
        return torch.where(inside, stacked.amax(0), 0).amax((2, 4))
    return torch.where(inside, stacked.sum(0), 0).mean((2, 4))


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Boxes kept, best first, without those that overlap a better one: [count, 3]."""
    most = 0 if max_output_boxes_per_class is None else whole(max_output_boxes_per_class)
    overlap = 0.0 if iou_threshold is None else float(iou_threshold)
    least = None if score_threshold is None else float(score_threshold)
    if center_point_box:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        first, last = middle - half, middle + half
    else:
        first = torch.minimum(boxes[..., :2], boxes[..., 2:])
        last = torch.maximum(boxes[..., :2], boxes[..., 2:])
    kept = []
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            score = scores[batch, kind]
            order = score.argsort(descending=True, stable=True)
            if least is not None:
                order = order[score[order] > least]
            chosen = _suppress(first[batch], last[batch], order, overlap, most)
            kept += [(batch, kind, place) for place in chosen]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


def _suppress(first: Tensor, last: Tensor, order: Tensor, overlap: float, most: int) -> list[int]:
    area = (last - first).prod(-1)
    chosen: list[int] = []
    while len(order) and len(chosen) < most:
        best, order = order[0], order[1:]
        chosen.append(int(best))
        low = torch.maximum(first[best], first[order])
        high = torch.minimum(last[best], last[order])
        shared = (high - low).clamp(min=0).prod(-1)
        union = area[best] + area[order] - shared
        order = order[~(shared > overlap * union)]
    return chosen


def deform_conv(
    X: Tensor,
    W: Tensor,
    offset: Tensor,
    B: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Tensor:
    """A convolution of pictures whose kernel reads at places moved by `offset`."""
    n, channels, height, width = X.shape
    taps = W.shape[2] * W.shape[3]
    out_h, out_w = offset.shape[2:]
    moves = offset.reshape(n * offset_group, taps, 2, out_h, out_w)
    tap_y = torch.arange(taps, device=X.device) // W.shape[3] * dilations[0] - pads[0]
    tap_x = torch.arange(taps, device=X.device) % W.shape[3] * dilations[1] - pads[1]
    base_y = torch.arange(out_h, device=X.device) * strides[0]
    base_x = torch.arange(out_w, device=X.device) * strides[1]
    y = moves[:, :, 0] + (tap_y[:, None, None] + base_y[:, None])
    x = moves[:, :, 1] + (tap_x[:, None, None] + base_x)
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1).reshape(
        n * offset_group, taps * out_h, out_w, 2
    )
    source = X.reshape(n * offset_group, channels // offset_group, height, width)
    read = functional.grid_sample(source, grid.to(X.dtype), align_corners=True)
    read = read.reshape(n, offset_group, channels // offset_group, taps, out_h, out_w)
    if mask is not None:
        read = read * mask.reshape(n, offset_group, 1, taps, out_h, out_w)
    read = read.reshape(n, group, channels // group, taps, out_h, out_w)
    weight = W.reshape(group, W.shape[0] // group, W.shape[1], taps)
    Y = torch.einsum("ngcthw,goct->ngohw", read, weight).reshape(n, W.shape[0], out_h, out_w)
    return Y if B is None else Y + B.reshape(-1, 1, 1)


def col2im(
    input: Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Columns [n, channels * taps, places] added up where they were cut out of a picture."""
    space, block = ints(image_shape), ints(block_shape)
    rank = len(space)
    steps, spread = strides or (1,) * rank, dilations or (1,) * rank
    around = pads or (0,) * 2 * rank
    padded = [size + around[i] + around[rank + i] for i, size in enumerate(space)]
    counts = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded, block, steps, spread, strict=True)
    ]
    columns = input.reshape(input.shape[0], -1, math.prod(block), *counts)
    result = input.new_zeros((input.shape[0], columns.shape[1], *padded))
    for tap in range(math.prod(block)):
        place, rest = [], tap
        for size in reversed(block):
            place.append(rest % size)
            rest //= size
        window = tuple(
            slice(p * d, p * d + s * (count - 1) + 1, s)
            for p, d, s, count in zip(reversed(place), spread, steps, counts, strict=True)
        )
        result[(slice(None), slice(None), *window)] += columns[:, :, tap]
    return pad_space(
        result, tuple(-one for one in around[:rank]), tuple(-one for one in around[rank:])
    )


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "AffineGrid": affine_grid,
    "Col2Im": col2im,
    "DeformConv": deform_conv,
    "GridSample": grid_sample,
    "NonMaxSuppression": non_max_suppression,
    "RoiAlign": {10: roi_align_10, 16: roi_align},
}
