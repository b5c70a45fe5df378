"""How many different whole numbers an input may hold: rows of the tables it looks up."""

from __future__ import annotations

import onnx_ir as ir

from packlight.graph.rewrite.single import int_of, is_standard

# What hands whole numbers on as they are: those of its input 0.
_PASSES = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def token_limits(model: ir.Model) -> dict[str, int]:
    """By input, the number of rows of the smallest table in which the main graph looks it up.

    A token id must be below it. Inputs that are no indices, or of tables of unknown size, are
    left out.
    """
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        rows = _rows(value) if value.dtype in (ir.DataType.INT32, ir.DataType.INT64) else None
        if rows is not None:
            limits[str(value.name)] = rows
    return limits


def _rows(start: ir.Value) -> int | None:
    found: list[int] = []
    pending, seen = [start], {start}
    while pending:
        for node, number in pending.pop().uses():
            if is_standard(node, "Gather") or node.op_type == "GatherBlockQuantized":
                size = _table_rows(node) if number == 1 else None
                if size is not None:
                    found.append(size)
            if number == 0 and is_standard(node, *_PASSES):
                pending += [value for value in node.outputs if value not in seen]
                seen.update(node.outputs)
    return min(found, default=None)


def _table_rows(node: ir.Node) -> int | None:
    """The size of the axis of a table along which a Gather looks up."""
    table = node.inputs[0]
    if table is None or table.shape is None or not len(table.shape):
        return None
    size = table.shape[int_of(node, "axis", 0) % len(table.shape)]
    if node.op_type == "GatherBlockQuantized":
        size = table.shape[int_of(node, "gather_axis", 0) % len(table.shape)]
    return size if isinstance(size, int) else None
