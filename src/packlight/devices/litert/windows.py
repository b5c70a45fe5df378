"""Convolutions, pools and resizes: operators on pictures, whose channels LiteRT has last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.draft import Quantization, Unwritable
from packlight.devices.litert.graph import (
    NO_ACTIVATION,
    PICTURE,
    Stored,
    Translation,
    dtype_of,
    ordered,
    shape_of,
    stored_in,
)
from packlight.graph.patches import conv_pads, ints
from packlight.graph.rewrite.single import int_of, text_of

_SAME, _VALID = 0, 1
_AFTER_PADDING = "its result has another size than LiteRT would give it"


def conv(to: Translation, node: ir.Node) -> None:
    """Conv: CONV_2D, or DEPTHWISE_CONV_2D where every channel has filters of its own."""
    source, weight = node.inputs[0], node.inputs[1]
    given, filters = shape_of(source), shape_of(weight)
    if len(given) != PICTURE or source is None or weight is None:
        raise Unwritable("only convolutions of two dimensions are written")
    groups = int_of(node, "group", 1)
    dilations = ints(node, "dilations", [1, 1])
    strides = ints(node, "strides", [1, 1])
    number, padding = _padded(to, node, filters[2:], strides, dilations)
    depthwise = groups > 1 and groups == given[1]
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    inputs = [
        number,
        to.constant(weight, order, codes=to.integer),
        bias_of(to, node, filters[0]),
    ]
    made, activation = to.write(node, last=True, clamps=True)
    options = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": activation,
    }
    if depthwise:
        options["depthMultiplier"] = filters[0] // groups
        to.draft.operator("DEPTHWISE_CONV_2D", inputs, [made], "DepthwiseConv2DOptions", **options)
    else:
        to.draft.operator("CONV_2D", inputs, [made], "Conv2DOptions", **options)


def conv_transpose(to: Translation, node: ir.Node) -> None:
    """ConvTranspose: TRANSPOSE_CONV without padding, from which what is padded is cut off."""
    source, weight = node.inputs[0], node.inputs[1]
    given, wanted, filters = shape_of(source), shape_of(node.outputs[0]), shape_of(weight)
    if len(given) != PICTURE or weight is None:
        raise Unwritable("only convolutions of two dimensions are written")
    strides = ints(node, "strides", [1, 1])
    if int_of(node, "group", 1) != 1 or any(one != 1 for one in ints(node, "dilations", [1, 1])):
        raise Unwritable("it has groups or gaps, which LiteRT's has not")
    if "output_shape" in node.attributes or text_of(node, "auto_pad", "NOTSET") != "NOTSET":
        raise Unwritable("its padding is not said in numbers")
    before = ints(node, "pads", [0, 0, 0, 0])[:2]
    whole = [(n - 1) * step + k for n, step, k in zip(given[2:], strides, filters[2:], strict=True)]
    if any(b + n > w for b, n, w in zip(before, wanted[2:], whole, strict=True)):
        raise Unwritable("its result is larger than LiteRT would give it")
    shape = [given[0], *whole, wanted[1]]
    inputs = [
        to.numbers(shape),
        to.constant(weight, (1, 2, 3, 0)),
        to.read(source, last=True),
        bias_of(to, node, wanted[1]),
    ]
    cut = [*wanted[2:]] != whole
    made = (
        to.draft.tensor(f"{node.name}_whole", shape, "float32")
        if cut
        else to.write(node, last=True)[0]
    )
    options = {"padding": _VALID, "strideH": strides[0], "strideW": strides[1]}
    to.draft.operator("TRANSPOSE_CONV", inputs, [made], "TransposeConvOptions", **options)
    if cut:
        ends = [to.numbers([0, *before, 0]), to.numbers([given[0], *wanted[2:], wanted[1]])]
        kept, _ = to.write(node, last=True)
        to.draft.operator("SLICE", [made, *ends], [kept], "SliceOptions")


def bias_of(to: Translation, node: ir.Node, outputs: int) -> int:
    """The bias of a layer, zeros where it has none; int32 codes where it computes in integers."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    found = Stored(np.zeros(outputs, np.float32)) if value is None else stored_in(value)
    if found is None:
        raise Unwritable("its bias is computed while the model runs")
    name = f"{node.name}_bias" if value is None else str(value.name)
    numbers = np.broadcast_to(found.array.reshape(-1), (outputs,))
    if not to.integer:
        if found.quantization is not None:
            numbers = numbers * found.quantization.scale.astype(np.float64)
        return to.store(name, Stored(numbers.astype(np.float32)))
    reads = to.quantization(node.inputs[0])
    weight = stored_in(node.inputs[1])
    assert reads is not None and weight is not None and weight.quantization is not None
    scale = np.broadcast_to(reads.scale * weight.quantization.scale, (outputs,))
    if found.quantization is None:  # as onnxruntime rounds a bias of floats
        numbers = np.rint(numbers / scale).clip(-(2**31), 2**31 - 1)
    steps = Quantization(scale.astype(np.float32), np.zeros(outputs, np.int64))
    return to.store(name, Stored(numbers.astype(np.int32), steps), codes=True)


