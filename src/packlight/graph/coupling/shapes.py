"""The shapes of all values, also where they hang together with sizes known at run time only.

Inference by the operators' definitions knows no more than that some size is unknown, once a
shape was computed from shapes. So the model is looked at twice more, with numbers in place of
its open sizes: what is the same in both is fixed, and open sizes that agree in both are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from packlight.graph.rewrite.fold import fold_constants
from packlight.graph.rewrite.quiet import quiet
from packlight.graph.save import copy_model
from packlight.graph.walk import constant_of, shape_of

# Sizes to look with, first and second: of batches; of pictures (which are halved several
# times); of all else (tables of positions are short). No number stands twice.
_BATCHES = ((2, 3), (22, 23), (26, 27), (34, 33))
_PICTURES = ((64, 128), (96, 160), (192, 224), (256, 288))
_LENGTHS = ((5, 6), (7, 9), (11, 10), (13, 14), (17, 19), (21, 18), (25, 29), (31, 35))

# Operators whose shapes onnx does not infer: so far as these go, they copy their first input.
_LIKE = (
    "BiasGelu",
    "FastGelu",
    "GroupNormalization",
    "QuickGelu",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)

Shape = list[int | str | None]


def infer_shapes(model: ir.Model) -> None:
    """Work the shapes of all values out anew, in place; what the file claims is forgotten."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output() and constant_of(value) is None:
                value.shape = None
    copy = copy_model(model)
    copy.graph.outputs.clear()
    alike: dict[str | None, str | None] = {}
    for node in copy.graph:
        _stand_in(node, alike)
    with quiet():
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    known = {value.name: value for value in _values(copy)}
    for value in _values(model):
        found = known.get(alike.get(value.name, value.name))
        if found is None or found.shape is None:
            continue
        if value.shape is None or not value.is_graph_output():
            value.shape = found.shape.copy()
        if value.type is None and isinstance(found.type, ir.TensorType):
            value.type = ir.TensorType(found.type.dtype)


def _stand_in(node: ir.Node, alike: dict[str | None, str | None]) -> None:
    """Put an operator that onnx knows in the place of one whose output has the same shape.

    alike: gets the names of further outputs, with the output whose shape they have.
    """
    first = node.outputs[0]
    if node.op_type == "EmbedLayerNormalization":
        new, inputs, sums = "Gather", [node.inputs[2], node.inputs[0]], node.outputs[2:]
    elif node.op_type in _LIKE or (node.op_type == "Attention" and _is_square(node)):
        new, inputs, sums = "Identity", [node.inputs[0]], node.outputs[3:]
    else:
        return
    for other in sums:  # what was normalized, which the next block adds to
        alike[other.name] = first.name
        other.replace_all_uses_with(first)
    if any(other.uses() for other in node.outputs[1:]):
        return
    node.op_type, node.domain = new, ""
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for number, value in enumerate(inputs):
        node.replace_input_with(number, value)
    node.resize_outputs(1)


def _is_square(node: ir.Node) -> bool:
    """Whether an Attention's values have as many channels as its inputs."""
    tensor = constant_of(node.inputs[1])
    if tensor is None:
        return False
    inputs, outputs = shape_of(tensor)
    return outputs == 3 * inputs


def know_shapes(model: ir.Model) -> None:
    """`infer_shapes`, in place, and open sizes by names that are the same for the same size."""
    infer_shapes(model)
    if all(_is_fixed(value) for value in _values(model)):
        return
    try:
        seen = [_look(model, which) for which in (0, 1)]
    except Exception:
        # Nothing says that a model takes the sizes that we try: then less is known of it.
        return
    both = {name: shape for name, shape in seen[0].items() if name in seen[1]}
    merged = {name: _merge(shape, seen[1][name]) for name, shape in both.items()}
    for value in _values(model):
        found = merged.get(value.name or "")
        if found is None or (value.shape is not None and len(value.shape) != len(found)):
            continue
        known = list(value.shape) if value.shape is not None else [None] * len(found)
        sizes = [a if isinstance(a, int) else b for a, b in zip(known, found, strict=True)]
        value.shape = ir.Shape(sizes)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from (value for value in node.outputs if constant_of(value) is None)


def _is_fixed(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def _look(model: ir.Model, which: int) -> dict[str, list[int | None]]:
    """The shapes, by name, when the open sizes of inputs are the first or second numbers."""
    copy = copy_model(model)
    left = {
        "batch": [pair[which] for pair in _BATCHES],
        "picture": [pair[which] for pair in _PICTURES],
        "length": [pair[which] for pair in _LENGTHS],
    }
    chosen: dict[str, int] = {}
    for value in copy.graph.inputs:
        if value.shape is None:
            continue
        sizes = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                sizes.append(size)
                continue
            picture = len(value.shape) > 3 and axis > 1
            kind = "batch" if axis == 0 else "picture" if picture else "length"
            name = size.value or f"{value.name}.{axis}"
            if name not in chosen:
                chosen[name] = left[kind].pop(0)
            sizes.append(chosen[name])
        value.shape = ir.Shape(sizes)
    for value in copy.graph.outputs:
        value.shape = None
    with quiet():
        fold_constants(copy)
    infer_shapes(copy)
    found = {}
    values = [*copy.graph.inputs, *copy.graph.initializers.values()]
    for value in [*values, *(value for node in copy.graph for value in node.outputs)]:
        if value.shape is not None:
            found[value.name or ""] = [s if isinstance(s, int) else None for s in value.shape]
    return found


def _merge(first: Sequence[int | None], second: Sequence[int | None]) -> Shape | None:
    if len(first) != len(second):
        return None
    return [
        None if a is None or b is None else a if a == b else f"size {a} or {b}"
        for a, b in zip(first, second, strict=True)
    ]
