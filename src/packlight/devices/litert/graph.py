"""A graph on its way into a LiteRT file: where each of its values is, and in which form.

LiteRT's kernels for pictures have channels last, ONNX has them second. A value of four axes is
held in the order in which its operator gave it, and turned where another is asked for. Between
DequantizeLinear and QuantizeLinear an operator computes in integers where LiteRT has such a
kernel; everywhere else both become operators of their own, so that the file computes what the
graph says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.devices.litert.draft import Draft, Quantization, Unwritable
from packlight.graph.rewrite.single import int_of, is_standard, static_shape
from packlight.graph.walk import constant_of

CHANNELS_LAST = (0, 2, 3, 1)
PLACE = (0, 3, 1, 2)
"""Where each axis of a picture lies with channels last: what turns it back."""

PICTURE = 4
"""Axes of one."""

NO_ACTIVATION, RELU, RELU6 = 0, 1, 3


@dataclass(frozen=True)
class Stored:
    """A constant: numbers, or codes with what they stand for."""

    array: NDArray[Any]
    quantization: Quantization | None = None


class Translation:
    """The graph's values as tensors of a draft.

    integer: whether the node at hand computes in integers: then its inputs are codes.
    done: nodes that are part of an operator which was written already.
    """

    def __init__(self) -> None:
        self.draft = Draft()
        self.integer = False
        self.done: set[ir.Node] = set()
        self._held: dict[ir.Value, dict[bool, int]] = {}
        self._quantizations: dict[ir.Value, Quantization] = {}
        self._stored: dict[tuple[ir.Value, tuple[int, ...], bool], int] = {}

    def begin(self, value: ir.Value) -> int:
        """The tensor of an input of the graph."""
        number = self.draft.tensor(_name(value), shape_of(value), dtype_of(value))
        self._held[value] = {False: number}
        return number

    # What a node reads ---------------------------------------------------------------------------

    def read(self, value: ir.Value | None, *, last: bool = False) -> int:
        """The tensor of a node's input: its codes where the node computes in integers."""
        if value is None:
            raise Unwritable("an input is left out that LiteRT needs")
        codes = codes_behind(value)
        return self.at(codes if self.integer and codes is not None else value, last=last)

    def at(self, value: ir.Value, *, last: bool = False) -> int:
        """The tensor of a value, with channels last or as ONNX has it."""
        held = self._held.get(value)
        if held is None:
            stored = stored_in(value)
            if stored is not None:
                rank = stored.array.ndim
                order = CHANNELS_LAST if last and rank == 4 else tuple(range(rank))
                return self.constant(value, order)
            codes = codes_behind(value)
            if codes is None:
                raise Unwritable(f"tensor {value.name!r} is not computed before it is read")
            held = self._held[value] = self._decoded(value, codes)
        if last not in held:
            (there,) = held.values()
            order = CHANNELS_LAST if last else PLACE
            target = ordered(shape_of(value), last=last)
            kind = dtype_of(value)
            made = self.draft.tensor(
                f"{_name(value)}_turned", target, kind, self._quantizations.get(value)
            )
            self.turn(there, made, order)
            held[last] = made
        return held[last]

    def turn(self, source: int, target: int, order: Sequence[int]) -> None:
        """Write a transposition."""
        axes = self.numbers(order)
        self.draft.operator("TRANSPOSE", [source, axes], [target], "TransposeOptions")

    def is_last(self, value: ir.Value | None) -> bool:
        """Whether a value is held with channels last only, so that this order costs nothing."""
        if value is None:
            return False
        codes = codes_behind(value)
        held = self._held.get(value) or (self._held.get(codes) if codes is not None else None)
        return held is not None and False not in held

    def constant(self, value: ir.Value, order: Sequence[int], *, codes: bool = False) -> int:
        """A constant with its axes in that order.

        codes: as it is stored; otherwise as the numbers that its codes stand for.
        """
        key = (value, tuple(order), codes)
        if key not in self._stored:
            found = stored_in(value)
            if found is None:
                raise Unwritable(f"tensor {value.name!r} is computed while the model runs")
            self._stored[key] = self.store(_name(value), turned(found, order), codes=codes)
        return self._stored[key]

    def store(self, name: str, found: Stored, *, codes: bool = False) -> int:
        """Add a constant, with an operator that makes numbers of codes and of 16-bit floats."""
        number = self.draft.constant(name, found.array, found.quantization)
        if codes or (found.quantization is None and found.array.dtype != np.float16):
            return number
        made = self.draft.tensor(f"{name}_numbers", found.array.shape, "float32")
        self.draft.operator("DEQUANTIZE", [number], [made], "DequantizeOptions")
        return made

    def numbers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> int:
        """A constant of whole numbers, which says axes or sizes."""
        return self.draft.constant("numbers", np.array(values, np.int32))

    def quantization(self, value: ir.Value | None) -> Quantization | None:
        """What the codes behind a value stand for; None where there are none."""
        codes = None if value is None else codes_behind(value)
        return None if codes is None else self._quantizations.get(codes)

    # What a node gives ---------------------------------------------------------------------------

    def write(self, node: ir.Node, *, last: bool = False, clamps: bool = False) -> tuple[int, int]:
        """The tensor for a node's result, and the clamp that is to be computed with it.

        last: it has channels last. clamps: the operator can clamp its result by itself.
        """
        value, activation = node.outputs[0], NO_ACTIVATION
        quantization = None
        if self.integer:
            encoder = encoder_of(node)
            assert encoder is not None
            value, quantization = encoder.outputs[0], quantization_of(encoder)
            self.done.add(encoder)
        elif clamps and (clamp := _clamp_behind(node)) is not None:
            activation, reader = clamp
            value = reader.outputs[0]
            self.done.add(reader)
        elif (source := node.inputs[0]) is not None and dtype_of(value) == "int8":
            quantization = self._quantizations.get(source)
        return self.give(value, last=last, quantization=quantization), activation

    def give(
        self, value: ir.Value, *, last: bool = False, quantization: Quantization | None = None
    ) -> int:
        """A tensor for a value that is about to be computed."""
        shape = ordered(shape_of(value), last=last)
        number = self.draft.tensor(_name(value), shape, dtype_of(value), quantization)
        self._held[value] = {last: number}
        if quantization is not None:
            self._quantizations[value] = quantization
        return number

    def same(self, node: ir.Node, *, number: int | None = None, last: bool = False) -> None:
        """Let a node's result be its input, or a tensor that there is already."""
        source = node.inputs[0]
        assert source is not None
        found = self.read(source, last=last) if number is None else number
        self._held[node.outputs[0]] = {last: found}

    def encode(self, node: ir.Node) -> None:
        """Write a QuantizeLinear by itself."""
        source = node.inputs[0]
        assert source is not None
        last = self.is_last(source)
        number = self.at(source, last=last)
        made = self.give(node.outputs[0], last=last, quantization=quantization_of(node))
        self.draft.operator("QUANTIZE", [number], [made], "QuantizeOptions")

    def _decoded(self, value: ir.Value, codes: ir.Value) -> dict[bool, int]:
        """The numbers that codes stand for."""
        last = self.is_last(codes)
        number = self.at(codes, last=last)
        made = self.give(value, last=last)
        self.draft.operator("DEQUANTIZE", [number], [made], "DequantizeOptions")
        return self._held[value]