def layer_in_integers(to: Translation, node: ir.Node) -> bool:
    """Whether a layer's weights are symmetric int8 codes, and its bias, if any, is constant."""
    weight = stored_in(node.inputs[1])
    if weight is None or weight.quantization is None or weight.array.dtype != np.int8:
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = None if value is None else stored_in(value)
    known = value is None or (
        bias is not None and (bias.quantization is None or bias.array.dtype == np.int32)
    )
    return known and not weight.quantization.zero.any()


def max_pool(to: Translation, node: ir.Node) -> None:
    """MaxPool."""
    if int_of(node, "storage_order", 0) or len(node.outputs) > 1:
        raise Unwritable("it also gives the places of the largest values")
    lowest = -128.0 if to.integer else float(np.finfo(np.float32).min)
    _pool(to, node, "MAX_POOL_2D", lowest)


def average_pool(to: Translation, node: ir.Node) -> None:
    """AveragePool; what was padded counts where the node says so."""
    _pool(to, node, "AVERAGE_POOL_2D", 0.0 if int_of(node, "count_include_pad", 0) else None)


def _pool(to: Translation, node: ir.Node, name: str, filled: float | None) -> None:
    window = ints(node, "kernel_shape", [])
    if len(shape_of(node.inputs[0])) != PICTURE or len(window) != 2:
        raise Unwritable("only pools of two dimensions are written")
    strides, dilations = ints(node, "strides", [1, 1]), ints(node, "dilations", [1, 1])
    if any(one != 1 for one in dilations):
        raise Unwritable("its window has gaps, which LiteRT's have not")
    number, padding = _padded(to, node, window, strides, dilations, filled=filled)
    made, _ = to.write(node, last=True)
    to.draft.operator(
        name,
        [number],
        [made],
        "Pool2DOptions",
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=window[0],
        filterWidth=window[1],
        fusedActivationFunction=NO_ACTIVATION,
    )


def global_average_pool(to: Translation, node: ir.Node) -> None:
    """GlobalAveragePool: the mean over height and width."""
    if len(shape_of(node.inputs[0])) != PICTURE:
        raise Unwritable("only pools of two dimensions are written")
    inputs = [to.read(node.inputs[0], last=True), to.numbers([1, 2])]
    made, _ = to.write(node, last=True)
    to.draft.operator("MEAN", inputs, [made], "ReducerOptions", keepDims=True)


