"""Simplifies a graph step by step; a step that changes what the model computes is undone.

Built on onnxscript's optimizer (and onnx-ir's passes): it works on our graph in place, lets
us cap what is folded, and is 7 MB, where onnxslim brings 82 MB with sympy, needs the whole
model as one protobuf (2 GiB) and changed the declared inputs of two real models. What it
leaves undone (scales and shifts into layers, computed shapes, some no-ops) is in `affine`,
`shapes` and `noops`, with which about as few nodes remain as with onnxslim
(benchmarks/simplify.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from packlight.errors import PacklightError
from packlight.graph.files import first_cause
from packlight.graph.rewrite.affine import fold_batch_norm, fold_scale_shift
from packlight.graph.rewrite.floats import narrow_floats
from packlight.graph.rewrite.fold import fold_constants
from packlight.graph.rewrite.noops import (
    merge_chains,
    merge_duplicates,
    remove_noops,
    remove_unused,
)
from packlight.graph.rewrite.opset import upgrade_opset
from packlight.graph.rewrite.quiet import quiet
from packlight.graph.rewrite.shapes import fix_reshapes, merge_slices
from packlight.graph.rewrite.share import share_similar
from packlight.graph.save import copy_model
from packlight.graph.walk import (
    ensure_names,
    initializers_of,
    walk_graphs,
    walk_nodes,
)

INLINED_NODES = 200_000
"""Functions that call functions may multiply: beyond this many nodes they stay calls."""

ROUNDS = 4
"""Folding makes room for folding: the steps are repeated until nothing changes, this often."""


@dataclass(frozen=True)
class SimplifyStep:
    """What became of one step.

    changed: it found something to do. kept: its result was kept; when False, `reason` says
    why it was undone. Nodes of all graphs, and bytes of constants, before and after.
    """

    name: str
    changed: bool
    kept: bool
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    reason: str = ""


def inline_functions(model: ir.Model) -> bool:
    """Replace calls of the model's own functions by their bodies."""
    if not model.functions:
        return False
    if _inlined_nodes(model) > INLINED_NODES:
        raise ValueError(f"its functions would expand to more than {INLINED_NODES} nodes")
    passes.InlinePass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    return True


def strip_leftovers(model: ir.Model) -> bool:
    """Remove doc strings and metadata (stack traces, export logs) of graphs, nodes and values.

    The model's own metadata stays: people keep class names and the like there.
    """
    changed = bool(passes.ClearMetadataAndDocStringPass()(model).modified)
    for _, graph in walk_graphs(model):
        changed |= any(node.doc_string for node in graph)
        values = [*graph.inputs, *initializers_of(graph)]
        values += [value for node in graph for value in node.outputs]
        for value in values:
            changed |= bool(value.doc_string or value.metadata_props)
            value.doc_string = None
            value.metadata_props.clear()
    return changed


def lift_constants(model: ir.Model) -> bool:
    """Turn Constant nodes into initializers, where weights are looked for."""
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    return bool(lift(model).modified)


NEARLY_EQUAL = "nearly equal constants merged"
"""The step that changes what the model computes, if by no more than rounding noise."""


def merge_similar(model: ir.Model) -> bool:
    """Store constants once that differ by no more than a millionth of each value."""
    return bool(share_similar(model))


_ONCE: tuple[tuple[str, Callable[[ir.Model], bool]], ...] = (
    ("training leftovers removed", strip_leftovers),
    ("functions inlined", inline_functions),
    # 21 has blocked 4-bit weights, 13 per-channel scales; the first that works is taken.
    ("operator set 21", upgrade_opset(21)),
    ("operator set 17", upgrade_opset(17)),
    ("operator set 13", upgrade_opset(13)),
    ("constants made initializers", lift_constants),
    ("64-bit floats to 32", narrow_floats),
)
_REPEATED: tuple[tuple[str, Callable[[ir.Model], bool]], ...] = (
    ("constants folded", fold_constants),
    ("folded constants made initializers", lift_constants),
    ("computed shapes made constant", fix_reshapes),
    ("no-ops removed", remove_noops),
    ("slices merged", merge_slices),
    ("chains merged", merge_chains),
    ("BatchNorm folded", fold_batch_norm),
    ("scales and shifts folded", fold_scale_shift),
    ("unused parts removed", remove_unused),
    ("duplicates merged", merge_duplicates),
    (NEARLY_EQUAL, merge_similar),
)


