"""16-bit floats in the file, and what may be stored in fewer bits at all.

float16 weights are read back into float32 when the runtime loads the file (a Cast, which
constant folding does once), so that the file is smaller and nothing is slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import Editor, home_of, in_function
from packlight.graph.layers import Layer
from packlight.graph.rewrite.decode import cast_node, other_layers, replace_weight
from packlight.graph.walk import constant_of

_LARGEST_HALF = float(np.finfo(np.float16).max)


def store_float16(model: ir.Model, layers: Sequence[Layer]) -> None:
    """Store all float32 weights of the layers as float16, in place.

    Other layers that share a weight go on reading it.
    """
    edit = Editor(model)
    others = other_layers(model, layers)
    done: set[ir.Value] = set()
    for layer in layers:
        for weight in layer.weights:
            tensor = constant_of(weight)
            if weight in done or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            done.add(weight)
            graph = home_of(weight, layer)
            half = edit.constant(graph, tensor.numpy().astype(np.float16), f"{weight.name}_half")
            cast = cast_node(edit, half, tensor.dtype, f"{weight.name}_float")
            replace_weight(graph, weight, [cast], others)


def why_not_stored(layer: Layer) -> str:
    """The reason why a layer's weights cannot be stored as codes; '' where they can."""
    if in_function(layer):
        return "it lies in a function"
    for weight in layer.weights:
        tensor = constant_of(weight)
        if tensor is None:
            return "its weights are computed at run time"
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"its weights are {tensor.dtype.name.lower()}"
        if weight.is_graph_output():
            return "its weight is an output of the model"
    return ""


def why_not_float16(layer: Layer) -> str:
    """The reason why a layer's weights cannot be stored as float16; '' where they can."""
    reason = why_not_stored(layer)
    if reason:
        return reason
    for weight in layer.weights:
        tensor = constant_of(weight)
        if tensor is None or tensor.dtype == ir.DataType.FLOAT16:
            continue
        largest = float(np.abs(tensor.numpy()).max(initial=0))
        if largest > _LARGEST_HALF:
            return f"its largest weight, {largest:g}, is beyond the range of float16"
    return ""


def holds_exactly(layer: Layer) -> bool:
    """Whether float16 holds every weight of a layer without rounding it."""
    if why_not_float16(layer):
        return False
    for weight in layer.weights:
        tensor = constant_of(weight)
        if tensor is None:
            return False
        array = tensor.numpy()
        if not np.array_equal(array.astype(np.float16).astype(array.dtype), array):
            return False
    return True
