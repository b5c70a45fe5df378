"""What rounds the tensors of a checkpoint: how, and what block after block asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra
from packlight.llm.checkpoint import Checkpoint
from packlight.progress import Progress

Floats: TypeAlias = NDArray[np.float32]
Moments: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How tensors are rounded with text.

    aim: what a layer's outputs are fitted to before it is rounded, see
    `packlight.llm.calibrate.Aim`. pull: towards its own weight meanwhile. damping: of second
    moments in rounding.
    rows_make_up: for each other's errors, see `packlight.llm.calibrate_outputs`. smoothing: of
    activations, where the runtime rounds them to integers, see `packlight.llm.smooth`.
    curvature_tokens: that gradients are taken of. states_bytes: of hidden states in memory; more
    of them lie in a file. seed: of what is drawn.
    """

    aim: Literal["own", "outputs", "stream"] = "own"
    pull: float = 0.01
    damping: float = 0.01
    rows_make_up: bool = True
    smoothing: bool = True
    curvature_tokens: int = 16384
    states_bytes: int = 2 << 30
    seed: int = 0


class Rounding(Protocol):
    """A run towards one kind of file: tensors come in any order, and each is written once.

    See `packlight.llm.rounding_matrices` for what it does with a text.
    """

    @property
    def checkpoint(self) -> Checkpoint:
        """The original."""

    @property
    def settings(self) -> Settings:
        """How tensors are rounded."""

    @property
    def progress(self) -> Progress:
        """Is told of every tensor."""

    def wants(self, name: str) -> bool:
        """Whether a tensor is to be rounded."""

    def finished(self, name: str) -> Floats | None:
        """What a tensor's bytes stand for, where an earlier run has finished it."""

    def keep(self, name: str) -> None:
        """Write a tensor without rounding it."""


def relative_error(
    weight: Floats, near: Floats, moments: Moments | Floats | None
) -> tuple[float, float]:
    """Give tr(D H D^T) and tr(W H W^T), D the difference; H = I where there are no moments."""
    gap = weight - near
    if moments is None:
        return float(np.vdot(gap, gap)), float(np.vdot(weight, weight))
    h = moments.astype(np.float32, copy=False)
    return float(np.vdot(gap @ h, gap)), float(np.vdot(weight @ h, weight))


def check_torch() -> None:
    """Raise MissingExtra where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as missing:
        raise MissingExtra(
            "compressing a language model with a text needs PyTorch, which is not installed: "
            "pip install 'packlight[llm]', or compress without a text"
        ) from missing