def simplify(
    model: ir.Model, *, check: Callable[[ir.Model], bool] | None
) -> tuple[ir.Model, tuple[SimplifyStep, ...]]:
    """A simpler model that computes the same, and what each step did.

    model: not changed. check: runs a candidate against the original and says whether the
    outputs are equal within float tolerance (None: steps are trusted). A step that
    fails the check, raises, or touches the names, types or axes of inputs and
    outputs is undone, said so in its SimplifyStep, and not tried again.
    """
    current = copy_model(model)
    steps: list[SimplifyStep] = []
    undone: set[str] = set()
    for step in _ONCE:
        current, record = _try(step, current, model, check)
        steps.append(record)
    for number in range(ROUNDS):
        progress = False
        for step in _REPEATED:
            if step[0] in undone:
                continue
            current, record = _try(step, current, model, check)
            if not record.kept:
                undone.add(step[0])
            progress |= record.changed and record.kept
            if number == 0 or record.changed:
                steps.append(record)
        if not progress:
            break
    ensure_names(current)
    return current, tuple(steps)


def _try(
    step: tuple[str, Callable[[ir.Model], bool]],
    current: ir.Model,
    original: ir.Model,
    check: Callable[[ir.Model], bool] | None,
) -> tuple[ir.Model, SimplifyStep]:
    name, function = step
    candidate = copy_model(current)
    reason, changed = "", True
    try:
        with quiet():
            changed = function(candidate)
            if changed:
                _restore_interface(candidate, original)
                candidate.graph.sort()
                ensure_names(candidate)
                if check is not None and not check(candidate):
                    reason = "the outputs changed"
    except PacklightError as error:
        reason = str(error)
    except Exception as error:
        # A library may raise anything on an unusual graph: the step is undone and reported.
        reason = f"it failed ({first_cause(error)})"
    after = current if reason or not changed else candidate
    record = SimplifyStep(
        name=name,
        changed=changed,
        kept=not reason,
        nodes_before=_count_nodes(current),
        nodes_after=_count_nodes(after),
        bytes_before=_count_bytes(current),
        bytes_after=_count_bytes(after),
        reason=reason,
    )
    return after, record


def _restore_interface(model: ir.Model, original: ir.Model) -> None:
    """Give inputs and outputs their original types and axes back; raise if names changed."""
    for values, wanted, what in (
        (model.graph.inputs, original.graph.inputs, "inputs"),
        (model.graph.outputs, original.graph.outputs, "outputs"),
    ):
        if [value.name for value in values] != [value.name for value in wanted]:
            raise ValueError(f"it would change the model's {what}")
        for value, before in zip(values, wanted, strict=True):
            if before.dtype is not None and value.dtype not in (None, before.dtype):
                raise ValueError(f"it would change the type of {before.name!r}")
            kind = before.type
            value.type = ir.TensorType(kind.dtype) if isinstance(kind, ir.TensorType) else kind
            value.shape = before.shape.copy() if before.shape is not None else None


def _inlined_nodes(model: ir.Model) -> int:
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(graph: ir.Graph | ir.Function, above: frozenset[ir.OperatorIdentifier]) -> int:
        total = 0
        for node in ir.traversal.RecursiveGraphIterator(graph):
            called = node.op_identifier()
            if called not in model.functions:
                total += 1
                continue
            if called in above:
                raise ValueError(f"function {called[1]!r} calls itself")
            if called not in sizes:
                sizes[called] = size(model.functions[called], above | {called})
            total += sizes[called]
        return total

    return size(model.graph, frozenset())


def _count_nodes(model: ir.Model) -> int:
    return sum(1 for _ in walk_nodes(model))


def _count_bytes(model: ir.Model) -> int:
    total = 0
    for _, graph in walk_graphs(model):
        for value in initializers_of(graph):
            total += value.const_value.nbytes if value.const_value is not None else 0
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    total += attribute.as_tensor().nbytes
    return total
