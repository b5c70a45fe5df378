"""Static: weights of 2 to 8 bits and activations of 8 as codes, computed in integers.

Written as DequantizeLinear -> operator -> QuantizeLinear, which every runtime of the field
reads. Weights are symmetric int8 with one scale an output channel (those of fewer bits use
fewer of the codes), activations uint8 with one scale a tensor. Codes of neighbouring weights
keep a pair limit, so that x86 processors without VNNI, whose kernels add two products in a
saturating 16-bit integer, compute exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.edit import CONTRIB, Editor, drop_unused, graph_of
from packlight.graph.layers import Layer, matrix_to_weight
from packlight.graph.observe import Observations
from packlight.graph.placement import Placement, place_quantization, root_of
from packlight.graph.rewrite.single import float_of, is_standard
from packlight.graph.rewrite.weights import Rounded, Rounding, round_layers
from packlight.graph.walk import constant_of
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.histograms import Histogram
from packlight.maths.ranges import (
    expected_squared_error,
    range_min_max,
    range_percentile,
    range_squared_error,
)

ACTIVATIONS = {
    8: IntegerGrid(bits=8, signed=False, symmetric=False),
    16: IntegerGrid(bits=16, signed=False, symmetric=False),
}

Ranges = Literal["squared-error", "min-max", "percentile", "least-error"]

PERCENT = 99.99

MARGIN = 1.1
"""Measured: on few samples it gives a residual network 0.3 to 0.8 dB, on many it costs nothing."""


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
    cache = rounded if rounded is not None else {}
    round_layers(
        model, layers, observations.moments, cache, rounding=rounding, pair_limit=pair_limit
    )
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
            key = (root, grid.bits, ranges)
            ends = observations.ranges.get(key)
            if ends is None:
                ends = find_range(observations.histograms[root], grid, ranges)
                observations.ranges[key] = ends
            low, high = ends
            scale, zero = scale_and_zero_point(low, high, grid)
            scales[root] = (np.asarray(scale), np.asarray(zero).astype(grid.dtype_name))
    carried = {
        name: _insert_codes(edit, values[name], *scales[root_of(name, placement.same_scale)])
        for name in placement.tensors
    }
    for name, (coded, decoded) in carried.items():
        _redirect(edit, values[name], coded, decoded, placement)
    _remove_clamps(model.graph, placement)
    _pad_codes(edit, placement, carried)
    notes: dict[str, str] = {}
    for layer in layers:
        found = cache[layer.name]
        source = root_of(_original_name(layer.node.inputs[0], carried), placement.same_scale)
        _insert_weight(edit, layer, found, scales[source][0], bias_correction)
        if found.note:
            notes[layer.name] = found.note
    return placement, notes


def keep_float(model: ir.Model, integer: Iterable[str]) -> None:
    """Let onnxruntime compute the layers that were left in float in float, in place.

    Between DequantizeLinear and QuantizeLinear it would quantize the float weights of a Conv,
    ConvTranspose or Gemm by itself: nothing would be gained by taking such a layer back to
    float, and weights that keep no pair limit saturate on x86 without VNNI. A LeakyRelu with a
    slope of 1 behind the layer gives what it gets, and is one thing that the runtime does not
    see through; it computes it within the layer's own kernel (but for ConvTranspose).
    Measured on resnet20 with the first convolution of a middle block in float, medians of
    interleaved runs: 1.04 to 1.07 times what it takes when the runtime quantizes that layer as
    well, 0.68 times float32; a multiplication in front of the layer helps and costs the same.
    integer: names of the nodes that are meant to run in integers.
    """
    edit, whole = Editor(model), set(integer)
    for node in list(model.graph):
        if not is_standard(node, "Conv", "ConvTranspose", "Gemm") or node.name in whole:
            continue
        source = node.inputs[0]
        decoder = None if source is None else source.producer()
        result = node.outputs[0]
        if decoder is None or decoder.op_type != "DequantizeLinear" or not _is_encoded(result):
            continue
        same = edit.node(
            "LeakyRelu",
            [result],
            f"{node.name}_float",
            attributes={"alpha": 1.0},
            dtype=ir.DataType.FLOAT,
        )
        model.graph.insert_after(node, same)
        for use in tuple(result.uses()):
            if use.node is not same:
                use.node.replace_input_with(use.idx, same.outputs[0])


def _is_encoded(value: ir.Value) -> bool:
    """Whether a value becomes codes, maybe after a clamp, which codes swallow."""
    return any(
        use.node.op_type == "QuantizeLinear"
        or (is_standard(use.node, "Relu", "Clip") and _is_encoded(use.node.outputs[0]))
        for use in value.uses()
    )


def tensors_to_observe(model: ir.Model, layers: Sequence[Layer]) -> tuple[str, ...]:
    """The tensors whose ranges `quantize_layers` needs when it is given these layers or fewer."""
    names: dict[str, None] = {}
    for chosen in (layers, *([layer] for layer in layers)):
        placement = place_quantization(model, chosen)
        for name in placement.tensors:
            names[root_of(name, placement.same_scale)] = None
    return tuple(names)


def find_range(
    histogram: Histogram, grid: IntegerGrid, method: Ranges, *, margin: float = MARGIN
) -> tuple[float, float]:
    """The range [low, high] of an activation.

    "squared-error" reaches `margin` times as far as its optimum for the samples that were seen,
    at most to the ends that were seen: others have larger values, and large ones matter most.
    """
    if method == "min-max":
        return range_min_max(histogram)
    if method == "percentile":
        return range_percentile(histogram, PERCENT)
    if method == "squared-error":
        seen = range_min_max(histogram)
        low, high = range_squared_error(histogram, grid)
        return max(low * margin, seen[0]), min(high * margin, seen[1])
    methods: tuple[Ranges, ...] = ("min-max", "percentile", "squared-error")
    options = [find_range(histogram, grid, one, margin=margin) for one in methods]
    lows, highs = (np.array(ends) for ends in zip(*options, strict=True))
    errors = expected_squared_error(histogram, lows, highs, grid)
    return options[int(np.argmin(errors))]


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
    edit: Editor,
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
        name, value.name = value.name, edit.unused(f"{value.name}_float")
        decoded.name, decoded.type, decoded.shape = name, value.type, value.shape
        outputs = edit.model.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = decoded


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


def _pad_codes(
    edit: Editor, placement: Placement, carried: Mapping[str, tuple[ir.Value, ir.Value]]
) -> None:
    """Let Pad work on the codes themselves: onnxruntime has no fused form and would go by float.

    A padded zero is the code of the zero point.
    """
    graph = edit.model.graph
    decoded = {second: first for first, second in carried.values()}
    for node in list(graph):
        if node.op_type != "Pad" or node.name not in placement.nodes or len(node.inputs) < 2:
            continue
        (result,) = node.outputs
        coded, _ = carried[str(result.name)]
        encoder = coded.producer()
        if encoder is None or node.inputs[0] not in decoded:
            continue
        zero = encoder.inputs[2]
        constant = None if len(node.inputs) < 3 else node.inputs[2]
        if zero is None or zero.const_value is None:
            continue
        node.replace_input_with(0, decoded[node.inputs[0]])
        node.resize_inputs(max(len(node.inputs), 3))
        node.replace_input_with(2, zero)
        for use in tuple(coded.uses()):
            use.node.replace_input_with(use.idx, result)
        graph.remove(encoder, safe=True)
        result.type = zero.type
        drop_unused([constant] if constant is not None else [])


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
    bias = _bias(layer, len(rounded.scale), rounded.bias_shift if bias_correction else None)
    codes, scale = rounded.codes, rounded.scale
    if bias is not None:
        codes, scale = _make_room(codes, scale, bias, float(input_scale))
    old = [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    inputs: list[ir.Value | None] = [
        edit.constant(graph, matrix_to_weight(layer, codes), f"{stem}_codes"),
        edit.constant(graph, scale, f"{stem}_scale"),
    ]
    if layer.kind == "Gemm":  # onnxruntime makes a QGemm only where there is a zero point
        inputs.append(edit.constant(graph, np.zeros(len(scale), np.int8), f"{stem}_zero_point"))
    _decode(edit, layer, 1, inputs, f"{stem}_dq", layer.out_axis)
    if bias is not None:
        steps = input_scale.astype(np.float32) * scale
        whole = np.rint(bias / steps.astype(np.float64)).clip(-(2**31) + 1, 2**31 - 1)
        inputs = [
            edit.constant(graph, whole.astype(np.int32), f"{stem}_bias"),
            edit.constant(graph, steps, f"{stem}_bias_scale"),
        ]
        _decode(edit, layer, 2, inputs, f"{stem}_bias_dq", 0)
    for name in ("alpha", "beta") if layer.kind == "Gemm" else ():
        node.attributes.pop(name, None)  # now in the scale and the bias
    drop_unused(old)


def _decode(
    edit: Editor,
    layer: Layer,
    number: int,
    inputs: list[ir.Value | None],
    name: str,
    axis: int,
) -> None:
    """Let a layer read constant codes, decoded, as its input of that number."""
    node = layer.node
    attributes = {"axis": axis} if axis != 1 else {}
    decode = edit.node(
        "DequantizeLinear", inputs, name, attributes=attributes, dtype=ir.DataType.FLOAT
    )
    graph_of(layer).insert_before(node, decode)
    if len(node.inputs) <= number:
        node.resize_inputs(number + 1)
    node.replace_input_with(number, decode.outputs[0])


def _make_room(
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float64],
    input_scale: float,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales with which the bias, an int32 of scale input_scale * scale, fits.

    Channels of tiny weights get a larger scale, as their bias would overflow. Those without
    weights get one that fits the bias: theirs says nothing, and may be far too coarse.
    """
    # The step of a bias stays a normal float32 as well, or it would be 0.
    least = np.maximum(np.abs(bias) / 2.0**30, 2.0**-126) / input_scale
    dead = ~codes.any(axis=1) & (bias != 0)
    wanted = np.maximum(scale, least)
    wanted[dead] = 2.0**8 * least[dead]
    wider = wanted.astype(np.float32)
    moved = wider > scale
    codes = np.where(moved[:, None], np.rint(codes * (scale / wider)[:, None]), codes)
    return codes.astype(np.int8), wider


def _bias(
    layer: Layer, outputs: int, shift: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """The bias in float64 [out] with the shift added; None where there is and needs none."""
    tensor = constant_of(layer.bias)
    if tensor is None:
        if shift is None or layer.kind == "MatMul" or not shift.any():
            return None
        return shift
    bias = np.broadcast_to(tensor.numpy().astype(np.float64).reshape(-1), (outputs,)).copy()
    if layer.kind == "Gemm":
        bias *= float_of(layer.node, "beta", 1.0)
    return bias if shift is None else bias + shift
