"""Quantizers whose scales are learned, with gradients that pass through the rounding.

Of y = s (clip(round(x / s) + z, low, high) - z) the gradients are (Esser et al. 2020, "Learned
step size quantization", equations 3 and 5)

    dy/dx = 1 within the codes' range, 0 beyond
    dy/ds = round(x / s) - x / s within the range, low - z or high - z beyond

which is what plain calculus gives where round' is taken to be 1 and clip's gradient is its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from packlight.graph.torch.operators.quantized import pass_through
from packlight.graph.torch.values import Tensor


class _Scaled(torch.autograd.Function):
    """The value itself, with its gradient times a factor."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return gradient * context.factor, None


def scale_of(logarithm: Tensor, start: Tensor, factor: float) -> Tensor:
    """Give start * exp(logarithm), a scale that stays above 0, its gradient times `factor`.

    In the logarithm a step is a share of the scale, whatever its size (Jain et al. 2020,
    "Trained quantization thresholds").
    """
    found: Tensor = _Scaled.apply(start * logarithm.exp(), factor)  # type: ignore[no-untyped-call]
    return found


def gradient_factor(count: int, largest: int) -> float:
    """1 / sqrt(n q_max) for a scale of n values with codes up to q_max (Esser et al. 2020, 2.2).

    AdamW divides by the gradient's own size; the factor says how much of the norm to which all
    gradients together are clipped falls to scales.
    """
    return 1.0 / math.sqrt(max(count, 1) * max(largest, 1))


def codes_of(
    latent: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    *,
    zero: Tensor | float = 0.0,
) -> Tensor:
    """round(clip(latent / scale, low - zero, high - zero)) + zero, whole numbers in floats.

    latent: any shape, over which scale and zero broadcast; zero is whole.
    """
    inside = (latent / scale).clamp(*_ends(latent, low - zero, high - zero))
    return pass_through(torch.round, inside) + zero


def _ends(like: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both ends as tensors of one kind: clamp takes numbers or tensors, not one of each."""
    one, other = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (low, high))
    return one, other


def with_value(codes: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `codes`."""
    return codes + (value - codes).detach()
