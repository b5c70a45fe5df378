"""A quantized graph in the few forms that other runtimes know, and with axes that are known.

What onnxruntime is given special forms of is put plainly again: activations are signed codes
(int8, as LiteRT and XNNPACK have them), stored weights are codes under DequantizeLinear, and
what only keeps onnxruntime from quantizing by itself goes. Numbers stay as they are: signed
codes are the unsigned ones less 128, with zero points that are less by as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from packlight.graph.edit import Editor
from packlight.graph.rewrite.fold import fold_constants
from packlight.graph.rewrite.noops import remove_noops, remove_unused
from packlight.graph.rewrite.quiet import quiet
from packlight.graph.rewrite.simplify import lift_constants
from packlight.graph.rewrite.single import bypass, float_of, is_standard
from packlight.graph.walk import constant_of, ensure_names

_ROUNDS = 4
_SHIFT = 128
_SIGNED = (ir.DataType.INT8, ir.DataType.INT4)


def make_portable(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix the axes of every input to `shapes` and put codes plainly, in place."""
    _show_stored(model)
    _fix_axes(model, shapes)
    _sign_codes(model)
    for node in list(model.graph):
        if is_standard(node, "LeakyRelu") and float_of(node, "alpha", 0.01) == 1.0:
            source = node.inputs[0]
            assert source is not None
            bypass(node, source)
    with quiet():
        remove_unused(model)
    ensure_names(model)


def _fix_axes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix the inputs' axes, and compute what then is constant; outputs get their axes too."""
    for value in model.graph.inputs:
        value.shape = ir.Shape(shapes[str(value.name)])
    for value in model.graph.outputs:
        value.shape = None
    halves = [node for node in model.graph if _is_half(node)]
    with quiet():
        for _ in range(_ROUNDS):
            changed = fold_constants(model, keep=halves)
            changed |= lift_constants(model)
            changed |= remove_noops(model)
            if not changed:
                break
        remove_unused(model)
        # Folding infers shapes node by node, and misses those that lifted constants tell.
        passes.ShapeInferencePass()(model)


def _is_half(node: ir.Node) -> bool:
    """Whether a node reads a weight that is stored in 16-bit floats."""
    stored = constant_of(node.inputs[0]) if is_standard(node, "Cast") else None
    return stored is not None and stored.dtype == ir.DataType.FLOAT16 and stored.size > 1


def _sign_codes(model: ir.Model) -> None:
    """Let uint8 codes of activations be int8 codes of the same numbers."""
    edit = Editor(model)
    for node in list(model.graph):
        place = 2 if is_standard(node, "QuantizeLinear", "DequantizeLinear", "Pad") else None
        if place is None or len(node.inputs) <= place:
            continue
        zero = node.inputs[place]
        tensor = constant_of(zero)
        if zero is None or tensor is None or tensor.dtype != ir.DataType.UINT8:
            continue
        source = node.inputs[0]
        if constant_of(source) is not None:
            continue  # stored weights keep their codes
        shifted = tensor.numpy().astype(np.int16) - _SHIFT
        signed = edit.constant(model.graph, shifted.astype(np.int8), f"{zero.name}_signed")
        node.replace_input_with(place, signed)
        if node.op_type != "DequantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.INT8)


def _show_stored(model: ir.Model) -> None:
    """Let Mul(Cast(codes), scale) of constants be DequantizeLinear, which it says in two words."""
    edit = Editor(model)
    for node in list(model.graph):
        if not is_standard(node, "Mul"):
            continue
        cast = node.inputs[0].producer() if node.inputs[0] is not None else None
        if cast is None or not is_standard(cast, "Cast"):
            continue
        codes, scale = constant_of(cast.inputs[0]), constant_of(node.inputs[1])
        if codes is None or scale is None or codes.dtype not in _SIGNED:
            continue
        factors, shape = scale.numpy(), tuple(codes.shape.numpy())
        wide = [axis for axis, extent in enumerate(factors.shape) if extent > 1]
        if factors.ndim not in (0, len(shape)) or len(wide) > 1:
            continue
        axis = wide[0] if wide else 0
        factors = np.broadcast_to(factors.reshape(-1), (shape[axis],))
        flat = edit.constant(model.graph, factors.astype(np.float32), f"{node.name}_scales")
        # Of 4 bits they take 8: other runtimes have no such type, or not for every operator.
        whole = edit.constant(model.graph, codes.numpy().astype(np.int8), f"{node.name}_whole")
        decode = edit.node(
            "DequantizeLinear",
            [whole, flat],
            f"{node.name}_dq",
            attributes={"axis": axis},
            dtype=ir.DataType.FLOAT,
        )
        decode.outputs[0].shape = ir.Shape(shape)
        model.graph.insert_before(node, decode)
        bypass(node, decode.outputs[0])
