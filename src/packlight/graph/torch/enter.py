"""The doors of this room, for those who do without PyTorch: torch is imported when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from packlight.errors import MissingExtra
from packlight.graph.model import Model

if TYPE_CHECKING:
    from packlight.graph.torch.module import GraphModule


def to_torch(model: Model | ir.Model | Path | str, *, learn_scales: bool = False) -> GraphModule:
    """The graph of a model (loaded, or a path) as a `torch.nn.Module` that can be trained.

    Its weights are parameters (`parameters_by_name` has them under their ONNX names), and its
    forward takes and gives tensors in the order of the graph's inputs and outputs. The model
    itself is not changed. learn_scales: scales of QuantizeLinear and DequantizeLinear are
    parameters too. Raises MissingExtra where PyTorch is not installed, UnsupportedOperator for
    an operator that is not known, UnusableModel for a broken file.
    """
    check_torch()
    from packlight.graph.torch.module import to_torch as convert

    module: GraphModule = convert(model, learn_scales=learn_scales)
    return module


def check_torch() -> None:
    """Raise MissingExtra where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            'PyTorch is not installed here: run `pip install "packlight[heal]"` to use it.'
        ) from error
