"""Writes an ONNX file as an ExecuTorch program; runs in a child process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401 (codes outside of XNNPACK's parts)
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, CatConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from packlight.devices.exported import export_graph
from packlight.graph.model import load_model

NAMES = "packlight_names"
"""The method of the program that says the names of inputs and outputs, as JSON."""


# XNNPACK puts codes together only where their scales are the same; the partitioner does not look,
# and a program with others does not load (ExecuTorch 1.5).
_LOWERED = [config for config in ALL_PARTITIONER_CONFIGS if config is not CatConfig]


def convert(path: str, out: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write the ONNX file at `path` as `out`, for inputs of these shapes, lowered to XNNPACK."""
    model = load_model(path)
    program = export_graph(model.ir, shapes)
    names = [[spec.name for spec in side] for side in (model.inputs, model.outputs)]
    constants = {NAMES: json.dumps(names)}
    try:
        lowered = _lower(program, constants, one_by_one=False)
    except Exception:
        # Its passes trip over some graphs that are lowered in large parts, but not in small ones.
        program = export_graph(load_model(path).ir, shapes)
        lowered = _lower(program, constants, one_by_one=True)
    Path(out).write_bytes(lowered.to_executorch().buffer)


def _lower(program: Any, constants: dict[str, str], *, one_by_one: bool) -> Any:
    partitioner = XnnpackPartitioner(configs=_LOWERED, per_op_mode=one_by_one)
    return to_edge_transform_and_lower(
        program, partitioner=[partitioner], constant_methods=constants
    )
