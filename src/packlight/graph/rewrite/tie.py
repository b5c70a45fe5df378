"""Stores a matrix once that a model holds twice, the second time transposed.

The embedding and the output head of a language model are often one table. Folding makes
two constants of it, E for Gather and E^T for MatMul; in the file one of them is enough, also
as codes, if both have the same. The runtime folds the Transpose again when it loads the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import Editor
from packlight.graph.layers import Layer, weight_matrix
from packlight.graph.rewrite.packing import Packed
from packlight.graph.rewrite.weights import Rounded
from packlight.graph.walk import constant_of, shape_of

LEAST_BYTES = 1024
"""Of a matrix that is worth a node more."""


def share_codes(
    tables: Iterable[Layer], products: Iterable[Layer], rounded: Mapping[str, Rounded]
) -> dict[tuple[str, int], Packed]:
    """Codes for tables whose rows are those that a product multiplies with: the product's own.

    tables: looked up, in 8 bits a number with one scale a row. products: MatMul or Gemm in 8
    bits, one scale an output, which are the rows of [out, in]. rounded: by product.
    Returns what `store_packed` takes, by (table, 0), for the tables that have such a product.
    """
    known: dict[tuple[tuple[int, ...], bytes], Rounded] = {}
    for product in products:
        if product.kind in ("MatMul", "Gemm"):
            matrix = weight_matrix(product)
            known.setdefault((matrix.shape, _digest(matrix)), rounded[product.name])
    found = {}
    for table in tables if known else ():
        matrix = weight_matrix(table)
        common = known.get((matrix.shape, _digest(matrix)))
        if common is not None:
            found[table.name, 0] = Packed(common.codes, 8, scale=common.scale[:, None])
    return found


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