def resize(to: Translation, node: ir.Node) -> None:
    """Resize of height and width, by the nearest or between neighbours."""
    given, wanted = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    mode, places = text_of(node, "mode", "nearest"), "coordinate_transformation_mode"
    where = text_of(node, places, "half_pixel").replace("pytorch_half_pixel", "half_pixel")
    nearest = text_of(node, "nearest_mode", "round_prefer_floor")
    if len(given) != PICTURE or given[:2] != wanted[:2]:
        raise Unwritable("only height and width are resized")
    options = {"alignCorners": where == "align_corners", "halfPixelCenters": where == "half_pixel"}
    known = where in ("half_pixel", "align_corners", "asymmetric")
    if mode == "nearest":
        # LiteRT's is floor(x / scale). Enlarged a whole number of times every pixel is repeated,
        # also where half pixels are counted from and what is nearest is rounded.
        whole = all(after % before == 0 for before, after in zip(given, wanted, strict=True))
        repeats = whole and where == "half_pixel" and nearest.startswith("round")
        known = repeats or (where == "asymmetric" and nearest == "floor")
        options["halfPixelCenters"] = False
    if not known or mode not in ("nearest", "linear"):
        raise Unwritable(f"its mode ({mode}, {where}, {nearest}) is none of LiteRT's")
    name = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    kind = "ResizeNearestNeighborOptions" if mode == "nearest" else "ResizeBilinearOptions"
    inputs = [to.read(node.inputs[0], last=True), to.numbers(wanted[2:])]
    made, _ = to.write(node, last=True)
    to.draft.operator(name, inputs, [made], kind, **options)


def depth_to_space(to: Translation, node: ir.Node) -> None:
    """DepthToSpace with the channels of a pixel together."""
    if text_of(node, "mode", "DCR") != "DCR":
        raise Unwritable("its mode CRD is none of LiteRT's")
    number = to.read(node.inputs[0], last=True)
    made, _ = to.write(node, last=True)
    size = int_of(node, "blocksize", 1)
    to.draft.operator("DEPTH_TO_SPACE", [number], [made], "DepthToSpaceOptions", blockSize=size)


def _padded(
    to: Translation,
    node: ir.Node,
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    filled: float | None = 0.0,
) -> tuple[int, int]:
    """The input with channels last and what is padded by itself, and LiteRT's word for the rest.

    filled: what stands in the padding; None: it does not count.
    """
    source = node.inputs[0]
    given, wanted = shape_of(source)[2:], shape_of(node.outputs[0])[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    pads = conv_pads(node, given, tuple(window), [*strides], [*dilations])
    before, after = pads[:2], pads[2:]
    number = to.read(source, last=True)
    same = [
        max((-(-size // step) - 1) * step + span - size, 0)
        for size, step, span in zip(given, strides, reach, strict=True)
    ]
    if (before, after) == ([n // 2 for n in same], [n - n // 2 for n in same]) and any(same):
        return number, _SAME
    if filled is not None and filled < 0:  # of the largest only: what is beyond never counts
        after = [
            max(a, (out - 1) * step + span - n - b)
            for a, out, step, span, n, b in zip(
                after, wanted, strides, reach, given, before, strict=True
            )
        ]
    sizes = zip(given, before, after, reach, strides, strict=True)
    if tuple((n + a + b - span) // step + 1 for n, a, b, span, step in sizes) != wanted:
        raise Unwritable(_AFTER_PADDING)
    if not any((*before, *after)):
        return number, _VALID
    if filled is None:
        raise Unwritable("its padding does not count and is not LiteRT's")
    return _pad_picture(to, node, number, before, after, filled), _VALID


def _pad_picture(
    to: Translation,
    node: ir.Node,
    number: int,
    before: Sequence[int],
    after: Sequence[int],
    filled: float,
) -> int:
    source = node.inputs[0]
    assert source is not None
    shape = ordered(shape_of(source), last=True)
    ends = [(0, 0), *zip(before, after, strict=True), (0, 0)]
    grown = [extent + sum(end) for extent, end in zip(shape, ends, strict=True)]
    kept = to.quantization(source) if to.integer else None
    kind = "int8" if to.integer else dtype_of(source)
    made = to.draft.tensor(f"{node.name}_padded", grown, kind, kept)
    if filled == 0.0:  # in codes the zero point, which the operator sees to
        to.draft.operator("PAD", [number, to.numbers(ends)], [made], "PadOptions")
    else:
        lowest = to.draft.constant("lowest", np.array([filled], np.dtype(kind)), kept)
        to.draft.operator("PADV2", [number, to.numbers(ends), lowest], [made], "PadV2Options")
    return made
