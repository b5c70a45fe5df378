"""The operators that are written, and which of them LiteRT computes in 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from packlight.devices.litert import arithmetic, linear, moves, windows
from packlight.devices.litert.graph import Translation

OPERATORS: dict[str, Callable[[Translation, ir.Node], None]] = {
    "Abs": arithmetic.unary("ABS", "AbsOptions"),
    "Add": arithmetic.binary("ADD", "AddOptions"),
    "AveragePool": windows.average_pool,
    "Cast": arithmetic.unary("CAST"),
    "Ceil": arithmetic.unary("CEIL"),
    "Clip": arithmetic.clip,
    "Concat": moves.concat,
    "Conv": windows.conv,
    "Cos": arithmetic.unary("COS", "CosOptions"),
    "DepthToSpace": windows.depth_to_space,
    "Div": arithmetic.binary("DIV", "DivOptions"),
    "Dropout": moves.identity,
    "Exp": arithmetic.unary("EXP", "ExpOptions"),
    "Flatten": moves.reshape,
    "Floor": arithmetic.unary("FLOOR"),
    "Gather": moves.gather,
    "Gemm": linear.gemm,
    "GlobalAveragePool": windows.global_average_pool,
    "HardSwish": arithmetic.unary("HARD_SWISH", "HardSwishOptions"),
    "Identity": moves.identity,
    "LeakyRelu": arithmetic.leaky_relu,
    "Log": arithmetic.unary("LOG"),
    "MatMul": linear.mat_mul,
    "Max": arithmetic.binary("MAXIMUM", "MaximumMinimumOptions"),
    "MaxPool": windows.max_pool,
    "Min": arithmetic.binary("MINIMUM", "MaximumMinimumOptions"),
    "Mul": arithmetic.binary("MUL", "MulOptions"),
    "Neg": arithmetic.unary("NEG", "NegOptions"),
    "Pad": moves.pad,
    "Pow": arithmetic.binary("POW", "PowOptions"),
    "PRelu": arithmetic.binary("PRELU"),
    "Reciprocal": arithmetic.reciprocal,
    "ReduceMax": arithmetic.reduce("REDUCE_MAX"),
    "ReduceMean": arithmetic.reduce("MEAN"),
    "ReduceMin": arithmetic.reduce("REDUCE_MIN"),
    "ReduceSum": arithmetic.reduce("SUM"),
    "Relu": arithmetic.unary("RELU"),
    "Reshape": moves.reshape,
    "Resize": windows.resize,
    "Sigmoid": arithmetic.unary("LOGISTIC"),
    "Sin": arithmetic.unary("SIN"),
    "Slice": moves.slice_,
    "Softmax": arithmetic.softmax,
    "Split": moves.split,
    "Sqrt": arithmetic.unary("SQRT"),
    "Squeeze": moves.reshape,
    "Sub": arithmetic.binary("SUB", "SubOptions"),
    "Tanh": arithmetic.unary("TANH"),
    "Transpose": moves.transpose,
    "Unsqueeze": moves.reshape,
}

IN_INTEGERS: dict[str, Callable[[Translation, ir.Node], bool]] = {
    "Add": arithmetic.computes_in_integers,
    "AveragePool": moves.keeps_codes,
    "Concat": moves.keeps_codes,
    "Conv": windows.layer_in_integers,
    "DepthToSpace": moves.keeps_codes,
    "Flatten": moves.keeps_codes,
    "Gemm": windows.layer_in_integers,
    "GlobalAveragePool": arithmetic.computes_in_integers,
    "LeakyRelu": arithmetic.computes_in_integers,
    "MatMul": windows.layer_in_integers,
    "MaxPool": moves.keeps_codes,
    "Mul": arithmetic.computes_in_integers,
    "Pad": moves.keeps_codes,
    "Reshape": moves.keeps_codes,
    "Slice": moves.keeps_codes,
    "Squeeze": moves.keeps_codes,
    "Transpose": moves.keeps_codes,
    "Unsqueeze": moves.keeps_codes,
}
"""By operator, whether a node between codes has a kernel that reads and gives codes."""
