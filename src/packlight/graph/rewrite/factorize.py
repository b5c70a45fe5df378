"""One layer as two thinner ones: fewer bytes and fewer multiplications, at some loss.

A step before quantization: both parts are layers like any other. The parts of layer `x` are
`x_a` and `x_b`; what it added (its bias) stays with the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.errors import UnusableRecipe
from packlight.graph.edit import Editor, drop_unused, graph_of, home_of, in_function
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.model import copy_model
from packlight.graph.patches import in_plain_order, ints
from packlight.graph.rewrite.dynamic import replace_node
from packlight.graph.rewrite.single import float_of
from packlight.graph.walk import constant_of
from packlight.maths.lowrank import low_rank_of, spatial_factors_of
from packlight.maths.moments import Moments, mean_shift
from packlight.nearest import did_you_mean
from packlight.ranks import FactorKind, Rank


def factorize(
    model: ir.Model, ranks: Mapping[str, Rank], moments: Mapping[str, Moments]
) -> ir.Model:
    """Give a copy of a model in which some layers are two.

    ranks: by layer. moments: of what reaches the layers, in kernel order, as observed; a layer
    without them loses least in the sum of squares of its weight.
    Raises UnusableRecipe for a layer that there is not or that cannot be factorized, and for a rank
    that spares neither weights nor multiplications, naming the largest that does.
    """
    copy = copy_model(model)
    layers = {layer.name: layer for layer in find_layers(copy)}
    for name, rank in ranks.items():
        if name not in layers:
            raise UnusableRecipe(
                f"The layer {name!r} is to be factorized, which the model does not have"
                f"{did_you_mean(name, layers)}."
            )
        reason = why_not_factorized(layers[name], rank.kind)
        if reason:
            raise UnusableRecipe(
                f"The layer {name!r} ({layers[name].op}) cannot be factorized: {reason}."
            )
        most = largest_rank(layers[name], rank.kind)
        if not 1 <= rank.rank <= most:
            raise UnusableRecipe(
                f"The layer {name!r} was to be factorized with rank {rank.rank}: ranks from 1 to "
                f"{most} take fewer weights and multiplications than the layer itself."
                if most
                else f"The layer {name!r} takes the fewest weights and multiplications as it is: "
                "leave it out of what is factorized."
            )
    edit = Editor(copy)
    for name, rank in ranks.items():
        layer = layers[name]
        seen = moments.get(name)
        known = in_plain_order(layer, seen) if seen is not None and seen.count else None
        if layer.kind == "Conv":
            _split_conv(edit, layer, rank, known)
        else:
            _split_matrix(edit, layer, rank, known)
    return copy


def why_not_factorized(layer: Layer, kind: FactorKind) -> str:
    """The reason why a layer cannot be taken apart in that way; '' where it can."""
    if layer.kind not in ("Conv", "Gemm", "MatMul"):
        return "only Conv, Gemm and MatMul can be"
    if in_function(layer):
        return "it lies in a function"
    tensor = constant_of(layer.weight)
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return "its weights are neither float32 nor float16"
    if layer.shared:
        return "another layer reads its weight too, which would have to stay"
    if layer.kind != "Conv":
        return "" if kind == "matrix" else f"it is a matrix, which has no {kind} factors"
    if layer.groups > 1:
        return "its channels are in groups"
    if kind == "matrix":
        return "the factors of a Conv are channel or spatial ones"
    kernel = layer.weight_shape[2:]
    if kind == "spatial" and (len(kernel) != 2 or min(kernel) < 2):
        return f"spatial factors need a kernel of k x k, not {' x '.join(map(str, kernel))}"
    return ""


def largest_rank(layer: Layer, kind: FactorKind) -> int:
    """The largest rank with which both parts take fewer weights and multiplications; 0: none."""
    outputs = layer.weight_shape[layer.out_axis]
    inputs = math.prod(layer.weight_shape) // outputs
    most = min(outputs, inputs)
    if kind == "spatial":
        channels, high, wide = layer.weight_shape[1:]
        most = min(outputs * wide, channels * high)
    return min((outputs * inputs - 1) // _products_each(layer, kind), most)


def share_of_rank(layer: Layer, rank: Rank) -> float:
    """Multiplications of both parts as a share of the layer's."""
    return rank.rank * _products_each(layer, rank.kind) / math.prod(layer.weight_shape)


