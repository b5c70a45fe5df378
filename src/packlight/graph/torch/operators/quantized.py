"""Quantized operators, with straight-through gradients.

Where gradients are wanted, codes are held in floats: rounding then passes the gradient on,
clipping stops it. y = scale (clip(round(x / scale) + zero) - zero) so gets for its scale
round(x / scale) - x / scale within the range and the clipped code beyond: the gradient of
learned step sizes (Esser et al. 2020, equation 3), as plain calculus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from packlight.graph.torch.operators.casting import cast, round_to_float4
from packlight.graph.torch.operators.convolution import conv
from packlight.graph.torch.values import DTYPES, FLOAT4, SUB_BYTE, Tensor
from packlight.graph.walk import constant_of

_CODES = {dtype: code for code, dtype in reversed(DTYPES.items())}


class _Through(torch.autograd.Function):
    """A function whose gradient is taken to be 1."""

    @staticmethod
    def forward(context: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return gradient, None


def pass_through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), with the gradient of x."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Through.apply(x, function)  # type: ignore[no-untyped-call]
        return result
    return function(x)


def limits_of(code: int) -> tuple[int, int]:
    """The least and largest integer of an ONNX element type."""
    if code in SUB_BYTE:
        return SUB_BYTE[code]
    info = torch.iinfo(DTYPES[code])
    return info.min, info.max


def type_of(value: ir.Value | None, tensor: Tensor | None, default: int) -> int:
    """The element type that the graph gives a value, which its tensor may hold in a wider one."""
    constant = constant_of(value)
    if constant is not None:
        return int(constant.dtype)
    if value is not None and value.dtype is not None:
        return int(value.dtype)
    return default if tensor is None else _CODES[tensor.dtype]


def spread(values: Tensor, like: Tensor, axis: int, block_size: int) -> Tensor:
    """Scales or zero points in a shape that broadcasts over `like`."""
    if block_size:
        return values.repeat_interleave(block_size, axis).narrow(axis, 0, like.shape[axis])
    if values.ndim != 1 or (values.numel() == 1 and like.ndim == 0):
        return values if values.ndim != 1 else values.reshape(())
    form = [1] * like.ndim
    form[axis] = values.numel()
    return values.reshape(form)


def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    node: ir.Node,
) -> Tensor:
    """clip(round(x / scale) + zero point), per tensor, along an axis, or in blocks of it."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    code = output_dtype or type_of(given, y_zero_point, 2)
    learned = torch.is_grad_enabled() and (x.requires_grad or y_scale.requires_grad)
    wide = DTYPES[precision] if precision else torch.promote_types(x.dtype, y_scale.dtype)
    if not wide.is_floating_point or wide.itemsize < 2:
        wide = torch.float32
    axis = axis % x.ndim if x.ndim else 0
    scale = spread(y_scale.to(wide), x, axis, block_size)
    scaled = x.to(wide) / scale
    dtype = DTYPES[code]
    if dtype.is_floating_point:
        largest = 6.0 if code == FLOAT4 else torch.finfo(dtype).max
        if code == FLOAT4:
            rounded = partial(_rounded4, largest)
        else:
            rounded = partial(_rounded8, code, saturate)
        if not learned:
            return scaled_cast(scaled, code, saturate)
        return pass_through(rounded, scaled.clamp(-largest, largest) if saturate else scaled)
    codes = pass_through(torch.round, scaled)
    if y_zero_point is not None:
        codes = codes + spread(y_zero_point.to(wide), x, axis, block_size)
    low, high = limits_of(code)
    codes = codes.clamp(low, high)
    return codes if learned else codes.to(dtype)


def scaled_cast(x: Tensor, code: int, saturate: int) -> Tensor:
    """The nearest value of a floating-point type."""
    found: Tensor = cast(x, to=code, saturate=saturate)
    return found


def _rounded4(largest: float, x: Tensor) -> Tensor:
    return round_to_float4(x)


def _rounded8(code: int, saturate: int, x: Tensor) -> Tensor:
    return scaled_cast(x, code, saturate).to(x.dtype)


