"""Reductions over axes, running sums, and where the largest stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from packlight.graph.torch.values import Ints, Tensor, ints, whole


def _over(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """A reduction over some axes, or all where none are given."""

    def run(
        data: Tensor,
        axes: Ints | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = ints(axes) if axes is not None else []
        if not chosen:
            if noop_with_empty_axes:
                return function(data.unsqueeze(0), [0], False)
            chosen = list(range(data.ndim))
        if not chosen:  # a number: there is no axis to reduce
            return function(data.reshape(1), [0], False)
        return function(data, chosen, bool(keepdims))

    return run


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).to(x.dtype)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _bounded(x, axes, keep, torch.amax, least=True)


def _least(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _bounded(x, axes, keep, torch.amin, least=False)


def _bounded(
    x: Tensor, axes: list[int], keep: bool, function: Callable[..., Tensor], *, least: bool
) -> Tensor:
    if x.numel():
        return function(x, axes, keep)
    # Over nothing: the value that no other is below (above).
    if x.dtype == torch.bool:
        empty: Any = not least
    elif x.is_floating_point():
        empty = float("-inf") if least else float("inf")
    else:
        empty = torch.iinfo(x.dtype).min if least else torch.iinfo(x.dtype).max
    return torch.full_like(x.sum(axes, keepdim=keep), empty, dtype=x.dtype)


def _norm1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _norm2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return _sum(x.square(), axes, keep).double().sqrt().to(x.dtype)
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keep)
    return norm


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.square(), axes, keep)


def arg_max(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Where the largest value along an axis stands: the first, or the last of equals."""
    if not select_last_index:
        return data.argmax(axis, keepdim=bool(keepdims))
    found = data.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return data.shape[axis] - 1 - found


def arg_min(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Where the least value along an axis stands."""
    if not select_last_index:
        return data.argmin(axis, keepdim=bool(keepdims))
    found = data.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return data.shape[axis] - 1 - found


def _running(function: Callable[..., Tensor], neutral: int) -> Callable[..., Tensor]:
    def run(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        along = whole(axis)
        if reverse:
            x = x.flip(along)
        if exclusive:
            first = torch.full_like(x.narrow(along, 0, 1), neutral)
            x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
        result = function(x, along, dtype=x.dtype)
        return result.flip(along) if reverse else result

    return run


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": _running(torch.cumprod, 1),
    "CumSum": _running(torch.cumsum, 0),
    "ReduceL1": _over(_norm1),
    "ReduceL2": _over(_norm2),
    "ReduceLogSum": _over(_log_sum),
    "ReduceLogSumExp": _over(_log_sum_exp),
    "ReduceMax": _over(_largest),
    "ReduceMean": _over(_mean),
    "ReduceMin": _over(_least),
    "ReduceProd": _over(_product),
    "ReduceSum": _over(_sum),
    "ReduceSumSquare": _over(_sum_square),
}
