"""Static 8-bit: weights and activations as codes, so that the runtime computes in integers.

Written as DequantizeLinear -> operator -> QuantizeLinear, which every runtime of the field
reads. Weights are symmetric int8 with one scale an output channel, activations uint8 with
one scale a tensor. Codes of neighbouring weights keep a pair limit, so that x86 processors
without VNNI, whose kernels add two products in a saturating 16-bit integer, compute exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of
from packlight.graph.layers import Layer, matrix_to_weight, weight_matrix
from packlight.graph.observe import Observations
from packlight.graph.patches import kernel_order
from packlight.graph.placement import Placement, place_quantization, root_of
from packlight.graph.walk import constant_of
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.histograms import Histogram
from packlight.maths.moments import Moments, mean_shift
from packlight.maths.ranges import (
    expected_squared_error,
    range_min_max,
    range_percentile,
    range_squared_error,
    range_squared_error_of_array,
)
from packlight.maths.rounding import limit_pairs, round_to_nearest, round_with_compensation

PAIR_LIMIT = 128
"""255 * (c0 + c1) <= 32767 for codes of one sign: what a saturating 16-bit sum holds."""

WEIGHTS = IntegerGrid(bits=8, signed=True, symmetric=True)
ACTIVATIONS = {
    8: IntegerGrid(bits=8, signed=False, symmetric=False),
    16: IntegerGrid(bits=16, signed=False, symmetric=False),
}

Ranges = Literal["squared-error", "min-max", "percentile", "least-error"]
Rounding = Literal["compensated", "nearest"]

PERCENT = 99.99


@dataclass(frozen=True)
class Rounded:
    """A layer's weight as codes.

    codes: int8 [out, in] as `weight_matrix` lays it out. scale: float32 [out].
    bias_shift: float64 [out], what the bias must gain so that the mean output stays.
    note: what the rounding had to do beyond the ordinary, for the report.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias_shift: NDArray[np.float64]
    note: str = ""


def quantize_layers(
    model: ir.Model,
    layers: Sequence[Layer],
    observations: Observations,
    *,
    ranges: Ranges = "squared-error",
    rounding: Rounding = "compensated",
    bias_correction: bool = False,
    pair_limit: bool = True,
    wide: frozenset[str] = frozenset(),
    rounded: dict[str, Rounded] | None = None,
) -> tuple[Placement, dict[str, str]]:
    """Make static 8-bit layers of `layers` (Conv, Gemm, MatMul of the main graph), in place.

    ranges: how the ends of activations are found; "least-error" takes for each tensor the
        best of the others under its histogram. wide: layers whose inputs get 16 bits.
    rounded: weights already rounded, by layer; what is missing is added (a cache).
    Returns where quantization was placed, and notes by layer.
    """
    edit = Editor(model)
    placement = place_quantization(model, layers)
    values = {str(v.name): v for v in model.graph.inputs}
    values |= {str(v.name): v for node in model.graph for v in node.outputs}
    wide_tensors = {
        root_of(str(layer.node.inputs[0].name), placement.same_scale)  # type: ignore[union-attr]
        for layer in layers
        if layer.name in wide
    }
    scales: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for name in placement.tensors:
        root = root_of(name, placement.same_scale)
        if root not in scales:
            grid = ACTIVATIONS[16 if root in wide_tensors else 8]
            low, high = find_range(observations.histograms[root], grid, ranges)
            scale, zero = scale_and_zero_point(low, high, grid)
            scales[root] = (np.asarray(scale), np.asarray(zero).astype(grid.dtype_name))
    carried = {
        name: _insert_codes(edit, values[name], *scales[root_of(name, placement.same_scale)])
        for name in placement.tensors
    }
    for name, (coded, decoded) in carried.items():
        _redirect(model.graph, values[name], coded, decoded, placement)
    _remove_clamps(model.graph, placement)
    notes: dict[str, str] = {}
    cache = rounded if rounded is not None else {}
    for layer in layers:
        if layer.name not in cache:
            cache[layer.name] = round_layer(
                layer,
                observations.moments.get(layer.name),
                rounding=rounding,
                pair_limit=pair_limit,
            )
        found = cache[layer.name]
        source = root_of(
            _original_name(layer.node.inputs[0], carried), placement.same_scale
        )
        _insert_weight(edit, layer, found, scales[source][0], bias_correction)
        if found.note:
            notes[layer.name] = found.note
    return placement, notes