def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero point) scale."""
    wide = x_scale.dtype if x_scale.dtype.itemsize > 1 else torch.float32
    axis = axis % x.ndim if x.ndim else 0
    numbers = x.to(wide)
    if x_zero_point is not None:
        numbers = numbers - spread(x_zero_point.to(wide), x, axis, block_size)
    found = numbers * spread(x_scale.to(wide), x, axis, block_size)
    return found.to(DTYPES[output_dtype]) if output_dtype else found


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 8 bits, with scale and zero point from the range of x, which count as given."""
    with torch.no_grad():
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, 1, scale).to(x.dtype)
        zero = torch.round((-low / scale).clamp(0, 255))
    codes = (pass_through(torch.round, x / scale) + zero).clamp(0, 255)
    if not (torch.is_grad_enabled() and x.requires_grad):
        codes = codes.to(torch.uint8)
    return codes, scale, zero.to(torch.uint8)


def _summing_type(count: int, *tensors: Tensor) -> torch.dtype:
    """A float type in which sums of `count` products of bytes are exact (or gradients flow)."""
    if any(tensor.requires_grad for tensor in tensors) or count * 255 * 255 < 1 << 24:
        return torch.float32
    return torch.float64


def _whole(sums: Tensor) -> Tensor:
    return sums if torch.is_grad_enabled() and sums.requires_grad else sums.to(torch.int32)


def _centred(x: Tensor, zero_point: Tensor | None, dtype: torch.dtype, axis: int) -> Tensor:
    """X minus its zero point, one for all or one for each place of an axis."""
    wide = x.to(dtype)
    if zero_point is None:
        return wide
    zero = zero_point.to(dtype)
    if zero.ndim == 1:
        form = [1] * x.ndim
        form[axis] = zero.numel()
        zero = zero.reshape(form)
    return wide - zero


def mat_mul_integer(
    A: Tensor,
    B: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
) -> Tensor:
    """(A - zero point) (B - zero point), int32."""
    dtype = _summing_type(A.shape[-1], A, B)
    a = _centred(A, a_zero_point, dtype, max(A.ndim - 2, 0))
    return _whole(a @ _centred(B, b_zero_point, dtype, B.ndim - 1))


def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    **windows: Any,
) -> Tensor:
    """The convolution of integers without their zero points, int32."""
    dtype = _summing_type(w[0].numel(), x, w)
    weight = _centred(w, w_zero_point, dtype, 0)
    return _whole(conv(_centred(x, x_zero_point, dtype, 1), weight, **windows))


def _requantized(sums: Tensor, factor: Tensor, zero_point: Tensor, code: int) -> Tensor:
    low, high = limits_of(code)
    codes = pass_through(torch.round, sums * factor) + zero_point.to(sums.dtype)
    codes = codes.clamp(low, high)
    learned = torch.is_grad_enabled() and codes.requires_grad
    return codes if learned else codes.to(DTYPES[code])


def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    B: Tensor | None = None,
    *,
    node: ir.Node,
    **windows: Any,
) -> Tensor:
    """A convolution of codes, its sums scaled and rounded to codes again; B: int32."""
    dtype = _summing_type(w[0].numel(), x, w)
    weight = _centred(w, w_zero_point, dtype, 0)
    bias = None if B is None else B.to(dtype)
    sums = conv(_centred(x, x_zero_point, dtype, 1), weight, bias, **windows)
    factor = x_scale * w_scale / y_scale
    if factor.ndim == 1:
        factor = factor.reshape(-1, *[1] * (x.ndim - 2))
    return _requantized(sums, factor, y_zero_point, type_of(node.inputs[7], y_zero_point, 2))


def q_linear_mat_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    node: ir.Node,
) -> Tensor:
    """A product of codes, its sums scaled and rounded to codes again."""
    dtype = _summing_type(a.shape[-1], a, b)
    left = _centred(a, a_zero_point, dtype, max(a.ndim - 2, 0))
    sums = left @ _centred(b, b_zero_point, dtype, b.ndim - 1)
    rows = a_scale.unsqueeze(-1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    factor = (rows * b_scale / y_scale).to(torch.float32)
    return _requantized(sums, factor, y_zero_point, type_of(node.inputs[7], y_zero_point, 2))


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": mat_mul_integer,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": q_linear_mat_mul,
    "QuantizeLinear": quantize_linear,
}
