"""The doors of this room, for those who do without PyTorch: torch is imported when one is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from packlight.errors import MissingExtra
from packlight.graph.model import Model
from packlight.runtime import Process

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


def from_torch(
    source: object, example_inputs: Any, path: Path | str, *, process: Process | None = None
) -> Model:
    """Write a PyTorch module, exported program or .pt2 file as ONNX to `path`, and load it.

    example_inputs: a tensor, or a tuple of what forward takes; the first axis becomes a batch of
    any size where the module allows it. The file is compared with the module. A .pt2 file is
    read without running code that it may hold. Raises MissingExtra where PyTorch is not
    installed, UnusableModel where the module cannot be exported or computes something else then.
    """
    check_torch()
    from packlight.graph.torch.come_in import from_torch as export

    return export(source, example_inputs, path, process=process)  # type: ignore[arg-type]


def is_torch_module(source: object) -> bool:
    """Whether `source` is a PyTorch module or exported program; without importing PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def check_torch() -> None:
    """Raise MissingExtra where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            'PyTorch is not installed here: run `pip install "packlight[heal]"` to use it.'
        ) from error