def tensors_to_observe(model: ir.Model, layers: Sequence[Layer]) -> tuple[str, ...]:
    """The tensors whose ranges `quantize_layers` needs when it is given these layers or fewer."""
    names: dict[str, None] = {}
    for chosen in (layers, *([layer] for layer in layers)):
        placement = place_quantization(model, chosen)
        for name in placement.tensors:
            names[root_of(name, placement.same_scale)] = None
    return tuple(names)


def find_range(histogram: Histogram, grid: IntegerGrid, method: Ranges) -> tuple[float, float]:
    """The range [low, high] of an activation."""
    if method == "min-max":
        return range_min_max(histogram)
    if method == "percentile":
        return range_percentile(histogram, PERCENT)
    if method == "squared-error":
        return range_squared_error(histogram, grid)
    options = [find_range(histogram, grid, one) for one in ("min-max", "percentile", "squared-error")]
    lows, highs = (np.array(ends) for ends in zip(*options, strict=True))
    errors = expected_squared_error(histogram, lows, highs, grid)
    return options[int(np.argmin(errors))]


def round_layer(
    layer: Layer, moments: Moments | None, *, rounding: Rounding, pair_limit: bool
) -> Rounded:
    """Round a layer's weight to int8 codes, one scale an output channel.

    moments: of what reaches the layer, in kernel order; without them (or with groups) the
    rounding is to nearest. Depthwise kernels multiply single channels: no pairs there.
    """
    order = kernel_order(layer)
    matrix = weight_matrix(layer)[:, order].astype(np.float64)
    depthwise = layer.kind == "Conv" and layer.groups > 1 and layer.weight_shape[1] == 1
    limit = PAIR_LIMIT if pair_limit and not depthwise else None
    block = (1, -1)
    importance = None
    if moments is not None:
        importance = np.broadcast_to(np.diag(moments.second), matrix.shape)
    low, high = range_squared_error_of_array(
        matrix, WEIGHTS, block_shape=block, importance=importance, pair_limit=limit
    )
    scale, zero = scale_and_zero_point(low, high, WEIGHTS)
    scale, zero = np.asarray(scale).reshape(-1), np.asarray(zero).reshape(-1)
    note = ""
    if rounding == "compensated" and moments is not None and moments.count:
        codes, info = round_with_compensation(
            matrix, moments.second, scale, zero, WEIGHTS, order="descending", pair_limit=limit
        )
        if info.damping > 0.01:
            note = f"second moments needed damping of {info.damping:g} to be invertible"
    else:
        codes = round_to_nearest(matrix, scale, zero, WEIGHTS)
        if limit is not None:
            codes = limit_pairs(codes, matrix / scale[:, None], WEIGHTS, pair_limit=limit)
    shift = np.zeros(len(matrix))
    if moments is not None and moments.count:
        values = codes.astype(np.float64) * scale[:, None]
        shift = mean_shift(matrix, moments.mean, values, moments.mean)
    plain = np.empty_like(codes)
    plain[:, order] = codes
    return Rounded(plain, scale.astype(np.float32), shift, note)


def _insert_codes(
    edit: Editor, value: ir.Value, scale: NDArray[Any], zero: NDArray[Any]
) -> tuple[ir.Value, ir.Value]:
    """QuantizeLinear and DequantizeLinear behind a value; give the codes and the decoded value."""
    graph = edit.model.graph
    domain = "" if zero.dtype == np.uint8 else CONTRIB
    scale_value = edit.constant(graph, scale, f"{value.name}_scale")
    zero_value = edit.constant(graph, zero, f"{value.name}_zero_point")
    encode = edit.node(
        "QuantizeLinear", [value, scale_value, zero_value], f"{value.name}_q", domain=domain
    )
    decode = edit.node(
        "DequantizeLinear",
        [encode.outputs[0], scale_value, zero_value],
        f"{value.name}_dq",
        domain=domain,
        dtype=ir.DataType.FLOAT,
    )
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [encode, decode])
    else:
        graph.insert_after(producer, [encode, decode])
    return encode.outputs[0], decode.outputs[0]


