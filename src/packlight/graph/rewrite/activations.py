"""Activations rounded to 4 bits in front of single layers, which then compute in float.

No kernel multiplies 4-bit activations: QuantizeLinear and DequantizeLinear stand directly
before the layers, one pair for all that read the same tensor, and what the model gives is what
a device with such kernels would give. Codes are UINT4 with a zero point, which holds ranges of
both signs as INT4 does; below operator set 21 the same operators of onnxruntime's own domain
are used.

The scale is multiplied in behind DequantizeLinear, whose own is 1: onnxruntime takes a layer
between DequantizeLinear and QuantizeLinear for one to be run in integers, quantizes its float
weights by itself, and then refuses the file, as it has no kernel for 4 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.edit import CONTRIB, Editor
from packlight.graph.layers import Layer
from packlight.graph.observe import Observations
from packlight.graph.rewrite.decode import FOUR_BITS_FROM, operator_set
from packlight.graph.rewrite.quantize import Ranges, find_range
from packlight.maths.grids import IntegerGrid, scale_and_zero_point

FOUR_BITS = IntegerGrid(bits=4, signed=False, symmetric=False)


def round_activations(
    model: ir.Model, layers: Sequence[Layer], observations: Observations, *, ranges: Ranges
) -> None:
    """Let the layers (of the main graph) read their input rounded to 4 bits, in place.

    observations: histograms of the layers' inputs. ranges: as for 8 bits.
    """
    edit = Editor(model)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for layer in layers:
        value = layer.node.inputs[0]
        if value is not None:
            readers.setdefault(value, []).append(layer.node)
    domain = "" if operator_set(model) >= FOUR_BITS_FROM else CONTRIB
    for value, nodes in readers.items():
        name = str(value.name)
        low, high = find_range(observations.histograms[name], FOUR_BITS, ranges, margin=1.0)
        scale, zero = scale_and_zero_point(low, high, FOUR_BITS)
        kind = ir.DataType.UINT4.numpy()
        scale_value = edit.constant(model.graph, np.asarray(scale), f"{name}_scale4")
        zero_value = edit.constant(
            model.graph, np.asarray(zero).astype(kind), f"{name}_zero_point4"
        )
        one = edit.constant(model.graph, np.ones((), np.float32), f"{name}_one4")
        encode = edit.node(
            "QuantizeLinear", [value, scale_value, zero_value], f"{name}_q4", domain=domain
        )
        decode = edit.node(
            "DequantizeLinear",
            [encode.outputs[0], one, zero_value],
            f"{name}_dq4",
            domain=domain,
            dtype=ir.DataType.FLOAT,
        )
        scaled = edit.node(
            "Mul", [decode.outputs[0], scale_value], f"{name}_in4", dtype=ir.DataType.FLOAT
        )
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(model.graph[0], [encode, decode, scaled])
        else:
            model.graph.insert_after(producer, [encode, decode, scaled])
        for node in nodes:
            node.replace_input_with(0, scaled.outputs[0])
