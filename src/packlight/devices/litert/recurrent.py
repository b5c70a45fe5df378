"""LSTM and GRU, step by step: LiteRT's own have other states, and give none of them.

With gates i, o, f, c (LSTM) and z, r, h (GRU) as ONNX orders them, and the products of all inputs
made at once, each step multiplies the last state [1, batch, hidden] with the recurrent weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.draft import Unwritable
from packlight.devices.litert.graph import Stored, Translation, is_read, shape_of, stored_in
from packlight.devices.litert.steps import Steps
from packlight.graph.rewrite.single import int_of, text_of
from packlight.graph.walk import constant_of

MOST_STEPS = 256
"""Each step is about fifteen operators of the file."""

_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


@dataclass(frozen=True)
class _Direction:
    """One way through the sequence. inputs: of each step, times its weights, with all biases that
    belong there. recurrent, bias: of the state. hidden, cell: states before the first step.
    """

    steps: Steps
    inputs: Sequence[int]
    recurrent: int
    bias: int
    hidden: int
    cell: int
    resets_after: bool


def lstm(to: Translation, node: ir.Node) -> None:
    """LSTM without peepholes: c = f c + i g and h = o tanh(c)."""
    if len(node.inputs) > 7 and node.inputs[7] is not None:
        raise Unwritable("it has peepholes")
    if int_of(node, "input_forget", 0):
        raise Unwritable("its gates are coupled")
    _unroll(to, node, 4, _lstm_step)


def gru(to: Translation, node: ir.Node) -> None:
    """GRU: h = (1 - z) g + z h, where g sees what r leaves of the state, before or after its
    product.
    """
    _unroll(to, node, 3, _gru_step)


def _lstm_step(way: _Direction, x: int, hidden: int, cell: int) -> tuple[int, int]:
    steps = way.steps
    gates = steps.connect(hidden, way.recurrent, way.bias, 4)
    i, o, f, g = steps.split(steps.binary("ADD", x, gates, times=4), 4)
    i, o, f = (steps.unary("LOGISTIC", one) for one in (i, o, f))
    kept = steps.binary("MUL", f, cell)
    cell = steps.binary("ADD", kept, steps.binary("MUL", i, steps.unary("TANH", g)))
    return steps.binary("MUL", o, steps.unary("TANH", cell)), cell


def _gru_step(way: _Direction, x: int, hidden: int, cell: int) -> tuple[int, int]:
    steps = way.steps
    xz, xr, xg = steps.split(x, 3)
    hz, hr, hg = steps.split(steps.connect(hidden, way.recurrent, way.bias, 3), 3)
    z = steps.unary("LOGISTIC", steps.binary("ADD", xz, hz))
    r = steps.unary("LOGISTIC", steps.binary("ADD", xr, hr))
    if way.resets_after:
        past = steps.binary("MUL", r, hg)
    else:
        left = steps.binary("MUL", r, hidden)
        past = steps.split(steps.connect(left, way.recurrent, way.bias, 3), 3)[2]
    g = steps.unary("TANH", steps.binary("ADD", xg, past))
    gap = steps.binary("MUL", z, steps.binary("SUB", hidden, g))
    return steps.binary("ADD", g, gap), cell


def _unroll(
    to: Translation,
    node: ir.Node,
    gates: int,
    step: Callable[[_Direction, int, int, int], tuple[int, int]],
) -> None:
    """Write all steps of all directions, and the outputs that somebody reads."""
    word = text_of(node, "direction", "forward")
    length, batch, _ = shape_of(node.inputs[0])
    count = 2 if word == "bidirectional" else 1
    _check(node, length, count)
    hidden = int_of(node, "hidden_size", shape_of(node.inputs[2])[-1])
    steps = Steps(to, node, (1, batch, hidden))
    every: list[list[int]] = []
    ends: list[tuple[int, int]] = []
    for number in range(count):
        way = _direction(to, node, steps, number, count, gates, length)
        backwards = word == "reverse" or number == 1
        state, cell, seen = way.hidden, way.cell, []
        for x in reversed(way.inputs) if backwards else way.inputs:
            state, cell = step(way, x, state, cell)
            seen.append(state)
        every.append(seen[::-1] if backwards else seen)
        ends.append((state, cell))
    outputs = {place: value for place, value in enumerate(node.outputs) if is_read(value)}
    if 0 in outputs:
        ways = [steps.concat(seen, 0, (length, batch, hidden)) for seen in every]
        shape = (length, 1, batch, hidden)
        ways = [steps.reshape(one, shape) for one in ways]
        steps.concat(ways, 1, (length, count, batch, hidden), out=to.give(outputs[0]))
    for place in (1, 2):
        if place in outputs:
            states = [one[place - 1] for one in ends]
            steps.concat(states, 0, (count, batch, hidden), out=to.give(outputs[place]))


def _direction(
    to: Translation,
    node: ir.Node,
    steps: Steps,
    number: int,
    count: int,
    gates: int,
    length: int,
) -> _Direction:
    hidden = steps.shape[-1]
    width = gates * hidden
    bias = np.zeros((count, 2 * width), np.float32)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        stored = stored_in(node.inputs[3])
        if stored is None or stored.quantization is not None:
            raise Unwritable("its bias is computed while the model runs")
        bias = stored.array.astype(np.float32)
    of_inputs, of_state = bias[number, :width], bias[number, width:]
    x = steps.connect(
        to.read(node.inputs[0]),
        _matrix(to, node, 1, number, count),
        to.store(f"{node.name}_input_bias", Stored(of_inputs)),
        gates,
        length=length,
    )
    inputs = steps.split(x, length, axis=0, times=gates)
    return _Direction(
        steps,
        inputs,
        _matrix(to, node, 2, number, count),
        to.store(f"{node.name}_state_bias", Stored(of_state)),
        _state(to, node, steps, 5, number, count),
        _state(to, node, steps, 6, number, count),
        bool(int_of(node, "linear_before_reset", 0)),
    )


def _matrix(to: Translation, node: ir.Node, place: int, number: int, count: int) -> int:
    """The weights of a direction, [gates * hidden, in]."""
    value = node.inputs[place]
    stored = stored_in(value)
    if stored is not None and stored.quantization is None:
        return to.store(f"{node.name}_{place}", Stored(np.ascontiguousarray(stored.array[number])))
    if count > 1:
        raise Unwritable("its weights are codes of two directions")
    shape = shape_of(value)[1:]
    return Steps(to, node, shape).reshape(to.read(value), shape)


def _state(
    to: Translation, node: ir.Node, steps: Steps, place: int, number: int, count: int
) -> int:
    """A state before the first step, [1, batch, hidden]; zeros where none is given."""
    if len(node.inputs) <= place or node.inputs[place] is None:
        return to.store(f"{node.name}_zeros", Stored(np.zeros(steps.shape, np.float32)))
    given = to.read(node.inputs[place])
    if count == 1:
        return given
    return steps.split(given, count, axis=0)[number]


def _check(node: ir.Node, length: int, count: int) -> None:
    """Refuse what the steps do not compute."""
    names = node.attributes.get("activations")
    if names is not None and [*names.as_strings()] != _USUAL[node.op_type] * count:
        raise Unwritable("its activations are not the usual ones")
    if "clip" in node.attributes:
        raise Unwritable("its gates are clipped")
    if int_of(node, "layout", 0):
        raise Unwritable("its batch comes first")
    if length > MOST_STEPS:
        raise Unwritable(f"its sequence has {length} steps; up to {MOST_STEPS} are written")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        known = constant_of(node.inputs[4])
        if known is None or (known.numpy() != length).any():
            raise Unwritable("its sequences may differ in length")