def _redirect(
    graph: ir.Graph,
    value: ir.Value,
    coded: ir.Value,
    decoded: ir.Value,
    placement: Placement,
) -> None:
    """Let readers read the decoded codes: all of them where the producer runs in integers."""
    producer = value.producer()
    whole = producer is not None and (
        producer.name in placement.nodes or producer.name in placement.clamped
    )
    encoder = coded.producer()
    for use in tuple(value.uses()):
        if use.node is not encoder and (whole or use.node.name in placement.nodes):
            use.node.replace_input_with(use.idx, decoded)
    if whole and value.is_graph_output():
        name, value.name = value.name, f"{value.name}_float"
        decoded.name, decoded.type, decoded.shape = name, value.type, value.shape
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = decoded


def _remove_clamps(graph: ir.Graph, placement: Placement) -> None:
    """Take out Relu and Clip whose output range does the clamping."""
    for node in list(graph):
        if node.name in placement.clamped:
            source, result = node.inputs[0], node.outputs[0]
            constants = [value for value in node.inputs[1:] if value is not None]
            for use in tuple(result.uses()):
                use.node.replace_input_with(use.idx, source)
            graph.remove(node, safe=True)
            drop_unused(constants)


def _original_name(value: ir.Value | None, carried: Mapping[str, Any]) -> str:
    for name, (_, decoded) in carried.items():
        if decoded is value:
            return name
    raise ValueError("a layer's input was not quantized")


def _insert_weight(
    edit: Editor,
    layer: Layer,
    rounded: Rounded,
    input_scale: NDArray[Any],
    bias_correction: bool,
) -> None:
    graph, node = graph_of(layer), layer.node
    stem = f"{layer.weight.name}"
    scale = rounded.scale
    shift = rounded.bias_shift if bias_correction else None
    bias = _bias(layer, len(scale), shift)
    codes = rounded.codes
    if bias is not None:
        # The bias is an int32 of scale s_x * s_w: tiny scales (dead channels) would overflow it.
        least = np.abs(bias) / (float(input_scale) * 2.0**30)
        if np.any(scale < least):
            wider = np.maximum(scale, least.astype(np.float32))
            codes = np.rint(codes * (scale / wider)[:, None]).astype(np.int8)
            scale = wider
    axis = layer.out_axis
    decode = edit.node(
        "DequantizeLinear",
        [
            edit.constant(graph, matrix_to_weight(layer, codes), f"{stem}_codes"),
            edit.constant(graph, scale, f"{stem}_scale"),
        ],
        f"{stem}_dq",
        attributes={"axis": axis} if axis != 1 else {},
        dtype=ir.DataType.FLOAT,
    )
    old = [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    graph.insert_before(node, decode)
    node.replace_input_with(1, decode.outputs[0])
    if bias is not None:
        steps = (input_scale.astype(np.float32) * scale).astype(np.float32)
        whole = np.rint(bias / steps.astype(np.float64)).clip(-(2**31) + 1, 2**31 - 1)
        decode = edit.node(
            "DequantizeLinear",
            [
                edit.constant(graph, whole.astype(np.int32), f"{stem}_bias"),
                edit.constant(graph, steps, f"{stem}_bias_scale"),
            ],
            f"{stem}_bias_dq",
            attributes={"axis": 0},
            dtype=ir.DataType.FLOAT,
        )
        graph.insert_before(node, decode)
        if len(node.inputs) > 2:
            node.replace_input_with(2, decode.outputs[0])
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, decode.outputs[0])
    for name in ("alpha", "beta") if layer.kind == "Gemm" else ():
        node.attributes.pop(name, None)  # now in the scale and the bias
    drop_unused(old)


def _bias(
    layer: Layer, outputs: int, shift: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """The bias in float64 [out] with the shift added; None where there is and needs none."""
    tensor = constant_of(layer.bias)
    if tensor is None:
        has_bias = len(layer.node.inputs) > 2 and layer.node.inputs[2] is not None
        if shift is None or layer.kind == "MatMul" or has_bias or not shift.any():
            return None
        return shift
    bias = np.broadcast_to(tensor.numpy().astype(np.float64).reshape(-1), (outputs,)).copy()
    if layer.kind == "Gemm":
        beta = layer.node.attributes.get("beta")
        bias *= beta.as_float() if beta is not None else 1.0
    return bias if shift is None else bias + shift
