"""Which constants of a graph are weights that training may move."""

from __future__ import annotations

import onnx_ir as ir

# Inputs that hold weights, by operator; of these only floating-point constants count.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "PRelu": (1,),
    "Gather": (0,),
    "FusedConv": (1, 2),
    "FusedGemm": (1, 2),
    "FusedMatMul": (0, 1),
    "Attention": (1, 2),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "SimplifiedLayerNormalization": (1,),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "FastGelu": (1,),
    "BiasGelu": (1,),
    "MultiHeadAttention": (3,),
}
# These multiply or shift channels where the constant is a vector; a single number belongs to
# the function (a temperature, an epsilon), not to what was learned.
_VECTORS = frozenset({"Add", "Sub", "Mul", "Div"})
_SCALES = frozenset({"QuantizeLinear", "DequantizeLinear"})

# What passes a weight on: its result is looked at as the weight is.
_PASSING = frozenset(
    {
        "Identity",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Cast",
        "Expand",
        "Concat",
        "Split",
        "Slice",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)


def is_weight(value: ir.Value, *, scales: bool = False, _depth: int = 0) -> bool:
    """Whether something reads `value` as a weight, possibly reshaped on the way.

    scales: count those of QuantizeLinear and DequantizeLinear too.
    """
    for node, place in value.uses():
        if place in _WEIGHTS.get(node.op_type, ()):
            return True
        if node.op_type in _VECTORS and _elements(value) != 1:
            return True
        if scales and node.op_type in _SCALES and place == 1:
            return True
        scale = place > 0 and node.op_type in _SCALES
        if node.op_type in _PASSING and not scale and _depth < 8:
            outputs = node.outputs
            if any(is_weight(out, scales=False, _depth=_depth + 1) for out in outputs):
                return True
    return False


# Inputs that Python reads: as constants they stay on the CPU, whatever their type.
_READ_BY_PYTHON: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Dropout": (1, 2),
    "NonMaxSuppression": (2, 3, 4),
    "If": (0,),
    "Loop": (0, 1),
}


def is_read_by_python(value: ir.Value) -> bool:
    """Whether all that read `value` do so in Python, not in PyTorch's kernels."""
    uses = [(node.op_type, place) for node, place in value.uses()]
    return bool(uses) and all(place in _READ_BY_PYTHON.get(op, ()) for op, place in uses)


def _elements(value: ir.Value) -> int | None:
    """How many elements a constant has; None where it is not known."""
    if value.const_value is not None:
        return int(value.const_value.size)
    shape = value.shape
    if shape is None or not shape.is_static():
        return None
    count = 1
    for size in shape.numpy():
        count *= size
    return count
