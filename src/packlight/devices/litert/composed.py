"""Operators that LiteRT does not have, made of several that it has."""

from __future__ import annotations

import onnx_ir as ir

from packlight.devices.litert.draft import Unwritable
from packlight.devices.litert.graph import Translation, dtype_of, is_read, ordered, shape_of
from packlight.devices.litert.steps import Steps
from packlight.graph.rewrite.single import float_of, int_of, text_of

_ERF = (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""p and a1 to a5 of formula 7.1.26 of Abramowitz and Stegun (1964), exact to 1.5e-7."""


def layer_normalization(to: Translation, node: ir.Node) -> None:
    """LayerNormalization: (x - mean) / sqrt(variance + epsilon) * scale + bias."""
    source = node.inputs[0]
    shape = shape_of(source)
    if any(map(is_read, node.outputs[1:])):
        raise Unwritable("it also gives the mean or the deviation")
    if source is None or dtype_of(source) != "float32":
        raise Unwritable("only 32-bit floats are normalized")
    first = int_of(node, "axis", -1) % len(shape)
    axes = [*range(first, len(shape))]
    x, steps = to.read(source), Steps(to, node, shape)
    of_rows = Steps(to, node, [*shape[:first], *([1] * len(axes))])
    centred = steps.binary("SUB", x, steps.mean(x, axes))
    variance = steps.mean(steps.binary("MUL", centred, centred), axes)
    epsilon = of_rows.number(float_of(node, "epsilon", 1e-5))
    inverse = of_rows.unary("RSQRT", of_rows.binary("ADD", variance, epsilon))
    normal, scale = steps.binary("MUL", centred, inverse), to.read(node.inputs[1])
    if len(node.inputs) < 3 or node.inputs[2] is None:
        steps.binary("MUL", normal, scale, out=to.write(node)[0])
    else:
        scaled, bias = steps.binary("MUL", normal, scale), to.read(node.inputs[2])
        steps.binary("ADD", scaled, bias, out=to.write(node)[0])


def erf(to: Translation, node: ir.Node) -> None:
    """Erf: sign(x) (1 - (a1 t + ... + a5 t^5) exp(-x^2)) with t = 1 / (1 + p |x|)."""
    source = node.inputs[0]
    last = to.is_last(source)
    shape = ordered(shape_of(source), last=last)
    x, steps = to.read(source, last=last), Steps(to, node, shape)
    one, (p, *factors) = steps.number(1.0), _ERF
    size = steps.unary("ABS", x, "AbsOptions")
    t = steps.binary("ADD", steps.binary("MUL", size, steps.number(p)), one)
    t = steps.binary("DIV", one, t)
    total = steps.number(factors[-1])
    for factor in reversed(factors[:-1]):
        total = steps.binary("ADD", steps.binary("MUL", t, total), steps.number(factor))
    total = steps.binary("MUL", t, total)
    square = steps.unary("NEG", steps.binary("MUL", x, x), "NegOptions")
    fall = steps.unary("EXP", square, "ExpOptions")
    upper = steps.binary("SUB", one, steps.binary("MUL", total, fall))
    made, _ = to.write(node, last=last)
    steps.binary("MUL", steps.unary("SIGN", x, "SignOptions"), upper, out=made)


def gelu(to: Translation, node: ir.Node) -> None:
    """Gelu, which LiteRT has, exact or by the hyperbolic tangent."""
    word = text_of(node, "approximate", "none")
    last = to.is_last(node.inputs[0])
    number = to.read(node.inputs[0], last=last)
    made, _ = to.write(node, last=last)
    to.draft.operator("GELU", [number], [made], "GeluOptions", approximate=word == "tanh")
