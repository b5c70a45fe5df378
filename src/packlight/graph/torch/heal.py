"""Heals a compressed graph: its float weights are trained to give what the original gives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from packlight.graph.model import copy_model
from packlight.graph.torch.distill import Distilled, Lessons, distill
from packlight.graph.torch.module import to_torch
from packlight.graph.torch.returning import return_parameters


@dataclass(frozen=True)
class Healed:
    """A healed graph, the student with its trained weights, and how training went."""

    model: ir.Model
    training: Distilled


def heal(original: ir.Model, student: ir.Model, lessons: Lessons) -> Healed:
    """Train `student` towards `original` on unlabelled samples, and give its best state.

    original, student: graphs with the same inputs and outputs; the student is not changed.
    Raises UnsupportedOperator where PyTorch cannot compute the graph, and WrongUsage as
    `distill` does.
    """
    module = to_torch(student)
    found = distill(original, student, module, lessons, word="healing")
    healed = return_parameters(module, student) if found.better else copy_model(student)
    return Healed(healed, found)
