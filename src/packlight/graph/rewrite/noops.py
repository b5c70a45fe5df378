"""Takes out nodes that change nothing, and repeats that need be done once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from packlight.graph.rewrite.single import bypass, int_of, is_standard, static_shape
from packlight.graph.walk import (
    constant_of,
    initializers_of,
    shape_of,
    walk_graphs,
    walk_nodes,
)

# Rules of onnxscript that never enlarge a graph and hold for every input.
_RULES = (
    rules.cast_cast_rule,
    rules.collapse_slice_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.successive_clip_rule,
    rules.successive_relu_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.fuse_pad_into_conv_rule,
)


def merge_chains(model: ir.Model) -> bool:
    """Merge chains (two casts, two transposes, a Pad and a Conv) by onnxscript's rules."""
    return bool(RewritePass(_RULES)(model).modified)


def remove_noops(model: ir.Model) -> bool:
    """Take out nodes whose output is their input: Identity, Dropout, a full Slice, Add of 0..."""
    changed = False
    for _, graph in walk_graphs(model):
        for node in list(graph):
            test = _NOOPS.get(node.op_type) if is_standard(node) else None
            if test is None or not node.inputs or any(out.uses() for out in node.outputs[1:]):
                continue
            if any(out.is_graph_output() for out in node.outputs[1:]):
                continue
            source = test(node)
            if source is not None and source.name:
                changed |= bypass(node, source)
    return changed


def remove_unused(model: ir.Model) -> bool:
    """Remove nodes, outputs, initializers, functions and operator sets that nothing uses."""
    before = _census(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(model)
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                _drop(graph, value)
    return _census(model) != before


def merge_duplicates(model: ir.Model) -> bool:
    """Keep one of several equal initializers, and one of several nodes that compute the same."""
    _lay_out(model)
    merged = passes.DeduplicateHashedInitializersPass()(model).modified
    return bool(passes.CommonSubexpressionEliminationPass()(model).modified) or bool(merged)


def _lay_out(model: ir.Model) -> None:
    """Store views (a folded Transpose gives one) in their own order: the pass reads raw memory."""
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            if isinstance(value.const_value, ir.Tensor):
                array = value.const_value.numpy()
                if not array.flags.c_contiguous:
                    dtype = value.const_value.dtype
                    array = np.ascontiguousarray(array)
                    value.const_value = ir.Tensor(array, dtype=dtype, name=value.name)


def _drop(graph: ir.Graph | ir.Function, value: ir.Value) -> None:
    if isinstance(graph, ir.Graph) and value.name is not None:
        del graph.initializers[value.name]


def _census(model: ir.Model) -> list[int]:
    return [
        sum(1 for _ in walk_nodes(model)),
        sum(len(node.outputs) for _, node in walk_nodes(model)),
        sum(len(node.inputs) for _, node in walk_nodes(model)),
        sum(len(initializers_of(graph)) for _, graph in walk_graphs(model)),
        len(model.functions),
        len(model.opset_imports),
    ]


def _identity(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None:
        return node.inputs[0]
    constant = constant_of(training)
    return node.inputs[0] if constant is not None and not constant.numpy().any() else None


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    same = source is not None and source.dtype is not None and source.dtype == int_of(node, "to", 0)
    return source if same else None


def _same_shape(node: ir.Node) -> ir.Value | None:
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return node.inputs[0] if before is not None and before == after else None


def _reshape(node: ir.Node) -> ir.Value | None:
    if (source := _same_shape(node)) is not None:
        return source
    target = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    source = node.inputs[0]
    if target is None or source is None or source.shape is None or int_of(node, "allowzero", 0):
        return None
    wanted = [int(axis) for axis in target.numpy().reshape(-1)]
    if len(wanted) != len(source.shape):
        return None
    # 0 copies an axis, and a single -1 takes what is left: with all others kept, the same.
    kept = [want == 0 or want == axis for want, axis in zip(wanted, source.shape, strict=True)]
    free = sum(want == -1 for want in wanted)
    return source if sum(kept) + free == len(wanted) and free <= 1 else None


def _slice(node: ir.Node) -> ir.Value | None:
    if len(node.inputs) < 3:
        return None
    numbers = [constant_of(value) for value in node.inputs[1:3]]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        # Any step but 1 may keep the shape and yet change the order.
        steps = constant_of(node.inputs[4])
        numbers.append(steps if steps is None or (steps.numpy() == 1).all() else None)
    if any(tensor is None for tensor in numbers):
        return None
    if _same_shape(node) is not None:
        return node.inputs[0]
    starts, ends = (tensor.numpy() for tensor in numbers[:2] if tensor is not None)
    whole = (starts == 0).all() and (ends >= np.iinfo(np.int32).max).all()
    return node.inputs[0] if whole else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.inputs[0] if pads is not None and not pads.numpy().any() else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(number: float, sides: tuple[int, ...]) -> Callable[[ir.Node], ir.Value | None]:
    """A test for arithmetic with the neutral number on one of these sides."""

    def test(node: ir.Node) -> ir.Value | None:
        if len(node.inputs) != 2:
            return None
        for side in sides:
            constant, other = constant_of(node.inputs[side]), node.inputs[1 - side]
            if constant is None or other is None or constant.size > 1 << 20:
                continue
            if not constant.size or (constant.numpy() != number).any():
                continue
            # The constant must not stretch the other operand by broadcasting.
            if other.shape is None or len(constant.shape) > len(other.shape):
                continue
            pairs = zip(reversed(shape_of(constant)), reversed(list(other.shape)), strict=False)
            if all(axis in (1, known) for axis, known in pairs):
                return other
        return None

    return test


_NOOPS: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _same_shape,
    "Expand": _same_shape,
    "Tile": _same_shape,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _single,
    "Sum": _single,
    "Mean": _single,
    "Max": _single,
    "Min": _single,
    "Add": _neutral(0, (0, 1)),
    "Sub": _neutral(0, (1,)),
    "Mul": _neutral(1, (0, 1)),
    "Div": _neutral(1, (1,)),
}