def codes_behind(value: ir.Value) -> ir.Value | None:
    """The codes that a DequantizeLinear decodes into `value`; None where they are constant."""
    node = value.producer()
    if node is None or not is_standard(node, "DequantizeLinear"):
        return None
    return None if constant_of(node.inputs[0]) is not None else node.inputs[0]


def encoder_of(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads a node's result."""
    uses = tuple(node.outputs[0].uses())
    if len(node.outputs) != 1 or len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    return uses[0].node if is_standard(uses[0].node, "QuantizeLinear") else None


def quantization_of(node: ir.Node) -> Quantization:
    """The scale and zero point of a QuantizeLinear or DequantizeLinear."""
    scale = constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or (len(node.inputs) > 2 and zero is None):
        raise Unwritable("its scale is computed while the model runs")
    factors = scale.numpy().astype(np.float32).reshape(-1)
    zeros = np.zeros(factors.size, np.int64)
    if zero is not None:
        zeros = zero.numpy().astype(np.int64).reshape(-1)
    if int_of(node, "block_size", 0):
        raise Unwritable("its scales are of blocks, which LiteRT has none of")
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 1
    axis = int_of(node, "axis", 1) % max(rank, 1) if factors.size > 1 else 0
    return Quantization(factors, zeros, axis)


def stored_in(value: ir.Value | None) -> Stored | None:
    """The constant that a value is: plain, as codes, or as 16-bit floats."""
    if value is None:
        return None
    tensor = constant_of(value)
    if tensor is not None:
        return Stored(tensor.numpy())
    node = value.producer()
    if node is None or not is_standard(node, "DequantizeLinear", "Cast"):
        return None
    inner = constant_of(node.inputs[0])
    if inner is None:
        return None
    if node.op_type == "DequantizeLinear":
        return Stored(inner.numpy(), quantization_of(node))
    whole = inner.dtype == ir.DataType.FLOAT16 and value.dtype == ir.DataType.FLOAT
    return Stored(inner.numpy()) if whole else None


def turned(found: Stored, order: Sequence[int]) -> Stored:
    """A constant with its axes in another order."""
    one = found.quantization
    if one is not None and one.scale.size > 1:
        one = Quantization(one.scale, one.zero, tuple(order).index(one.axis))
    return Stored(np.ascontiguousarray(found.array.transpose(order)), one)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The axes of a value, all of which must be known."""
    shape = static_shape(value)
    if shape is None:
        name = "" if value is None else value.name
        raise Unwritable(f"the shape of tensor {name!r} depends on what the model is fed with")
    return shape


def ordered(shape: Sequence[int], *, last: bool) -> tuple[int, ...]:
    """A shape as ONNX has it, with channels last where that is said."""
    return tuple(shape[axis] for axis in CHANNELS_LAST) if last else tuple(shape)


def is_read(value: ir.Value) -> bool:
    """Whether anybody wants a value."""
    return bool(value.uses()) or value.is_graph_output()


def dtype_of(value: ir.Value) -> str:
    """NumPy's name of a value's type."""
    return "float32" if value.dtype is None else str(value.dtype.numpy().name)


def _clamp_behind(node: ir.Node) -> tuple[int, ir.Node] | None:
    """A Relu, or a Clip from 0 to 6, that alone reads a node's result."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader = uses[0].node
    if is_standard(reader, "Relu"):
        return RELU, reader
    if is_standard(reader, "Clip") and uses[0].idx == 0 and clip_ends(reader) == (0.0, 6.0):
        return RELU6, reader
    return None


def clip_ends(node: ir.Node) -> tuple[float, float]:
    """The ends of a Clip, infinite where it has none."""
    ends = [-np.inf, np.inf]
    for place, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        tensor = constant_of(value)
        if tensor is None:
            raise Unwritable("its ends are computed while the model runs")
        ends[place] = float(tensor.numpy().reshape(()))
    return ends[0], ends[1]


def _name(value: ir.Value) -> str:
    return str(value.name)
