"""Where windows lie: strides, pads and dilations of convolutions and pooling."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch.nn import functional

from packlight.graph.torch.values import Tensor

Sizes = tuple[int, ...]


class Windows(NamedTuple):
    """Of each axis in space: kernel, strides, dilations, and pads at begin and end."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    begin: Sizes
    end: Sizes


@lru_cache(maxsize=4096)
def find_windows(
    space: Sizes,
    kernel: Sizes,
    strides: Sizes | None,
    dilations: Sizes | None,
    pads: Sizes | None,
    auto_pad: str,
) -> Windows:
    """Windows over `space`, with defaults filled in and `auto_pad` worked out."""
    rank = len(kernel)
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    if auto_pad == "NOTSET" or not auto_pad:
        pads = pads or (0,) * (2 * rank)
        return Windows(kernel, strides, dilations, pads[:rank], pads[rank:])
    if auto_pad == "VALID":
        return Windows(kernel, strides, dilations, (0,) * rank, (0,) * rank)
    small, large = [], []
    for size, taps, step, spread in zip(space, kernel, strides, dilations, strict=True):
        reach = spread * (taps - 1) + 1
        total = max((-(-size // step) - 1) * step + reach - size, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return Windows(kernel, strides, dilations, tuple(begin), tuple(end))


def pad_space(X: Tensor, begin: Sizes, end: Sizes, value: float = 0.0) -> Tensor:
    """X with `value` around its last axes; negative pads cut."""
    if not any(begin) and not any(end):
        return X
    pairs = [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]
    return functional.pad(X, pairs, value=value)
