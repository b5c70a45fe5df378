"""Casts between element types, with those that PyTorch lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from packlight.graph.torch.values import (
    BOOL,
    DTYPES,
    FLOAT4,
    FLOAT8_E8M0,
    STRING,
    SUB_BYTE,
    Tensor,
    array_from,
    tensor_from_array,
)

_FLOAT8 = frozenset({17, 18, 19, 20})
_LARGEST4 = 6.0


def cast(
    input: Any,
    *,
    to: int,
    saturate: int = 1,
    round_mode: str = "up",
) -> Any:
    """The values in element type `to`; floats become integers towards zero."""
    if isinstance(input, np.ndarray):
        return _parse(input, to)
    if to == STRING:
        return _print(input)
    if to == BOOL:
        return input != 0
    if to in SUB_BYTE:
        return _wrap(input, to)
    if to == FLOAT4:
        return round_to_float4(input.to(torch.float32))
    if to == FLOAT8_E8M0:
        return _to_power_of_two(input.to(torch.float32), round_mode, saturate)
    dtype = DTYPES[to]
    if to in _FLOAT8 and input.dtype != dtype:
        wide = input.to(torch.float32)
        largest = torch.finfo(dtype).max
        if saturate:
            wide = wide.clamp(-largest, largest)
        else:  # what lies beyond is infinite where the type has that, else not a number
            beyond = float("inf") if dtype == torch.float8_e5m2 else float("nan")
            wide = torch.where(
                wide.abs() > largest, torch.copysign(torch.full_like(wide, beyond), wide), wide
            )
        return wide.to(dtype)
    if input.is_complex() and not dtype.is_complex:
        input = input.real
    return input.to(dtype)


# Version 1 names the type in words.
def cast_1(input: Any, *, to: str) -> Any:
    """Cast to a type named as TensorProto names it."""
    return cast(input, to=int(ir.DataType[to]))


def cast_like(
    input: Any,
    target_type: Any,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    node: ir.Node,
) -> Any:
    """The values in the type of another tensor."""
    given = node.inputs[1]
    if given is not None and given.dtype is not None:
        to = int(given.dtype)
    elif isinstance(target_type, np.ndarray):
        to = STRING
    else:
        to = _CODES[target_type.dtype]
    return cast(input, to=to, saturate=saturate, round_mode=round_mode)


_CODES = {dtype: code for code, dtype in reversed(DTYPES.items())}


def bit_cast(input: Tensor, *, to: int, node: ir.Node) -> Tensor:
    """The same bits read as another type of the same width."""
    given = node.inputs[0]
    if to in SUB_BYTE and given is not None and int(given.dtype or 0) in SUB_BYTE:
        return _wrap(input, to)
    return input.contiguous().view(DTYPES[to])


def round_to_float4(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with either sign, ties to the even code."""
    size = x.abs().clamp(max=_LARGEST4)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, x)


def _wrap(x: Tensor, to: int) -> Tensor:
    """Integers narrower than a byte keep their lowest bits."""
    low, high = SUB_BYTE[to]
    whole = x.to(torch.int64)
    return ((whole - low) % (high - low + 1) + low).to(DTYPES[to])


def _to_power_of_two(x: Tensor, round_mode: str, saturate: int) -> Tensor:
    """float8e8m0: an exponent alone, 0 for 2^-127, 255 for NaN."""
    size = x.abs()
    mantissa, exponent = torch.frexp(size)  # size = mantissa 2^exponent, mantissa in [0.5, 1)
    exponent = exponent - 1 + 127
    if round_mode == "up":
        exponent = exponent + (mantissa > 0.5)
    elif round_mode == "nearest":
        exponent = exponent + (mantissa >= 0.75)
    beyond = 254 if saturate else 255
    exponent = torch.where(exponent > 254, beyond, exponent.clamp(min=0))
    exponent = torch.where(size == 0, 0, exponent)
    exponent = torch.where(torch.isinf(x), beyond, exponent)
    exponent = torch.where(torch.isnan(x), 255, exponent)
    return exponent.to(torch.uint8).view(torch.float8_e8m0fnu)


def _parse(text: Any, to: int) -> Any:
    if to == STRING:
        return text
    values = np.asarray([float(one) for one in text.flat]).reshape(text.shape)
    if DTYPES[to].is_floating_point:
        return cast(torch.from_numpy(values), to=to)
    return tensor_from_array(values.astype(ir.DataType(to).numpy()), to)


def _print(x: Tensor) -> Any:
    """Numbers as text, floats with as many digits as tell them apart."""
    array = array_from(x, _CODES[x.dtype])
    text = [str(one) if array.dtype.kind in "iub" else _shortest(one) for one in array.flat]
    return np.asarray(text, dtype=object).reshape(array.shape)


def _shortest(number: Any) -> str:
    if np.isnan(number):
        return "NaN"
    if np.isinf(number):
        return "INF" if number > 0 else "-INF"
    return str(number)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "BitCast": bit_cast,
    "Cast": {1: cast_1, 6: cast},
    "CastLike": cast_like,
}
