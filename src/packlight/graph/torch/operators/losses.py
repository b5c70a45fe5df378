"""Losses, as graphs for training hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.nn import functional

from packlight.graph.torch.values import Tensor

_NEVER = -(1 << 40)


def negative_log_likelihood_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-probability [n, classes, ...] of each target [n, ...]."""
    ignored = _NEVER if ignore_index is None else ignore_index
    return functional.nll_loss(
        input, target.long(), weight, ignore_index=ignored, reduction=reduction
    )


def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of softmax(scores), and its logarithm."""
    chances = functional.log_softmax(scores, 1)
    loss = negative_log_likelihood_loss(
        chances, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, chances


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
}
