"""Operators that compute element by element, or along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.draft import Unwritable
from packlight.devices.litert.graph import (
    CHANNELS_LAST,
    NO_ACTIVATION,
    PICTURE,
    PLACE,
    Stored,
    Translation,
    clip_ends,
    ordered,
    shape_of,
    stored_in,
    turned,
)
from packlight.graph.rewrite.single import float_of, int_of
from packlight.graph.walk import constant_of

Write = Callable[[Translation, ir.Node], None]


def unary(name: str, options: str = "") -> Write:
    """What writes an operator of one input."""

    def write(to: Translation, node: ir.Node) -> None:
        last = to.is_last(node.inputs[0])
        number = to.read(node.inputs[0], last=last)
        made, _ = to.write(node, last=last)
        to.draft.operator(name, [number], [made], options)

    return write


def binary(name: str, options: str = "") -> Write:
    """What writes an operator of two inputs, whose axes are spread as ONNX says."""
    clamps = options in ("AddOptions", "SubOptions", "MulOptions", "DivOptions")

    def write(to: Translation, node: ir.Node) -> None:
        if len(node.inputs) != 2:
            raise Unwritable("it has more than two inputs")
        rank = len(shape_of(node.outputs[0]))
        last = rank == PICTURE and any(to.is_last(value) for value in node.inputs)
        inputs = [_spread(to, value, last=last) for value in node.inputs]
        made, activation = to.write(node, last=last, clamps=clamps)
        fields = {"fusedActivationFunction": activation} if clamps else {}
        to.draft.operator(name, inputs, [made], options, **fields)

    return write


def _spread(to: Translation, value: ir.Value | None, *, last: bool) -> int:
    """An input with as many axes as the others where channels come last."""
    rank = len(shape_of(value))
    if not last or rank == PICTURE:
        return to.read(value, last=last)
    found = stored_in(value)
    if value is None or found is None or found.quantization is not None or rank > PICTURE:
        raise Unwritable(f"tensor {value.name if value else ''!r} has fewer axes than the other")
    whole = Stored(found.array.reshape((1,) * (PICTURE - rank) + found.array.shape))
    return to.store(str(value.name), turned(whole, CHANNELS_LAST))


def computes_in_integers(to: Translation, node: ir.Node) -> bool:
    """Whether all that a node reads is codes, of whatever scale."""
    return all(to.quantization(value) is not None for value in node.inputs)


def clip(to: Translation, node: ir.Node) -> None:
    """Clip: an operator of its own for the usual ends, else the larger and the smaller number."""
    low, high = clip_ends(node)
    last = to.is_last(node.inputs[0])
    number = to.read(node.inputs[0], last=last)
    usual = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if (low, high) in usual:
        made, _ = to.write(node, last=last)
        to.draft.operator(usual[low, high], [number], [made])
        return
    ends = [("MAXIMUM", low), ("MINIMUM", high)]
    steps = [(name, end) for name, end in ends if np.isfinite(end)]
    if not steps:
        to.same(node, number=number, last=last)
        return
    shape = ordered(shape_of(node.outputs[0]), last=last)
    for place, (name, end) in enumerate(steps):
        whole = place == len(steps) - 1
        end_of = to.draft.constant("end", np.array(end, np.float32))
        if whole:
            made, _ = to.write(node, last=last)
        else:
            made = to.draft.tensor(f"{node.name}_low", shape, "float32")
        to.draft.operator(name, [number, end_of], [made], "MaximumMinimumOptions")
        number = made


def leaky_relu(to: Translation, node: ir.Node) -> None:
    """LeakyRelu."""
    last = to.is_last(node.inputs[0])
    number = to.read(node.inputs[0], last=last)
    made, _ = to.write(node, last=last)
    alpha = float_of(node, "alpha", 0.01)
    to.draft.operator("LEAKY_RELU", [number], [made], "LeakyReluOptions", alpha=alpha)


def softmax(to: Translation, node: ir.Node) -> None:
    """Softmax along the last axis, or along the channels of a picture."""
    rank = len(shape_of(node.inputs[0]))
    axis = int_of(node, "axis", -1) % rank
    last = rank == PICTURE and axis == 1
    if not last and axis != rank - 1:
        raise Unwritable("it runs along an axis that is not the last")
    number = to.read(node.inputs[0], last=last)
    made, _ = to.write(node, last=last)
    to.draft.operator("SOFTMAX", [number], [made], "SoftmaxOptions", beta=1.0)


def reduce(name: str) -> Write:
    """What writes a sum, mean or end along axes."""

    def write(to: Translation, node: ir.Node) -> None:
        rank = len(shape_of(node.inputs[0]))
        keep = bool(int_of(node, "keepdims", 1))
        attribute = node.attributes.get("axes")
        axes = [] if attribute is None else [*attribute.as_ints()]
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            tensor = constant_of(node.inputs[1])
            if tensor is None:
                raise Unwritable("its axes are computed while the model runs")
            axes = [int(axis) for axis in tensor.numpy().reshape(-1)]
        if not axes and int_of(node, "noop_with_empty_axes", 0):
            raise Unwritable("it reduces along no axis")
        axes = [axis % rank for axis in axes] or [*range(rank)]
        last = to.is_last(node.inputs[0]) and (keep or set(axes) >= {2, 3})
        number = to.read(node.inputs[0], last=last)
        places = to.numbers(sorted(PLACE[axis] if last else axis for axis in axes))
        made, _ = to.write(node, last=last and keep)
        to.draft.operator(name, [number, places], [made], "ReducerOptions", keepDims=keep)

    return write


def reciprocal(to: Translation, node: ir.Node) -> None:
    """Reciprocal: 1 divided by the input."""
    last = to.is_last(node.inputs[0])
    one = to.draft.constant("one", np.array(1, np.float32))
    number = to.read(node.inputs[0], last=last)
    made, _ = to.write(node, last=last)
    to.draft.operator(
        "DIV", [one, number], [made], "DivOptions", fusedActivationFunction=NO_ACTIVATION
    )
