"""Products of matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.draft import Quantization, Unwritable
from packlight.devices.litert.graph import Stored, Translation, shape_of, stored_in, turned
from packlight.devices.litert.windows import bias_of
from packlight.graph.rewrite.single import float_of, int_of


def gemm(to: Translation, node: ir.Node) -> None:
    """Gemm: FULLY_CONNECTED, whose weights are [out, in]."""
    weight = node.inputs[1]
    stored = stored_in(weight)
    if int_of(node, "transA", 0) or stored is None:
        raise Unwritable("only products of rows with constant weights are written")
    turn = (0, 1) if int_of(node, "transB", 0) else (1, 0)
    found = _times(turned(stored, turn), float_of(node, "alpha", 1.0))
    if float_of(node, "beta", 1.0) != 1.0:
        raise Unwritable("its bias is multiplied with a number")
    _connect(to, node, found, keep=False)


def mat_mul(to: Translation, node: ir.Node) -> None:
    """MatMul: FULLY_CONNECTED with constant weights, else BATCH_MATMUL."""
    stored = stored_in(node.inputs[1])
    if stored is not None and stored.array.ndim == 2 and len(shape_of(node.inputs[0])) > 1:
        _connect(to, node, turned(stored, (1, 0)), keep=len(shape_of(node.inputs[0])) > 2)
        return
    if min(len(shape_of(value)) for value in node.inputs) < 2:
        raise Unwritable("one of its factors is a vector")
    inputs = [to.read(value) for value in node.inputs]
    made, _ = to.write(node)
    to.draft.operator("BATCH_MATMUL", inputs, [made], "BatchMatMulOptions")


def _connect(to: Translation, node: ir.Node, weight: Stored, *, keep: bool) -> None:
    inputs = [
        to.read(node.inputs[0]),
        to.store(f"{node.name}_weight", weight, codes=to.integer),
        bias_of(to, node, weight.array.shape[0]),
    ]
    made, activation = to.write(node, clamps=True)
    to.draft.operator(
        "FULLY_CONNECTED",
        inputs,
        [made],
        "FullyConnectedOptions",
        fusedActivationFunction=activation,
        keepNumDims=keep,
    )


def _times(weight: Stored, factor: float) -> Stored:
    """The weights times a number, which scales take where there are some."""
    if factor == 1.0:
        return weight
    one = weight.quantization
    if one is None:
        return Stored((weight.array * factor).astype(weight.array.dtype))
    return Stored(
        weight.array, Quantization((one.scale * factor).astype(np.float32), one.zero, one.axis)
    )
