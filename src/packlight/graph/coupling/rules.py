"""The literal table of rules: what each operator does with channels."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from packlight.graph.coupling import layers, layout, pointwise
from packlight.graph.coupling.links import Links

Rule = Callable[[Links, ir.Node], None]


def _each(operators: str, rule: Rule, domain: str = "") -> dict[tuple[str, str], Rule]:
    return {(domain, operator): rule for operator in operators.split()}


RULES: dict[tuple[str, str], Rule] = {
    **_each(
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr "
        "BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor "
        "Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less "
        "LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round "
        "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
        "ThresholdedRelu Where Xor",
        pointwise.elementwise,
    ),
    **_each("BiasGelu FastGelu Gelu QuickGelu", pointwise.elementwise, "com.microsoft"),
    **_each("Softmax LogSoftmax Hardmax", pointwise.over_axis(-1, behind_until=13)),
    **_each("LpNormalization", pointwise.over_axis(-1)),
    **_each("LRN", pointwise.over_axis(1)),
    **_each("LayerNormalization RMSNormalization", pointwise.from_axis(-1)),
    **_each("SimplifiedLayerNormalization", pointwise.from_axis(-1)),
    **_each(
        "SkipLayerNormalization SkipSimplifiedLayerNormalization",
        pointwise.from_axis(-1),
        "com.microsoft",
    ),
    **_each("BatchNormalization InstanceNormalization", pointwise.per_channel),
    **_each("GroupNormalization", pointwise.group_norm),
    **_each(
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", pointwise.pool
    ),
    **_each("GridSample", pointwise.sample_grid),
    **_each("Resize Upsample", pointwise.resize),
    **_each(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare",
        pointwise.reduce,
    ),
    **_each("ArgMax ArgMin", pointwise.arg_reduce),
    **_each("Trilu", pointwise.last_two),
    **_each("Constant Range RandomNormal RandomUniform", pointwise.nothing),
    **_each("Conv", layers.conv),
    **_each("ConvTranspose", layers.conv_transpose),
    **_each("GRU LSTM RNN", layers.recurrent),
    **_each("Gemm", layers.gemm),
    **_each("MatMul", layers.matmul),
    **_each("Concat", layout.concat),
    **_each("ConstantOfShape", layout.constant_of_shape),
    **_each("DepthToSpace", layout.depth_to_space),
    **_each("Expand", layout.expand),
    **_each("Flatten", layout.flatten),
    **_each("Gather", layout.gather),
    **_each("Pad", layout.pad),
    **_each("Reshape", layout.reshape),
    **_each("Shape", layout.shape),
    **_each("Slice", layout.slice_),
    **_each("SpaceToDepth", layout.space_to_depth),
    **_each("Split", layout.split),
    **_each("Squeeze", layout.squeeze),
    **_each("Tile", layout.tile),
    **_each("Transpose", layout.transpose),
    **_each("Unsqueeze", layout.unsqueeze),
}
