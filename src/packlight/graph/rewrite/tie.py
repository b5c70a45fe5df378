"""Stores a matrix once that a model holds twice, the second time transposed.

The embedding and the output head of a language model are often one table. Folding makes
two constants of it, E for Gather and E^T for MatMul; in the file one of them is enough.
The runtime folds the Transpose again when it loads the file.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import Editor
from packlight.graph.walk import constant_of, shape_of

LEAST_BYTES = 1024
"""Of a matrix that is worth a node more."""


def tie_transposed(model: ir.Model) -> int:
    """Replace constants of the main graph that are another's transpose, in place; how many.

    Element types are kept: codes are tied where both were rounded alike.
    """
    graph, edit = model.graph, Editor(model)
    kept: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    count = 0
    for value in list(graph.initializers.values()):
        tensor = constant_of(value)
        if tensor is None or tensor.nbytes < LEAST_BYTES or len(tensor.shape) != 2:
            continue
        if value.is_graph_output() or tensor.dtype.bitwidth < 8:
            continue
        array = tensor.numpy()
        key = (tensor.dtype.name, shape_of(tensor), _digest(array))
        first = kept.get((key[0], key[1][::-1], _digest(array.T)))
        if first is None:
            kept.setdefault(key, value)
            continue
        node = edit.node("Transpose", [first], f"{value.name}_tied", attributes={"perm": [1, 0]})
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, node.outputs[0])
        graph.insert_before(graph[0], node)
        graph.initializers.pop(str(value.name))
        count += 1
    return count


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
