"""Computes at once what does not depend on the input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants_ir

from packlight.graph.rewrite.single import is_standard, static_shape
from packlight.graph.walk import walk_graphs, walk_nodes

FOLDED_ELEMENTS = 1 << 24
"""A folded tensor has at most this many elements: 64 MiB of float32."""

FOLDED_ELEMENTS_IN_ALL = 1 << 27
"""All tensors folded in a model together: a small file must not expand without end."""

_FOLDED = "packlight.folded_elements"

# Only these are computed here: deterministic, and no more work than their inputs and
# outputs have elements. All else that is constant is left to the runtime.
_FOLDABLE = frozenset(
    word
    for line in (
        "Abs Acos Add And ArgMax ArgMin Asin Atan Cast CastLike Ceil Clip Concat ConstantOfShape",
        "Cos Div Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Greater",
        "GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log Max Min Mod Mul Neg NonZero Not",
        "Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu",
        "Reshape Round ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Sqrt Squeeze",
        "Sub Tanh Tile Transpose Trilu Unsqueeze Where Xor",
    )
    for word in line.split()
)


def fold_constants(model: ir.Model, *, keep: Collection[ir.Node] = ()) -> bool:
    """Replace nodes with constant inputs by their results, in place; True when something changed.

    Newly known shapes count as a change too: the other steps live on them.
    The work is done by onnxscript's folding, which also infers shapes on the way. What
    the file claims about shapes inside the graph is forgotten first: it is often stale.
    Nothing larger than FOLDED_ELEMENTS is ever computed, and no node of `keep`.
    """
    if any(is_standard(node, "SplitToSequence") for _, node in walk_nodes(model)):
        return False  # folding it would make one node per element, without a limit
    known = _known_shapes(model)
    _forget_shapes(model)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=_guard(model, keep),
        )
    return bool(result.modified) or _known_shapes(model) != known


def _guard(model: ir.Model, keep: Collection[ir.Node]) -> Callable[[ir.Node], bool | None]:
    def should_fold(node: ir.Node) -> bool | None:
        left = FOLDED_ELEMENTS_IN_ALL - model.meta.get(_FOLDED, 0)
        if node in keep or not is_standard(node, *_FOLDABLE) or len(node.outputs) != 1:
            return False
        size = _output_elements(node)
        if size is None or size > min(FOLDED_ELEMENTS, left):
            return False
        model.meta[_FOLDED] = model.meta.get(_FOLDED, 0) + size
        return True

    return should_fold


def _output_elements(node: ir.Node) -> int | None:
    """How many elements the result will have; None when that is not known beforehand."""
    inputs = [static_shape(value) for value in node.inputs if value is not None]
    if any(shape is None or math.prod(shape) > FOLDED_ELEMENTS for shape in inputs):
        return None
    if node.op_type == "NonZero" and inputs and inputs[0] is not None:
        return math.prod(inputs[0]) * max(len(inputs[0]), 1)
    shape = static_shape(node.outputs[0])
    return None if shape is None else math.prod(shape)


def _known_shapes(model: ir.Model) -> list[tuple[object, ...] | None]:
    return [
        None if value.shape is None else tuple(value.shape)
        for _, node in walk_nodes(model)
        for value in node.outputs
        if not value.is_graph_output()  # those are given back as declared after each step
    ]


def _forget_shapes(model: ir.Model) -> None:
    for _, graph in walk_graphs(model):
        for node in graph:
            for value in node.outputs:
                if is_standard(node) and node.op_type not in ("If", "Loop", "Scan", "Constant"):
                    value.shape = None
