"""Elementwise operators: arithmetic, comparison, logic, and activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from packlight.graph.torch.values import Tensor


def _aligned(A: Tensor, B: Tensor, axis: int | None) -> Tensor:
    """B as version 1 to 6 broadcast it: its axes beginning at `axis` of A, by default the last."""
    if axis is None:
        return B
    axis %= A.ndim
    return B.reshape(*B.shape, *[1] * (A.ndim - axis - B.ndim))


def _old(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator of two inputs as it was before version 7."""

    def run(A: Tensor, B: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
        return function(A, _aligned(A, B, axis) if broadcast else B)

    return run


def div(A: Tensor, B: Tensor) -> Tensor:
    """Quotient; of integers the whole part, towards zero."""
    if A.is_floating_point() or B.is_floating_point():
        return A / B
    return torch.div(A, B, rounding_mode="trunc")


def power(X: Tensor, Y: Tensor) -> Tensor:
    """X to the power of Y, in the type of X."""
    result = torch.pow(X, Y)
    return result if result.dtype == X.dtype else result.to(X.dtype)


def mod(A: Tensor, B: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder, with the sign of the divisor, or with `fmod` that of the dividend."""
    return torch.fmod(A, B) if fmod else torch.remainder(A, B)


def bit_shift(X: Tensor, Y: Tensor, *, direction: str) -> Tensor:
    """Bits moved to the left or right; beyond the width nothing is left."""
    if direction == "LEFT":
        return torch.bitwise_left_shift(X, Y)
    return torch.bitwise_right_shift(X, Y)


def equal(A: Any, B: Any) -> Tensor:
    """Equality, of strings too."""
    if isinstance(A, np.ndarray):
        return torch.from_numpy(np.asarray(A == B, dtype=bool))
    return torch.eq(A, B)


def where(condition: Tensor, X: Any, Y: Any) -> Any:
    """X where the condition holds, else Y."""
    if isinstance(X, np.ndarray):
        return np.where(condition.numpy(), X, Y)
    return torch.where(condition, X, Y)


def maximum(*data: Tensor) -> Tensor:
    """The largest of the inputs at each place."""
    return reduce(torch.maximum, data)


def minimum(*data: Tensor) -> Tensor:
    """The least of the inputs at each place."""
    return reduce(torch.minimum, data)


def total(*data: Tensor) -> Tensor:
    """The sum of the inputs."""
    return reduce(torch.add, data)


def mean(*data: Tensor) -> Tensor:
    """The mean of the inputs."""
    return reduce(torch.add, data) / len(data)


def clip(
    input: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None
) -> Tensor:
    """Values kept within bounds; the bounds are attributes before version 11."""
    if min is None and max is None:
        return input
    low, high = _number(min), _number(max)
    numbers = isinstance(low, float) and isinstance(high, float)
    if numbers and input.is_floating_point() and low <= high:  # type: ignore[operator]
        return functional.hardtanh(input, low, high)  # type: ignore[arg-type]  # faster than clamp
    return torch.clamp(input, low, high)  # type: ignore[arg-type]


def _number(bound: Tensor | float | None) -> Tensor | float | None:
    """A bound as Python's number, where reading it waits for no other device."""
    if isinstance(bound, torch.Tensor) and bound.device.type == "cpu" and not bound.requires_grad:
        return bound.item()
    return bound


def is_inf(X: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether values are infinite."""
    X = X if X.element_size() > 1 else X.float()
    if detect_negative and detect_positive:
        return torch.isinf(X)
    if detect_negative:
        return torch.isneginf(X)
    return torch.isposinf(X) if detect_positive else torch.zeros_like(X, dtype=torch.bool)


def is_nan(X: Tensor) -> Tensor:
    """Whether values are not a number."""
    return torch.isnan(X if X.element_size() > 1 else X.float())


def leaky_relu(X: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X where positive, else alpha X."""
    return functional.leaky_relu(X, alpha)


def p_relu(X: Tensor, slope: Tensor) -> Tensor:
    """X where positive, else slope X; slope: a number, one a channel, or any that broadcasts."""
    per_channel = X.ndim > 1 and slope.numel() == X.shape[1] and slope.ndim == X.ndim - 1
    if slope.numel() == 1 or (per_channel and slope.shape[0] == X.shape[1]):
        return functional.prelu(X, slope.reshape(-1))
    return torch.where(X < 0, X * slope, X)


def p_relu_1(X: Tensor, slope: Tensor) -> Tensor:
    """PRelu whose slope is [channels], whatever the rank of X."""
    return functional.prelu(X, slope.reshape(-1))


def elu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where positive, else alpha (exp(X) - 1)."""
    return functional.elu(X, alpha)


def celu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(0, X) + min(0, alpha (exp(X / alpha) - 1))."""
    return functional.celu(X, alpha)


def selu(
    X: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """Gamma times elu."""
    return gamma * functional.elu(X, alpha)


def selu_1(X: Tensor, *, alpha: float = 1.6732, gamma: float = 1.0507) -> Tensor:
    """Selu with the rounded constants of version 1."""
    return gamma * functional.elu(X, alpha)


def gelu(X: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution function of X."""
    return functional.gelu(X, approximate=approximate)


def hard_sigmoid(X: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha X + beta within 0 and 1."""
    return torch.clamp(alpha * X + beta, 0, 1)


def shrink(input: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """Values beyond lambd moved towards zero by `bias`, the others 0."""
    below, above = input < -lambd, input > lambd
    moved = torch.where(below, input + bias, torch.where(above, input - bias, 0))
    return moved.to(input.dtype)


def softplus(X: Tensor) -> Tensor:
    """log(1 + exp(X))."""
    return functional.softplus(X)


def swish(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X sigmoid(alpha X)."""
    return functional.silu(X) if alpha == 1.0 else X * torch.sigmoid(alpha * X)


def thresholded_relu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where above alpha, else 0."""
    return torch.where(alpha < X, X, 0).to(X.dtype)


def affine(X: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """Alpha X + beta."""
    return alpha * X + beta


def scaled_tanh(X: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Alpha tanh(beta X)."""
    return alpha * torch.tanh(beta * X)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": {1: _old(torch.add), 7: torch.add},
    "Affine": affine,
    "And": {1: _old(torch.logical_and), 7: torch.logical_and},
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitShift": bit_shift,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Celu": celu,
    "Clip": clip,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Div": {1: _old(div), 7: div},
    "Elu": elu,
    "Equal": {1: _old(equal), 7: equal},
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": gelu,
    "Greater": {1: _old(torch.gt), 7: torch.gt},
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": functional.hardswish,
    "IsInf": is_inf,
    "IsNaN": is_nan,
    "LeakyRelu": leaky_relu,
    "Less": {1: _old(torch.lt), 7: torch.lt},
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Max": maximum,
    "Mean": mean,
    "Min": minimum,
    "Mish": functional.mish,
    "Mod": mod,
    "Mul": {1: _old(torch.mul), 7: torch.mul},
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": {1: _old(torch.logical_or), 7: torch.logical_or},
    "PRelu": {1: p_relu_1, 7: p_relu},
    "Pow": {1: _old(power), 7: power},
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "ScaledTanh": scaled_tanh,
    "Selu": {1: selu_1, 6: selu},
    "Shrink": shrink,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": {1: _old(torch.sub), 7: torch.sub},
    "Sum": total,
    "Swish": swish,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "ThresholdedRelu": thresholded_relu,
    "Where": where,
    "Xor": {1: _old(torch.logical_xor), 7: torch.logical_xor},
}
