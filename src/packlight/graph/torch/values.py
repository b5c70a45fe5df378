"""How ONNX values are held in PyTorch: element types, tensors both ways, shape arithmetic.

tensor                 torch.Tensor; int4, uint4, int2 and uint2 in 8-bit integers, float4
                       in float32, which holds each of their values
tensor of strings      numpy.ndarray of objects
sequence               list
optional without value None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

Tensor: TypeAlias = torch.Tensor
Ints: TypeAlias = "Sequence[int] | Tensor"

# Element types by ONNX number; several that PyTorch lacks are held in wider ones.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    21: torch.uint8,
    22: torch.int8,
    23: torch.float32,
    24: torch.float8_e8m0fnu,
    25: torch.uint8,
    26: torch.int8,
}

STRING, BOOL, FLOAT4, FLOAT8_E8M0 = 8, 9, 23, 24

# Least and largest value of the integers narrower than a byte.
SUB_BYTE: dict[int, tuple[int, int]] = {21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1)}

# Types that NumPy knows through ml_dtypes only: their bits, and what carries these.
_BITS: dict[torch.dtype, Any] = {
    torch.bfloat16: np.int16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
    torch.float8_e8m0fnu: np.uint8,
}

HOST_ELEMENTS = 64
"""Integer constants of at most so many elements are shapes, axes and indices: they stay on the
CPU, so that reading them never waits for another device."""


def tensor_from(source: ir.TensorProtocol) -> Any:
    """The value of an ONNX tensor, with memory of its own."""
    code = int(source.dtype)
    if code == STRING:
        return np.asarray(
            [one.decode() if isinstance(one, bytes) else one for one in source.numpy().flat],
            dtype=object,
        ).reshape(tuple(source.shape.numpy()))
    return tensor_from_array(np.asarray(source.numpy()), code)


def tensor_from_array(array: NDArray[Any], code: int) -> Tensor:
    """A tensor of an array whose element type ONNX numbers `code`."""
    dtype = DTYPES[code]
    shape = array.shape
    if dtype in _BITS:
        carried = np.array(array).reshape(-1).view(_BITS[dtype])
        return torch.from_numpy(carried).view(dtype).reshape(shape)
    if code in SUB_BYTE or code == FLOAT4:
        array = array.astype({torch.int8: np.int8, torch.uint8: np.uint8}.get(dtype, np.float32))
    return torch.from_numpy(np.array(array, order="C").reshape(-1)).reshape(shape)


def array_from(tensor: Tensor, code: int) -> NDArray[Any]:
    """An array of element type `code` (ml_dtypes' where NumPy has none) of a tensor."""
    wanted = ir.DataType(code).numpy()
    held = tensor.detach().cpu().to(DTYPES[code]).contiguous()
    if held.dtype in _BITS:
        bits = torch.int16 if held.dtype == torch.bfloat16 else torch.uint8
        carried: NDArray[Any] = held.reshape(-1).view(bits).numpy()
        return carried.view(wanted).reshape(tuple(held.shape))
    array: NDArray[Any] = held.numpy()
    return array.astype(wanted) if array.dtype != wanted else array


def is_host_constant(tensor: Any) -> bool:
    """Whether a constant is shape arithmetic (or strings), which stays where Python reads it."""
    if not isinstance(tensor, torch.Tensor):
        return True
    return tensor.dtype in (torch.int64, torch.int32) and tensor.numel() <= HOST_ELEMENTS


def ints(values: Ints) -> list[int]:
    """Integers given as an attribute or as a tensor [n] or []."""
    if isinstance(values, torch.Tensor):
        found = values.tolist()
        return found if isinstance(found, list) else [found]
    return list(values)


def whole(value: Any) -> int:
    """One integer given as a number or as a tensor of one element."""
    return int(value.item()) if isinstance(value, torch.Tensor) else int(value)


def shape_tensor(sizes: Sequence[int]) -> Tensor:
    """Sizes as ONNX has them: int64 [n], on the CPU."""
    return torch.tensor(sizes, dtype=torch.int64)
