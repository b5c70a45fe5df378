"""Operators that change the shape, or read it: nothing is computed of the elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from packlight.graph.torch.values import Ints, Tensor, ints, shape_tensor, whole


def constant(
    *,
    value: Any = None,
    sparse_value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Any:
    """A value given as an attribute, where it is not read as a constant of the graph."""
    if sparse_value is not None:
        raise NotImplementedError("sparse constants are made dense when a file is loaded")
    for numbers, dtype in (
        (value_float, torch.float32),
        (value_floats, torch.float32),
        (value_int, torch.int64),
        (value_ints, torch.int64),
    ):
        if numbers is not None:
            return torch.tensor(numbers, dtype=dtype)
    for text in (value_string, value_strings):
        if text is not None:
            return np.asarray(text, dtype=object)
    return value


def identity(input: Any) -> Any:
    """The same."""
    return input


def shape(data: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes, int64 [rank], on the CPU."""
    return shape_tensor(list(data.shape)[slice(start, end)])


def size(data: Any) -> Tensor:
    """The number of elements, int64 []."""
    return torch.tensor(math.prod(data.shape), dtype=torch.int64)


def reshape(data: Any, shape: Ints, *, allowzero: int = 0) -> Any:
    """The elements in another shape: 0 keeps an axis, -1 is what remains."""
    wanted = ints(shape)
    if not allowzero:
        wanted = [data.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return data.reshape(wanted)


def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis`, and the others."""
    axis = axis + input.ndim if axis < 0 else axis
    rows = math.prod(input.shape[:axis])
    return input.reshape(rows, math.prod(input.shape[axis:]))


def squeeze(data: Tensor, axes: Ints | None = None) -> Tensor:
    """Without axes of size 1: those named, or all."""
    if axes is None:
        return data.squeeze()
    for axis in ints(axes):
        if data.shape[axis] != 1:
            raise ValueError(f"axis {axis} to squeeze has size {data.shape[axis]}, not 1")
    return data.squeeze(tuple(ints(axes)))


def unsqueeze(data: Tensor, axes: Ints) -> Tensor:
    """With axes of size 1 put in where they stand in the result."""
    found = ints(axes)
    rank = data.ndim + len(found)
    for axis in sorted(axis % rank for axis in found):
        data = data.unsqueeze(axis)
    return data


def transpose(data: Any, *, perm: Sequence[int] | None = None) -> Any:
    """The axes in another order, by default reversed."""
    order = tuple(range(data.ndim))[::-1] if perm is None else perm
    return data.transpose(order) if isinstance(data, np.ndarray) else data.permute(order)


def concat(*inputs: Any, axis: int = 1) -> Any:
    """One behind the other along an axis."""
    if isinstance(inputs[0], np.ndarray):
        return np.concatenate(inputs, axis)
    return torch.cat(inputs, axis)


def split(
    input: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int,
) -> Any:
    """Pieces along an axis: of sizes `split`, or equal ones with a smaller last."""
    if split is not None:
        return tuple(torch.split(input, ints(split), axis))
    count = num_outputs or outputs
    length = input.shape[axis]
    each = -(-length // count)
    sizes = [max(0, min(each, length - each * piece)) for piece in range(count)]
    return tuple(torch.split(input, sizes, axis))


def slices(
    data: Any,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Any:
    """Ranges of some axes, with steps that may be negative."""
    begin, stop = ints(starts), ints(ends)
    along = ints(axes) if axes is not None else list(range(len(begin)))
    strides = ints(steps) if steps is not None else [1] * len(begin)
    index: list[Any] = [slice(None)] * data.ndim
    backwards = []
    for first, last, axis, step in zip(begin, stop, along, strides, strict=True):
        taken = range(*slice(first, last, step).indices(data.shape[axis]))
        if step < 0:
            # PyTorch has no negative steps: the same elements forwards, then turned round.
            taken = taken[::-1]
            backwards.append(axis)
        index[axis] = slice(taken.start, taken.stop, taken.step) if taken else slice(0, 0)
    found = data[tuple(index)]
    if not backwards:
        return found
    return (
        np.flip(found, tuple(backwards)) if isinstance(found, np.ndarray) else found.flip(backwards)
    )


def expand(input: Tensor, shape: Ints) -> Tensor:
    """Broadcast together with a shape."""
    wanted = torch.broadcast_shapes(input.shape, tuple(ints(shape)))  # type: ignore[no-untyped-call]
    return input.expand(wanted)


def tile(input: Any, repeats: Ints) -> Any:
    """Repeated along each axis."""
    if isinstance(input, np.ndarray):
        return np.tile(input, ints(repeats))
    return input.repeat(ints(repeats))


def tile_1(input: Tensor, tiles: Tensor, axis: Tensor) -> Tensor:
    """Repeated along one axis."""
    repeats = [1] * input.ndim
    repeats[whole(axis)] = whole(tiles)
    return input.repeat(repeats)


def constant_of_shape(input: Ints, *, value: Tensor | None = None) -> Any:
    """A tensor of one value, by default float 0."""
    sizes = ints(input)
    if value is None:
        return torch.zeros(sizes)
    if isinstance(value, np.ndarray):
        return np.full(sizes, value.reshape(-1)[0], dtype=object)
    return value.reshape(()).expand(sizes).clone()


def depth_to_space(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of channels laid out in space."""
    n, c, h, w = input.shape
    b = blocksize
    if mode == "CRD":
        return torch.nn.functional.pixel_shuffle(input, b)
    blocks = input.reshape(n, b, b, c // b**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks in space laid out as channels."""
    n, c, h, w = input.shape
    b = blocksize
    if mode == "CRD":
        return torch.nn.functional.pixel_unshuffle(input, b)
    blocks = input.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": {1: tile_1, 6: tile},
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
