"""All operators, and which version of one a model means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from packlight.graph.torch.operators import (
    casting,
    contrib,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    losses,
    normalization,
    pooling,
    quantized,
    random,
    recurrent,
    reduction,
    resize,
    sampling,
    shape,
    signal,
    text,
)

Operator = Callable[..., Any]

# One literal table a family: a function, or several by the opset from which each holds.
FAMILIES: tuple[Mapping[str, Operator | Mapping[int, Operator]], ...] = (
    casting.OPERATORS,
    control.OPERATORS,
    convolution.OPERATORS,
    elementwise.OPERATORS,
    indexing.OPERATORS,
    linear.OPERATORS,
    losses.OPERATORS,
    normalization.OPERATORS,
    pooling.OPERATORS,
    quantized.OPERATORS,
    random.OPERATORS,
    recurrent.OPERATORS,
    reduction.OPERATORS,
    resize.OPERATORS,
    sampling.OPERATORS,
    shape.OPERATORS,
    signal.OPERATORS,
    text.OPERATORS,
)

OPERATORS: Mapping[str, Mapping[str, Operator | Mapping[int, Operator]]] = {
    "": {name: entry for family in FAMILIES for name, entry in family.items()},
    "com.microsoft": contrib.OPERATORS,
    "ai.onnx.ml": indexing.MACHINE_LEARNING,
}


def find_operator(domain: str, name: str, version: int) -> Operator | None:
    """The newest function of an operator not above `version`; None where there is none."""
    entry = OPERATORS.get(domain, {}).get(name)
    if entry is None or callable(entry):
        return entry
    known = [since for since in entry if since <= version]
    return entry[max(known)] if known else None
