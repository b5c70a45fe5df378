"""Convolutions: plain, transposed, deformable, and columns put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch.nn import functional

from packlight.graph.torch.operators.windows import find_windows, pad_space
from packlight.graph.torch.values import Tensor

Sizes = tuple[int, ...]

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


def conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """X [n, in, *space] convolved with W [out, in / group, *kernel], plus B [out]."""
    run = _CONV[W.ndim - 3]
    if auto_pad == "NOTSET":
        even = _even_pads(pads, W.ndim - 2)
        if even is not None:
            return run(X, W, B, strides or 1, even, dilations or 1, group)
    windows = find_windows(
        tuple(X.shape[2:]), tuple(W.shape[2:]), strides, dilations, pads, auto_pad
    )
    padding = windows.begin
    if padding != windows.end or min(padding) < 0:
        X, padding = pad_space(X, windows.begin, windows.end), (0,) * len(padding)
    return run(X, W, B, windows.strides, padding, windows.dilations, group)


@cache
def _even_pads(pads: Sizes | None, rank: int) -> Sizes | None:
    """Pads that are the same at both ends, which PyTorch takes as they are; else None."""
    if pads is None:
        return (0,) * rank
    return pads[:rank] if pads[:rank] == pads[rank:] and min(pads) >= 0 else None


def conv_transpose(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The transpose of a convolution: X [n, in, *space], W [in, out / group, *kernel]."""
    rank = W.ndim - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    extra = output_padding or (0,) * rank
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, W.shape[2:], strict=True)]
    full = [s * (size - 1) + r for s, size, r in zip(strides, X.shape[2:], reach, strict=True)]
    begin, end = list((pads or (0,) * 2 * rank)[:rank]), list((pads or (0,) * 2 * rank)[rank:])
    if output_shape or auto_pad.startswith("SAME"):
        wanted = (
            output_shape[-rank:]
            if output_shape
            else [size * s for size, s in zip(X.shape[2:], strides, strict=True)]
        )
        for i in range(rank):
            total = full[i] + extra[i] - wanted[i]
            small = total // 2
            begin[i], end[i] = (
                (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)
            )
    run = _CONV_TRANSPOSE[rank - 1]
    even = begin == end and min(begin) >= 0
    if even and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return run(X, W, B, strides, tuple(begin), extra, group, dilations)
    Y = run(X, W, None, strides, 0, 0, group, dilations)
    Y = pad_space(
        Y, tuple(-b for b in begin), tuple(x - e for x, e in zip(extra, end, strict=True))
    )
    return Y if B is None else Y + B.reshape(-1, *[1] * rank)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
