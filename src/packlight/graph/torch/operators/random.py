"""Random numbers, and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from packlight.graph.torch.values import DTYPES, Tensor


def _generator(seed: float | None, device: Any = "cpu") -> torch.Generator | None:
    if seed is None:
        return None
    generator = torch.Generator(device)
    generator.manual_seed(int(seed))
    return generator


def random_normal(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Normal numbers; the same for the same seed."""
    drawn = torch.randn(tuple(shape), generator=_generator(seed))
    return (drawn * scale + mean).to(DTYPES[dtype])


def random_normal_like(
    input: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Normal numbers in the shape of the input."""
    drawn = torch.randn(input.shape, generator=_generator(seed, input.device), device=input.device)
    return (drawn * scale + mean).to(input.dtype if dtype is None else DTYPES[dtype])


def random_uniform(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    """Uniform numbers; the same for the same seed."""
    drawn = torch.rand(tuple(shape), generator=_generator(seed))
    return (drawn * (high - low) + low).to(DTYPES[dtype])


def random_uniform_like(
    input: Tensor,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    """Uniform numbers in the shape of the input."""
    drawn = torch.rand(input.shape, generator=_generator(seed, input.device), device=input.device)
    return (drawn * (high - low) + low).to(input.dtype if dtype is None else DTYPES[dtype])


def bernoulli(input: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that the input gives."""
    drawn = torch.rand(
        input.shape,
        generator=_generator(seed, input.device),
        device=input.device,
        dtype=torch.float64,
    )
    return (drawn < input).to(input.dtype if dtype is None else DTYPES[dtype])


def multinomial(
    input: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None
) -> Tensor:
    """Classes drawn from log-probabilities [batch, classes]."""
    chances = torch.softmax(input.float(), -1)
    drawn = torch.multinomial(
        chances, sample_size, replacement=True, generator=_generator(seed, input.device)
    )
    return drawn.to(DTYPES[dtype])


def arange(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """From start in steps of delta, below (above) the limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    if not start.is_floating_point():
        return torch.arange(count, device=start.device).mul(step).add(first).to(start.dtype)
    wide = torch.float64 if start.dtype == torch.float64 else torch.float32
    steps = torch.arange(count, device=start.device, dtype=wide)
    return (steps * step + first).to(start.dtype)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Bernoulli": bernoulli,
    "Multinomial": multinomial,
    "RandomNormal": random_normal,
    "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform,
    "RandomUniformLike": random_uniform_like,
    "Range": arange,
}
