"""Pooling over windows in space, and over all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.operators.windows import Sizes, Windows, find_windows, pad_space
from packlight.graph.torch.values import Ints, Tensor, ints

_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def max_pool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
    outputs: int = 1,
) -> Any:
    """The largest value of each window, and where it stands in the flat input."""
    space = tuple(X.shape[2:])
    windows = find_windows(space, kernel_shape, strides, dilations, pads, auto_pad)
    if outputs == 1 and not ceil_mode and windows.begin == windows.end and _within(windows):
        run = _MAX_POOL[len(space) - 1]
        return run(X, windows.kernel, windows.strides, windows.begin, windows.dilations)
    dtype = X.dtype
    least = float("-inf")
    if not X.is_floating_point():
        # Integers below 2^24 are exact in float32, which has the kernels.
        X = X.float()
    # Positions in the input go along, so that padding does not count.
    position = torch.arange(X[0, 0].numel(), dtype=torch.float64).reshape(1, 1, *space)
    end = _reach(space, windows) if ceil_mode else windows.end
    padded = pad_space(X, windows.begin, end, least)
    run = _MAX_POOL[len(space) - 1]
    Y, found = run(
        padded, windows.kernel, windows.strides, 0, windows.dilations, False, return_indices=True
    )
    if outputs == 1:
        return Y.to(dtype)
    placed = pad_space(position, windows.begin, end, -1.0).to(torch.int64).reshape(-1)
    placed = placed.to(found.device)[found]
    if storage_order:
        placed = _column_major(placed, space)
    planes = torch.arange(X.shape[0] * X.shape[1], device=found.device)
    planes = planes.reshape(X.shape[0], X.shape[1], *[1] * len(space))
    return Y.to(dtype), placed + planes * position.numel()


def _column_major(placed: Tensor, space: Sizes) -> Tensor:
    """Flat positions counted with the first axis fastest."""
    result = torch.zeros_like(placed)
    axes = []
    for size in reversed(space):
        axes.append(placed % size)
        placed = torch.div(placed, size, rounding_mode="floor")
    step = 1
    for axis, size in zip(reversed(axes), space, strict=True):
        result += axis * step
        step *= size
    return result


def _within(windows: Windows) -> bool:
    """Whether PyTorch takes the pads: up to half a kernel."""
    return all(0 <= pad <= k // 2 for pad, k in zip(windows.begin, windows.kernel, strict=True))


def _reach(space: Sizes, windows: Windows) -> Sizes:
    """End pads with which the last window, begun inside, is whole (`ceil_mode`)."""
    ends = []
    for size, k, s, d, b, e in zip(space, *windows, strict=True):
        reach = d * (k - 1) + 1
        count = -(-(size + b + e - reach) // s) + 1
        if (count - 1) * s >= size + b:  # it would begin in the padding
            count -= 1
        ends.append(max((count - 1) * s + reach - size - b, e))
    return tuple(ends)


def average_pool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The mean of each window; padding counts where `count_include_pad` says so."""
    space = tuple(X.shape[2:])
    windows = find_windows(space, kernel_shape, strides, dilations, pads, auto_pad)
    even = windows.begin == windows.end and _within(windows)
    if even and not ceil_mode and max(windows.dilations) == 1:
        run = _AVERAGE_POOL[len(space) - 1]
        counted = bool(count_include_pad)
        return run(X, windows.kernel, windows.strides, windows.begin, False, counted)
    end = _reach(space, windows) if ceil_mode else windows.end
    ones = torch.ones((1, 1, *space), dtype=X.dtype, device=X.device)
    if count_include_pad:
        ones = pad_space(ones, windows.begin, windows.end, 1.0)
        begin, rest = (0,) * len(space), tuple(e - w for e, w in zip(end, windows.end, strict=True))
    else:
        begin, rest = windows.begin, end
    weight = _sum_windows(pad_space(ones, begin, rest), windows)
    return _sum_windows(pad_space(X, windows.begin, end), windows) / weight


def _sum_windows(padded: Tensor, windows: Windows) -> Tensor:
    """The sum over each window of what is already padded."""
    result = padded
    for axis, (k, s, d) in enumerate(
        zip(windows.kernel, windows.strides, windows.dilations, strict=True), start=2
    ):
        result = result.unfold(axis, d * (k - 1) + 1, s)[..., ::d].sum(-1)
    return result


def lp_pool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    kernel_shape: Sizes,
    p: float = 2,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The p-norm of each window."""
    space = tuple(X.shape[2:])
    windows = find_windows(space, kernel_shape, strides, dilations, pads, auto_pad)
    end = _reach(space, windows) if ceil_mode else windows.end
    return _sum_windows(pad_space(X.abs() ** p, windows.begin, end), windows) ** (1 / p)


def global_average_pool(X: Tensor) -> Tensor:
    """The mean over space."""
    return X.mean(list(range(2, X.ndim)), keepdim=True)


def global_max_pool(X: Tensor) -> Tensor:
    """The largest value in space."""
    return X.amax(list(range(2, X.ndim)), keepdim=True)


def global_lp_pool(X: Tensor, *, p: float = 2) -> Tensor:
    """The p-norm over space."""
    norm: Tensor = torch.linalg.vector_norm(X, ord=p, dim=list(range(2, X.ndim)), keepdim=True)
    return norm


def max_unpool(
    X: Tensor,
    I: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Values put back where MaxPool found them, zeros elsewhere."""
    rank = len(kernel_shape)
    steps = strides or (1,) * rank
    around = pads or (0,) * 2 * rank
    sizes = [
        (n - 1) * s + k - around[axis] - around[axis + rank]
        for axis, (n, s, k) in enumerate(zip(X.shape[2:], steps, kernel_shape, strict=True))
    ]
    natural = [*X.shape[:2], *sizes]
    flat = X.new_zeros(natural).reshape(-1).scatter(0, I.reshape(-1), X.reshape(-1))
    small = flat.reshape(natural)
    if output_shape is None:
        return small
    wanted = ints(output_shape)
    end = tuple(w - n for w, n in zip(wanted[2:], sizes, strict=True))
    return pad_space(small, (0,) * rank, end)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
