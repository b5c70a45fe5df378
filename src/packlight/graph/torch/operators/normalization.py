"""Normalizations, softmax, and dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.values import DTYPES, Tensor


def batch_normalization(
    X: Tensor,
    scale: Tensor,
    B: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Any:
    """(X - mean) / sqrt(var + epsilon) scale + B, each a channel; in training of the batch."""
    if not spatial:
        raise NotImplementedError("BatchNormalization of each place by itself (spatial = 0)")
    if not training_mode:
        return functional.batch_norm(X, input_mean, input_var, scale, B, False, 0.0, epsilon)
    axes = [axis for axis in range(X.ndim) if axis != 1]
    mean, var = X.mean(axes), X.var(axes, correction=0)
    Y = functional.batch_norm(X, mean, var, scale, B, False, 0.0, epsilon)
    return (
        Y,
        input_mean * momentum + mean * (1 - momentum),
        input_var * momentum + var * (1 - momentum),
    )


def instance_normalization(
    input: Tensor,
    scale: Tensor,
    B: Tensor,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    """Each channel of each sample normalized by itself."""
    return functional.instance_norm(input, weight=scale, bias=B, eps=epsilon)


def layer_normalization(
    X: Tensor,
    Scale: Tensor,
    B: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Any:
    """Normalized over the axes from `axis` on."""
    axis %= X.ndim
    shape = tuple(X.shape[axis:])
    if outputs == 1 and tuple(Scale.shape) == shape and (B is None or tuple(B.shape) == shape):
        return functional.layer_norm(X, shape, Scale, B, epsilon)
    wide = X.to(DTYPES[stash_type])
    axes = list(range(axis, X.ndim))
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)
    Y = ((wide - mean) * inverse).to(X.dtype) * Scale
    return (Y if B is None else Y + B), mean, inverse


def group_normalization(
    X: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Groups of channels normalized, each channel scaled."""
    return functional.group_norm(X, num_groups, scale, bias, epsilon)


def group_normalization_18(
    X: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """GroupNormalization of version 18, with one scale a group."""
    each = X.shape[1] // num_groups
    return functional.group_norm(
        X, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon
    )


def rms_normalization(
    X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """X / sqrt(mean(X^2) + epsilon) scale, over the axes from `axis` on."""
    axes = list(range(axis % X.ndim, X.ndim))
    wide = X.to(DTYPES[stash_type])
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(X.dtype) * scale


def simplified_layer_normalization(
    X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """What onnxruntime called RMSNormalization before ONNX had it."""
    return rms_normalization(X, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)


def mean_variance_normalization(X: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """(X - mean) / (standard deviation + 1e-9)."""
    deviation = X.std(axes, correction=0, keepdim=True)
    return (X - X.mean(axes, keepdim=True)) / (deviation + 1e-9)


def lp_normalization(input: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divided by the norm along an axis; 0 where that is 0."""
    norm = torch.linalg.vector_norm(input, ord=p, dim=axis, keepdim=True)
    return torch.where(norm == 0, 0, input / norm).to(input.dtype)


def local_response_normalization(
    X: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """X / (bias + alpha / size sum of squares over `size` channels)^beta."""
    square = X.square().unsqueeze(1)
    before, after = (size - 1) // 2, size // 2
    pads = [0, 0] * (X.ndim - 2) + [before, after]
    summed = functional.pad(square, pads).unfold(2, size, 1).sum(-1).squeeze(1)
    return X / (bias + alpha / size * summed) ** beta


def softmax(input: Tensor, *, axis: int = -1) -> Tensor:
    """exp(x) over its sum along an axis."""
    return functional.softmax(input, axis)


def _over_rest(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As before version 13: over all axes from `axis` on together."""

    def run(input: Tensor, *, axis: int = 1) -> Tensor:
        axis %= input.ndim
        if axis == input.ndim - 1:
            return function(input, axis=-1)
        return function(input.flatten(axis), axis=-1).reshape(input.shape)

    return run


def log_softmax(input: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of softmax."""
    return functional.log_softmax(input, axis)


def hardmax(input: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest value along an axis, 0 elsewhere."""
    first = input.argmax(axis, keepdim=True)
    return torch.zeros_like(input).scatter(axis, first, 1)


softmax_1, softmax_13 = _over_rest(softmax), softmax
log_softmax_1, log_softmax_13 = _over_rest(log_softmax), log_softmax
hardmax_1, hardmax_13 = _over_rest(hardmax), hardmax


def dropout(
    data: Tensor,
    ratio: Tensor | float = 0.5,
    training_mode: Tensor | None = None,
    *,
    seed: int | None = None,
    outputs: int = 1,
) -> Any:
    """The input as it is, but where the graph asks for training."""
    mask = None
    if training_mode is not None and bool(training_mode) and float(ratio) > 0:
        generator = torch.Generator(data.device)
        if seed is not None:
            generator.manual_seed(int(seed))
        drawn = torch.rand(data.shape, generator=generator, device=data.device)
        mask = drawn >= float(ratio)
        data = torch.where(mask, data / (1 - float(ratio)), 0).to(data.dtype)
    if outputs == 1:
        return data
    return data, (torch.ones_like(data, dtype=torch.bool) if mask is None else mask)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": {18: group_normalization_18, 21: group_normalization},
    "Hardmax": {1: hardmax_1, 13: hardmax_13},
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": {1: log_softmax_1, 13: log_softmax_13},
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "SimplifiedLayerNormalization": simplified_layer_normalization,
    "Softmax": {1: softmax_1, 13: softmax_13},
}
