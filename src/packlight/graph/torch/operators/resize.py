"""Resizing: every axis is a small matrix, but for the common cases that PyTorch has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.values import Ints, Tensor, ints


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized. begin, end: the region of interest, as fractions."""

    size: int
    result: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class _Way:
    """The attributes of Resize that say where values are read and how they are mixed."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool


def resize(
    X: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """X at other sizes, given as such or by scales, of all axes or of `axes`."""
    along = [axis % X.ndim for axis in (range(X.ndim) if axes is None else axes)]
    way = _Way(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        bool(antialias),
    )
    factors = scales.tolist() if scales is not None and scales.numel() else None
    wanted = None if sizes is None or factors is not None else ints(sizes)
    regions = roi.tolist() if roi is not None and roi.numel() else None
    plan = _plan(X.shape, along, factors, wanted, regions, keep_aspect_ratio_policy, way)
    plan = {axis: one for axis, one in plan.items() if _changes(one, way)}
    fast = _interpolate(X, plan, way)
    if fast is not None:
        return fast
    dtype = X.dtype
    result = X if X.is_floating_point() else X.float()
    outside = []
    for axis, one in plan.items():
        matrix, beyond = _matrix(one, way)
        matrix = matrix.to(result.device, result.dtype)
        result = (result.movedim(axis, -1) @ matrix.t()).movedim(-1, axis)
        if beyond is not None:
            outside.append((axis, beyond))
    for axis, beyond in outside:
        form = [1] * X.ndim
        form[axis] = len(beyond)
        result = torch.where(beyond.reshape(form).to(result.device), extrapolation_value, result)
    return result if dtype.is_floating_point else _whole(result, dtype)


def _whole(result: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return result.round().clamp(info.min, info.max).to(dtype)


def upsample(X: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Resize with coordinates as they are, which is what came before it."""
    factors = scales if isinstance(scales, torch.Tensor) else torch.tensor(list(scales))
    return resize(
        X,
        None,
        factors,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        mode="linear" if mode == "bilinear" else mode,
    )


def upsample_1(
    X: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest"
) -> Tensor:
    """Upsample of pictures by two numbers."""
    return upsample(X, (1.0, 1.0, height_scale, width_scale), mode=mode)


