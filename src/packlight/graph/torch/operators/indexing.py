"""Operators that pick elements, put them elsewhere, or look for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from packlight.graph.torch.values import DTYPES, Ints, Tensor, ints, whole


def gather(data: Any, indices: Tensor, *, axis: int = 0) -> Any:
    """Entries of `data` along an axis: [..., *indices, ...]; negative indices from the end."""
    if isinstance(data, np.ndarray):
        return np.take(data, indices.cpu().numpy(), axis)
    if indices.ndim == 0 and indices.device.type == "cpu":
        return data.select(axis, int(indices))
    axis %= data.ndim
    index = _from_start(indices.to(data.device), data.shape[axis]).long()
    if axis == 0 and data.ndim == 2 and data.is_floating_point():
        return functional.embedding(index, data)
    found = data.index_select(axis, index.reshape(-1))
    return found.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _from_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """For each place of `indices`, the entry with that index along an axis."""
    index = _from_start(indices, data.shape[axis])
    window = tuple(
        slice(None) if i == axis % data.ndim else slice(n) for i, n in enumerate(indices.shape)
    )
    return data[window].gather(axis, index.long())


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Entries of `data` at whole positions, the last axis of `indices`."""
    depth = indices.shape[-1]
    batch = indices.shape[:batch_dims]
    index: list[Tensor] = []
    for axis, size in enumerate(batch):
        grid = torch.arange(size, device=data.device)
        index.append(grid.reshape(-1, *[1] * (indices.ndim - 2 - axis)))
    index += [
        _from_start(indices[..., place], data.shape[batch_dims + place]).long()
        for place in range(depth)
    ]
    return data[tuple(index)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """`data` with `updates` put where `indices` says along an axis."""
    index = _from_start(indices, data.shape[axis]).long()
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """`data` with `updates` put at whole positions, the last axis of `indices`."""
    depth = indices.shape[-1]
    rest = data.shape[depth:]
    flat = data.reshape(-1, *rest)
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis in range(depth):
        place = place * data.shape[axis] + _from_start(indices[..., axis], data.shape[axis])
    place = place.reshape(-1)
    values = updates.reshape(-1, *rest)
    if reduction == "none":
        return flat.index_put((place,), values).reshape(data.shape)
    wide = place.reshape(-1, *[1] * len(rest)).expand(values.shape)
    result = flat.scatter_reduce(0, wide, values, _REDUCTIONS[reduction])
    return result.reshape(data.shape)


def compress(input: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The entries along an axis, or of all elements, for which the condition holds."""
    source = input.reshape(-1) if axis is None else input
    along = 0 if axis is None else axis
    chosen = condition.nonzero().reshape(-1).to(source.device)
    return source.index_select(along, chosen)


def non_zero(X: Tensor) -> Tensor:
    """Positions of what is not 0, [rank, count]."""
    return X.nonzero().t()


def top_k(
    X: Tensor,
    K: Tensor | None = None,
    *,
    axis: int = -1,
    k: int = 0,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Tensor, Tensor]:
    """The K largest (or least) along an axis, and where they stand; of equals the first first."""
    count = k if K is None else whole(K)
    order = X.argsort(dim=axis, descending=bool(largest), stable=True)
    places = order.narrow(axis, 0, count)
    return X.gather(axis, places), places


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """Along a new axis `values[1]` at each index, `values[0]` elsewhere (and for those beyond)."""
    count = whole(depth)
    index = indices.long()
    index = torch.where(index < 0, index + count, index)
    here = torch.arange(count, device=indices.device) == index.unsqueeze(-1)
    chosen = torch.where(here, values[1], values[0])
    return chosen.movedim(-1, axis if axis >= 0 else axis + chosen.ndim)


def trilu(input: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The part above (below) diagonal k, zeros elsewhere."""
    diagonal = 0 if k is None else whole(k)
    return input.triu(diagonal) if upper else input.tril(diagonal)


def reverse_sequence(
    input: Tensor,
    sequence_lens: Tensor,
    *,
    batch_axis: int = 1,
    time_axis: int = 0,
) -> Tensor:
    """Each sequence of a batch backwards, as far as it is long."""
    return reverse_times(input.movedim((time_axis, batch_axis), (0, 1)), sequence_lens).movedim(
        (0, 1), (time_axis, batch_axis)
    )


def reverse_times(x: Tensor, lengths: Tensor) -> Tensor:
    """X [time, batch, ...] with the first `lengths` times of each sequence backwards."""
    time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    length = lengths.to(x.device).long().unsqueeze(0)
    place = torch.where(time < length, length - 1 - time, time)
    return x.gather(0, place.reshape(*place.shape, *[1] * (x.ndim - 2)).expand(x.shape))


def pad(
    data: Tensor,
    pads: Ints | None = None,
    constant_value: Tensor | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
    paddings: Ints | None = None,
) -> Tensor:
    """Elements put around `data` (negative: cut), constant, mirrored, repeated or wrapped."""
    amounts = ints(pads if pads is not None else paddings)  # type: ignore[arg-type]
    along = [axis % data.ndim for axis in ints(axes)] if axes is not None else range(data.ndim)
    half = len(amounts) // 2
    begin, end = [0] * data.ndim, [0] * data.ndim
    for place, axis in enumerate(along):
        begin[axis], end[axis] = amounts[place], amounts[half + place]
    if mode == "constant":
        pairs = [one for axis in reversed(range(data.ndim)) for one in (begin[axis], end[axis])]
        while len(pairs) > 2 and pairs[-2:] == [0, 0]:
            pairs = pairs[:-2]
        fill: Any = value if constant_value is None else constant_value.item()
        return functional.pad(data, pairs, value=fill)
    for axis, (before, after) in enumerate(zip(begin, end, strict=True)):
        if before or after:
            chosen = _padded_places(data.shape[axis], before, after, mode)
            data = data.index_select(axis, chosen.to(data.device))
    return data


def _padded_places(size: int, before: int, after: int, mode: str) -> Tensor:
    """Which element of an axis stands at each place of the padded one."""
    place = torch.arange(-before, size + after)
    if mode == "edge":
        return place.clamp(0, size - 1)
    if mode == "wrap":
        return place % size
    if size == 1:
        return torch.zeros_like(place)
    place = place % (2 * size - 2)
    return torch.where(place < size, place, 2 * size - 2 - place)


def unique(
    X: Tensor,
    *,
    axis: int | None = None,
    sorted: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The different entries, where each was first, which each one is, and how often."""
    source = X.reshape(-1) if axis is None else X
    along = 0 if axis is None else axis
    values, inverse, counts = torch.unique(
        source, sorted=True, return_inverse=True, return_counts=True, dim=along
    )
    size = source.shape[along]
    position = torch.arange(size, device=X.device)
    first = torch.full((len(counts),), size, device=X.device, dtype=torch.int64)
    first = first.scatter_reduce(0, inverse, position, "amin")
    if not sorted:
        order = first.argsort()
        values, first, counts = values.index_select(along, order), first[order], counts[order]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=X.device)
        inverse = back[inverse]
    return values, first, inverse, counts


def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on diagonal k of a matrix in the shape of the input."""
    wanted = input.dtype if dtype is None else DTYPES[dtype]
    ones = torch.ones(input.shape, device=input.device)
    return (ones.triu(k) - ones.triu(k + 1)).to(wanted)


def center_crop_pad(
    input_data: Tensor, shape: Ints, *, axes: tuple[int, ...] | None = None
) -> Tensor:
    """Cut or padded with zeros around the centre to a shape."""
    wanted = ints(shape)
    along = range(input_data.ndim) if axes is None else axes
    for axis, size in zip(along, wanted, strict=True):
        have = input_data.shape[axis]
        if have > size:
            input_data = input_data.narrow(axis, (have - size) // 2, size)
        elif have < size:
            pads = [0] * (2 * input_data.ndim)
            position = input_data.ndim - 1 - axis % input_data.ndim
            before = (size - have) // 2
            pads[2 * position], pads[2 * position + 1] = before, size - have - before
            input_data = functional.pad(input_data, pads)
    return input_data


def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache [batch, ...] with `update` written along an axis, from where each batch says."""
    axis %= past_cache.ndim
    size, count = past_cache.shape[axis], update.shape[axis]
    start = torch.zeros(past_cache.shape[0], dtype=torch.int64, device=past_cache.device)
    if write_indices is not None:
        start = write_indices.to(past_cache.device).long()
    place = start.unsqueeze(1) + torch.arange(count, device=past_cache.device)
    if mode == "circular":
        place = place % size
    form = [1] * past_cache.ndim
    form[0], form[axis] = place.shape
    return past_cache.scatter(axis, place.reshape(form).expand(update.shape), update)


def array_feature_extractor(X: Tensor, Y: Tensor) -> Tensor:
    """Entries of the last axis."""
    return X.reshape(-1, X.shape[-1]).index_select(-1, Y.reshape(-1).to(X.device))


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "CenterCropPad": center_crop_pad,
    "Compress": compress,
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "Pad": pad,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "TopK": top_k,
    "Trilu": trilu,
    "Unique": unique,
}

MACHINE_LEARNING: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "ArrayFeatureExtractor": array_feature_extractor,
}