def _products_each(layer: Layer, kind: FactorKind) -> int:
    """Multiplications for an output position that a rank of 1 takes."""
    outputs = layer.weight_shape[layer.out_axis]
    if kind != "spatial":
        return math.prod(layer.weight_shape) // outputs + outputs
    channels, high, wide = layer.weight_shape[1:]
    # The first part is as wide as the input still: it does more where the layer takes strides.
    stride = ints(layer.node, "strides", [1, 1])[1]
    return channels * high * stride + outputs * wide


def losses_of_ranks(layer: Layer, ranks: Sequence[Rank], moments: Moments) -> tuple[float, ...]:
    """The noise that each rank leaves at the layer's output, as a share of its power.

    tr((W - V) H (W - V)^T) / tr(W H W^T), V the product of the factors, H the second moments of
    what reaches the layer; their covariance where a bias takes over what is constant.
    """
    known = in_plain_order(layer, moments)
    matrix = weight_matrix(layer).astype(np.float64)
    second = _second_of(layer, known)
    power = float(np.einsum("oi,ij,oj->", matrix, second, matrix))
    found = []
    for rank in ranks:
        _, _, whole = _product(layer, matrix, rank, second)
        rest = matrix - whole
        lost = float(np.einsum("oi,ij,oj->", rest, second, rest))
        found.append(max(lost, 0.0) / power if power > 0 else 0.0)
    return tuple(found)


def part_names(layer: str) -> tuple[str, str]:
    """What the two layers are called that stand for one."""
    return f"{layer}_a", f"{layer}_b"


def _split_matrix(edit: Editor, layer: Layer, rank: Rank, moments: Moments | None) -> None:
    matrix = weight_matrix(layer).astype(np.float64)
    left, right, shift = _factors(layer, matrix, rank, moments)
    node, graph = layer.node, graph_of(layer)
    first = _constant(edit, layer, right.T, "a")
    second = _constant(edit, layer, left.T, "b")
    names = part_names(layer.name)
    thin = edit.node("MatMul", [node.inputs[0], first], names[0], dtype=layer.weight.dtype)
    values: list[ir.Value | None] = [thin.outputs[0], second]
    attributes: dict[str, Any] = {}
    if layer.kind == "Gemm":
        bias = _moved_bias(edit, layer, shift)
        values += [bias] if bias is not None else []
        attributes = {"beta": float_of(node, "beta", 1.0)} if bias is not None else {}
    wide = edit.node(layer.kind, values, names[1], attributes=attributes)
    _put(graph, layer, thin, wide)


def _split_conv(edit: Editor, layer: Layer, rank: Rank, moments: Moments | None) -> None:
    matrix = weight_matrix(layer).astype(np.float64)
    left, right, shift = _factors(layer, matrix, rank, moments)
    node, graph = layer.node, graph_of(layer)
    outputs, channels, *kernel = layer.weight_shape
    own = {name: node.attributes[name] for name in ("auto_pad",) if name in node.attributes}
    plan = {
        "strides": ints(node, "strides", [1] * len(kernel)),
        "dilations": ints(node, "dilations", [1] * len(kernel)),
        "pads": ints(node, "pads", [0] * 2 * len(kernel)),
    }
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    plans: tuple[dict[str, Any], dict[str, Any]]
    if rank.kind == "spatial":
        high, wide = kernel
        shapes = ((rank.rank, channels, high, 1), (outputs, rank.rank, 1, wide))
        plans = (_along(plan, 0), _along(plan, 1))
    else:
        shapes = ((rank.rank, channels, *kernel), (outputs, rank.rank, *(1 for _ in kernel)))
        plans = (dict(plan), {})
    if own and own["auto_pad"].as_string() != "NOTSET":
        # Along an axis on which a part has one tap and no stride nothing is padded.
        plans[0].pop("pads")
        plans[0]["auto_pad"] = own["auto_pad"].as_string()
        if rank.kind == "spatial":
            plans[1].pop("pads")
            plans[1]["auto_pad"] = own["auto_pad"].as_string()
    first = _constant(edit, layer, right.reshape(shapes[0]), "a")
    second = _constant(edit, layer, left.reshape(shapes[1]), "b")
    names = part_names(layer.name)
    thin = edit.node(
        "Conv",
        [node.inputs[0], first],
        names[0],
        attributes={**plans[0], "kernel_shape": list(shapes[0][2:])},
        dtype=layer.weight.dtype,
    )
    values: list[ir.Value | None] = [thin.outputs[0], second]
    bias = _moved_bias(edit, layer, shift)
    values += [bias] if bias is not None else []
    wide_node = edit.node(
        "Conv",
        values,
        names[1],
        attributes={**plans[1], "kernel_shape": list(shapes[1][2:])},
    )
    _put(graph, layer, thin, wide_node)