def resize_10(X: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resize as it was in version 10."""
    return upsample(X, scales, mode=mode)


def _plan(
    shape: Sequence[int],
    along: Sequence[int],
    factors: Sequence[float] | None,
    wanted: Sequence[int] | None,
    regions: Sequence[float] | None,
    policy: str,
    way: _Way,
) -> dict[int, _Axis]:
    count = len(along)
    if wanted is not None and policy != "stretch":
        ratios = [size / shape[axis] for size, axis in zip(wanted, along, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        factors = [ratio] * count
        wanted = [math.floor(ratio * shape[axis] + 0.5) for axis in along]
    crop = way.coordinates == "tf_crop_and_resize"
    plan = {}
    for place, axis in enumerate(along):
        size = shape[axis]
        begin, end = 0.0, 1.0
        if crop and regions is not None:
            begin, end = regions[place], regions[count + place]
        if wanted is not None:
            result = wanted[place]
            scale = factors[place] if factors is not None else result / size
        else:
            assert factors is not None
            scale = factors[place]
            result = math.floor(size * (end - begin) * scale)
        plan[axis] = _Axis(size, result, scale, begin, end)
    return plan


def _changes(one: _Axis, way: _Way) -> bool:
    same = one.size == one.result and one.scale == 1.0
    return not same or (one.begin, one.end) != (0.0, 1.0)


def _interpolate(X: Tensor, plan: Mapping[int, _Axis], way: _Way) -> Tensor | None:
    """What PyTorch's own interpolation gives, where it is the same; else None."""
    rank = X.ndim - 2
    if not 1 <= rank <= 3 or not plan or min(plan) < 2 or way.antialias:
        return None
    if not X.is_floating_point() or any(one.begin or one.end != 1.0 for one in plan.values()):
        return None
    space = [plan.get(2 + i, _Axis(X.shape[2 + i], X.shape[2 + i], 1.0)) for i in range(rank)]
    if any(one.result != math.floor(one.size * one.scale) for one in space):
        return None
    by = [one.scale for one in space]
    if way.mode == "nearest" and way.coordinates == "asymmetric" and way.nearest == "floor":
        return functional.interpolate(X, scale_factor=by, mode="nearest")
    if way.mode != "linear" or way.exclude_outside or rank == 3:
        return None
    name = ("linear", "bilinear")[rank - 1]
    if way.coordinates == "half_pixel":
        return functional.interpolate(X, scale_factor=by, mode=name, align_corners=False)
    if way.coordinates == "align_corners" and all(
        one.result == one.size * one.scale for one in space
    ):
        sizes = [one.result for one in space]
        return functional.interpolate(X, sizes, mode=name, align_corners=True)
    return None


@lru_cache(maxsize=256)
def _matrix(one: _Axis, way: _Way) -> tuple[Tensor, Tensor | None]:
    """The matrix [result, size] that resizes an axis, and which results lie outside."""
    places = _places(one, way)
    outside = None
    if way.coordinates == "tf_crop_and_resize":
        outside = (places < 0) | (places > one.size - 1)
    if way.mode == "nearest":
        chosen = _nearest(places, way.nearest).clamp(0, one.size - 1).long()
        return functional.one_hot(chosen, one.size).to(torch.float64), outside
    reach = 1 if way.mode == "linear" else 2
    stretch = min(one.scale, 1.0) if way.antialias else 1.0
    radius = math.ceil(reach / stretch)
    start = places.floor()
    offsets = torch.arange(-radius + 1, radius + 1, dtype=torch.float64)
    neighbours = start.unsqueeze(1) + offsets
    distance = (neighbours - places.unsqueeze(1)).abs() * stretch
    weights = (1 - distance).clamp(min=0) if reach == 1 else _cubic(distance, way.cubic)
    if way.exclude_outside:
        inside = (neighbours >= 0) & (neighbours <= one.size - 1)
        weights = torch.where(inside, weights, 0)
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(one.result, one.size, dtype=torch.float64)
    index = neighbours.clamp(0, one.size - 1).long()
    return matrix.scatter_add(1, index, weights), outside


def _places(one: _Axis, way: _Way) -> Tensor:
    """Where on the axis each result is read, in elements."""
    x = torch.arange(one.result, dtype=torch.float64)
    if way.coordinates == "asymmetric":
        return x / one.scale
    if way.coordinates == "align_corners":
        # The length may be a fraction where scales were given.
        length = one.scale * one.size - 1
        return x * (one.size - 1) / length if length else torch.zeros_like(x)
    if way.coordinates == "tf_crop_and_resize":
        if one.result == 1:
            return torch.full_like(x, 0.5 * (one.begin + one.end) * (one.size - 1))
        step = (one.end - one.begin) * (one.size - 1) / (one.result - 1)
        return one.begin * (one.size - 1) + x * step
    if way.coordinates == "pytorch_half_pixel" and one.result == 1:
        return torch.zeros_like(x)
    middle = (x + 0.5) / one.scale - 0.5
    if way.coordinates == "half_pixel_symmetric":
        return middle + one.size / 2 * (1 - one.result / (one.scale * one.size))
    return middle


def _nearest(places: Tensor, way: str) -> Tensor:
    if way == "round_prefer_floor":
        return torch.ceil(places - 0.5)
    if way == "round_prefer_ceil":
        return torch.floor(places + 0.5)
    return torch.floor(places) if way == "floor" else torch.ceil(places)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel (Keys 1981, equation 4)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0))


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Resize": {10: resize_10, 11: resize},
    "Upsample": {1: upsample_1, 7: upsample},
}
