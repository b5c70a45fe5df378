"""Operators that move values or put them together, and compute nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.draft import Unwritable
from packlight.devices.litert.graph import (
    PICTURE,
    PLACE,
    Translation,
    dtype_of,
    encoder_of,
    quantization_of,
    shape_of,
)
from packlight.graph.rewrite.single import int_of, text_of
from packlight.graph.walk import constant_of

_REFLECT = 0
"""The end itself is not repeated."""


def keeps_codes(to: Translation, node: ir.Node) -> bool:
    """Whether all that a node reads and gives is codes of the same numbers."""
    encoder = encoder_of(node)
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    found = [to.quantization(value) for value in values]
    if encoder is None or any(one is None for one in found):
        return False
    wanted = quantization_of(encoder)
    return all(one is not None and one.equals(wanted) for one in found)


def reshape(to: Translation, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same values in another shape."""
    source = node.inputs[0]
    given = shape_of(source)
    # With one channel, or one pixel, the order of the values is the same either way.
    either = len(given) == PICTURE and (given[1] == 1 or given[2:] == (1, 1))
    number = to.read(source, last=either and to.is_last(source))
    made, _ = to.write(node)
    wanted = shape_of(node.outputs[0])
    inputs = [number, to.numbers(wanted)]
    to.draft.operator("RESHAPE", inputs, [made], "ReshapeOptions", newShape=[*wanted])


def transpose(to: Translation, node: ir.Node) -> None:
    """Transpose; one that only undoes how a picture is held is none."""
    source = node.inputs[0]
    rank = len(shape_of(source))
    attribute = node.attributes.get("perm")
    order = tuple(range(rank))[::-1] if attribute is None else tuple(attribute.as_ints())
    last = to.is_last(source)
    if last:
        order = tuple(PLACE[axis] for axis in order)
    number = to.read(source, last=last)
    if order == tuple(range(rank)) and not to.integer:
        to.same(node, number=number)
        return
    made, _ = to.write(node)
    to.turn(number, made, order)


def concat(to: Translation, node: ir.Node) -> None:
    """Concat."""
    last = any(to.is_last(value) for value in node.inputs)
    axis = _axis(node, int_of(node, "axis", 0), last=last)
    inputs = [to.read(value, last=last) for value in node.inputs]
    made, _ = to.write(node, last=last)
    to.draft.operator("CONCATENATION", inputs, [made], "ConcatenationOptions", axis=axis)


def slice_(to: Translation, node: ir.Node) -> None:
    """Slice with constant ends, forwards."""
    given = shape_of(node.inputs[0])
    last = to.is_last(node.inputs[0])
    numbers = [_whole_numbers(node, place) for place in range(1, len(node.inputs))]
    starts, ends = numbers[0], numbers[1]
    axes = numbers[2] if len(numbers) > 2 and numbers[2] else [*range(len(starts))]
    steps = numbers[3] if len(numbers) > 3 and numbers[3] else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise Unwritable("it goes backwards")
    shape = [given[PLACE.index(axis)] for axis in range(len(given))] if last else [*given]
    begin, end, stride = [0] * len(given), [*shape], [1] * len(given)
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = _axis(node, axis, last=last)
        begin[place], end[place], _ = slice(start, stop).indices(shape[place])
        stride[place] = step
    inputs = [to.read(node.inputs[0], last=last), *map(to.numbers, (begin, end, stride))]
    made, _ = to.write(node, last=last)
    to.draft.operator("STRIDED_SLICE", inputs, [made], "StridedSliceOptions")


def split(to: Translation, node: ir.Node) -> None:
    """Split."""
    last = to.is_last(node.inputs[0])
    axis = int_of(node, "axis", 0)
    rank = len(shape_of(node.inputs[0]))
    sizes = [shape_of(value)[axis % rank] for value in node.outputs]
    place = to.draft.constant("axis", np.array(_axis(node, axis, last=last), np.int32))
    inputs = [to.read(node.inputs[0], last=last), to.numbers(sizes), place]
    made = [to.give(value, last=last) for value in node.outputs]
    to.draft.operator("SPLIT_V", inputs, made, "SplitVOptions", numSplits=len(made))


def pad(to: Translation, node: ir.Node) -> None:
    """Pad with one number, codes with the code of 0; or with what stands before the end."""
    mode = text_of(node, "mode", "constant")
    if mode not in ("constant", "reflect"):
        raise Unwritable(f"its mode {mode!r} is not written")
    source = node.inputs[0]
    rank = len(shape_of(source))
    pads = _whole_numbers(node, 1)
    axes = _whole_numbers(node, 3) if len(node.inputs) > 3 else []
    if any(one < 0 for one in pads):
        raise Unwritable("it cuts off instead of padding")
    last = to.is_last(source)
    ends = [[0, 0] for _ in range(rank)]
    for number, axis in enumerate(axes or range(rank)):
        half = len(pads) // 2
        ends[_axis(node, axis, last=last)] = [pads[number], pads[half + number]]
    filled = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    value = 0.0 if filled is None else float(filled.numpy().reshape(-1)[0])
    inputs = [to.read(source, last=last), to.numbers(ends)]
    assert source is not None
    in_codes = to.integer or dtype_of(source) == "int8"
    made, _ = to.write(node, last=last)
    if mode == "reflect":
        to.draft.operator("MIRROR_PAD", inputs, [made], "MirrorPadOptions", mode=_REFLECT)
    elif in_codes or value == 0.0:
        to.draft.operator("PAD", inputs, [made], "PadOptions")
    else:
        inputs.append(to.draft.constant("filled", np.array([value], dtype_of(source))))
        to.draft.operator("PADV2", inputs, [made], "PadV2Options")


def gather(to: Translation, node: ir.Node) -> None:
    """Gather."""
    places = node.inputs[1]
    tensor = constant_of(places)
    axis = int_of(node, "axis", 0) % max(len(shape_of(node.inputs[0])), 1)
    if tensor is not None:
        extent = shape_of(node.inputs[0])[axis]
        index = to.draft.constant("places", (tensor.numpy() % extent).astype(np.int32))
    else:
        index = to.read(places)
    inputs = [to.read(node.inputs[0]), index]
    made, _ = to.write(node)
    to.draft.operator("GATHER", inputs, [made], "GatherOptions", axis=axis)


def identity(to: Translation, node: ir.Node) -> None:
    """Identity, and Dropout when it is not trained."""
    to.same(node, last=to.is_last(node.inputs[0]))


def _axis(node: ir.Node, axis: int, *, last: bool) -> int:
    """Where an axis lies in the order at hand."""
    axis %= max(len(shape_of(node.inputs[0])), 1)
    return PLACE[axis] if last else axis


def _whole_numbers(node: ir.Node, place: int) -> list[int]:
    value = node.inputs[place]
    if value is None:
        return []
    tensor = constant_of(value)
    if tensor is None:
        raise Unwritable("its sizes are computed while the model runs")
    return [int(number) for number in tensor.numpy().reshape(-1)]