def _along(plan: Mapping[str, list[int]], axis: int) -> dict[str, Any]:
    """The strides, dilations and pads of a kernel along one axis alone."""
    other = 1 - axis
    found = {name: list(values) for name, values in plan.items()}
    found["strides"][other] = found["dilations"][other] = 1
    found["pads"][other] = found["pads"][2 + other] = 0
    return found


def _factors(
    layer: Layer, matrix: NDArray[np.float64], rank: Rank, moments: Moments | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """The second and the first part as matrices, and what the bias must gain, if it can."""
    second = np.eye(matrix.shape[1]) if moments is None else _second_of(layer, moments)
    left, right, whole = _product(layer, matrix, rank, second)
    if moments is None or not _takes_bias(layer):
        return left, right, None
    return left, right, mean_shift(matrix, moments.mean, whole, moments.mean)


def _second_of(layer: Layer, moments: Moments) -> NDArray[np.float64]:
    """What errors are weighed with: without the means where the bias can make up for them."""
    second: NDArray[np.float64] = moments.second
    return second - np.outer(moments.mean, moments.mean) if _takes_bias(layer) else second


def _product(
    layer: Layer, matrix: NDArray[np.float64], rank: Rank, second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The second and the first part as matrices, and the weight that both make together."""
    if rank.kind != "spatial":
        left, right = low_rank_of(matrix, second, rank.rank)
        return left, right, left @ right
    high, wide = layer.weight_shape[2:]
    right, left = spatial_factors_of(matrix, second, rank.rank, kernel=(high, wide))
    apart = right.reshape(rank.rank, -1, high), left.reshape(len(matrix), rank.rank, wide)
    whole = np.einsum("orb,ria->oiab", apart[1], apart[0]).reshape(matrix.shape)
    return left, right, whole


def _takes_bias(layer: Layer) -> bool:
    """Whether the second part may have a bias that is another than the layer's."""
    number = 2
    given = layer.node.inputs[number] if len(layer.node.inputs) > number else None
    if layer.kind == "MatMul" or (given is not None and layer.bias is None):
        return False
    beta = float_of(layer.node, "beta", 1.0) if layer.kind == "Gemm" else 1.0
    bias = constant_of(layer.bias)
    outputs = layer.weight_shape[layer.out_axis]
    return beta == 1.0 and (bias is None or tuple(bias.shape) in ((outputs,), (1, outputs)))


def _moved_bias(edit: Editor, layer: Layer, shift: NDArray[np.float64] | None) -> ir.Value | None:
    """The layer's own bias, or one of its own with what the factors leave to it."""
    given = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if shift is None:
        return given
    bias = constant_of(layer.bias)
    moved = shift + (0.0 if bias is None else bias.numpy().astype(np.float64).reshape(-1))
    dtype = layer.weight.dtype
    assert dtype is not None
    return edit.constant(graph_of(layer), moved.astype(dtype.numpy()), f"{layer.name}_b_bias")


def _constant(edit: Editor, layer: Layer, array: NDArray[np.float64], part: str) -> ir.Value:
    dtype = layer.weight.dtype
    assert dtype is not None
    values = np.ascontiguousarray(array, dtype.numpy())
    return edit.constant(home_of(layer.weight, layer), values, f"{layer.weight.name}_{part}")


def _put(graph: ir.Graph, layer: Layer, first: ir.Node, second: ir.Node) -> None:
    graph.insert_before(layer.node, first)
    replace_node(graph, layer.node, second)
    drop_unused([layer.weight, *([layer.bias] if layer.bias is not None else [])])
