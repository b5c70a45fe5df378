"""Matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.values import Tensor


def gemm(
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Tensor:
    """Alpha A B + beta C."""
    if transA:
        A = A.t()
    if alpha == 1.0 and beta == 1.0 and (C is None or C.ndim == 1):
        # What nn.Linear calls: bias and product in one.
        return functional.linear(A, B if transB else B.t(), C)
    product = A @ (B.t() if transB else B)
    if alpha != 1.0:
        product = (alpha * product).to(A.dtype)
    if C is None or beta == 0.0:
        return product
    return product + (C if beta == 1.0 else (beta * C).to(A.dtype))


def einsum(*Inputs: Tensor, equation: str) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(equation.replace(" ", ""), *Inputs)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Det": torch.linalg.det,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": torch.matmul,
}
