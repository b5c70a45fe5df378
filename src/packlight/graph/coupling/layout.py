"""Rules for operators that move, join, cut and repeat channels without computing anything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.graph.coupling.links import Axes, Links, Unfollowable
from packlight.graph.coupling.vectors import axes_of, entries, integers, measured_axes
from packlight.graph.rewrite.single import int_of
from packlight.graph.walk import constant_of

LARGEST_PRODUCT = 1 << 22
"""Axes that are re-divided are followed through so many combinations, not more."""

Block = tuple[list[int], list[int]]


def transpose(links: Links, node: ir.Node) -> None:
    """Y[i] is X[perm[i]]."""
    before, after = links.input(node, 0), links.output(node)
    attribute = node.attributes.get("perm")
    order = list(attribute.as_ints()) if attribute is not None else range(len(before))[::-1]
    for axis, source in zip(after, order, strict=True):
        links.together(axis, before[source])


def squeeze(links: Links, node: ir.Node) -> None:
    """Axes of length 1 vanish."""
    before, after = links.input(node, 0), links.output(node)
    axes = axes_of(node, 1, len(before))
    if not axes:
        raise Unfollowable(f"the axes of {node.op_type} {node.name!r} are not constant")
    rest = [axis for number, axis in enumerate(before) if number not in axes]
    for axis, source in zip(after, rest, strict=True):
        links.together(axis, source)


def unsqueeze(links: Links, node: ir.Node) -> None:
    """Axes of length 1 appear."""
    before, after = links.input(node, 0), links.output(node)
    axes = axes_of(node, 1, len(after))
    if not axes:
        raise Unfollowable(f"the axes of {node.op_type} {node.name!r} are not constant")
    rest = [axis for number, axis in enumerate(after) if number not in axes]
    for axis, source in zip(rest, before, strict=True):
        links.together(axis, source)


def reshape(links: Links, node: ir.Node) -> None:
    """The same elements in a row; see `divide`."""
    before, after = links.input(node, 0), links.output(node)
    follow_target(links, node, 1, after)
    vector = entries(node.inputs[1])
    old, new = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    for number, entry in enumerate(vector or ()):
        if entry == 0 and not int_of(node, "allowzero", 0):
            new[number] = old[number]
            links.together(before[number], after[number])
    divide(links, node, (before, old), (after, new))


def flatten(links: Links, node: ir.Node) -> None:
    """Axes before `axis` become one, the others another."""
    before, after = links.input(node, 0), links.output(node)
    axis = int_of(node, "axis", 1)
    axis = axis + len(before) if axis < 0 else axis
    for merged, parts in ((after[0], before[:axis]), (after[1], before[axis:])):
        if merged is None and all(part is None or len(part) == 1 for part in parts):
            continue
        links.product(merged, parts, f"{node.op_type} {node.name!r} runs over them")


def divide(
    links: Links,
    node: ir.Node,
    before: tuple[Axes, list[object]],
    after: tuple[Axes, list[object]],
) -> None:
    """Relate the axes of a tensor to those of the same elements, in a row, in another shape."""
    blocks, (left, right) = align(before[1], after[1])
    links.stay(
        [*(before[0][i] for i in left), *(after[0][i] for i in right)],
        f"{node.op_type} {node.name!r} divides them into sizes known at run time only",
    )
    for ours, theirs in blocks:
        old = [axis for i in ours if (axis := before[0][i]) is not None and len(axis) > 1]
        new = [axis for i in theirs if (axis := after[0][i]) is not None and len(axis) > 1]
        why = f"{node.op_type} {node.name!r} runs over them"
        if len(old) == 1:
            links.product(old[0], new, why)
        elif len(new) == 1:
            links.product(new[0], old, why)
        elif old:
            size = math.prod(len(axis) for axis in old)
            if size > LARGEST_PRODUCT:
                links.stay([*old, *new], f"{node.op_type} {node.name!r} divides them anew")
                continue
            every = links.new(size)
            links.product(every, old, why)
            links.product(every, new, why)


def align(before: Sequence[object], after: Sequence[object]) -> tuple[list[Block], Block]:
    """Blocks of axes of two shapes that hold the same elements, and the axes left over.

    Sizes are integers, or anything else where unknown (equal: the same unknown size).
    """
    low, high = [0, 0], [len(before), len(after)]
    blocks: list[Block] = []
    for backwards in (True, False):
        while low[0] < high[0] and low[1] < high[1]:
            found = _block(before[low[0] : high[0]], after[low[1] : high[1]], backwards)
            if found is None:
                break
            if backwards:
                high = [high[0] - found[0], high[1] - found[1]]
                start = high
            else:
                start = list(low)
                low = [low[0] + found[0], low[1] + found[1]]
            blocks.append(
                (
                    list(range(start[0], start[0] + found[0])),
                    list(range(start[1], start[1] + found[1])),
                )
            )
    left, right = list(range(low[0], high[0])), list(range(low[1], high[1]))
    return blocks, (left, right)


def _block(
    before: Sequence[object], after: Sequence[object], backwards: bool
) -> tuple[int, int] | None:
    """How many axes from one end of both shapes hold as many elements."""
    ours, theirs = (list(sizes)[::-1] if backwards else list(sizes) for sizes in (before, after))
    if ours[0] == theirs[0] and ours[0] is not None:
        return 1, 1
    taken, total = [0, 0], [1, 1]
    while not all(taken) or total[0] != total[1]:
        side = 0 if not taken[0] or (taken[1] and total[0] < total[1]) else 1
        sizes = (ours, theirs)[side]
        size = sizes[taken[side]] if taken[side] < len(sizes) else None
        if not isinstance(size, int) or size < 1:
            return None
        total[side] *= size
        taken[side] += 1
    return taken[0], taken[1]


def _sizes(value: ir.Value | None) -> list[object]:
    tensor = constant_of(value)
    shape = tensor.shape if tensor is not None else value.shape if value is not None else None
    if shape is None:
        raise Unfollowable("a shape is not known")
    return [size if isinstance(size, int) else size.value for size in shape]


def follow_target(links: Links, node: ir.Node, number: int, after: Axes) -> None:
    """Hold the output's axes to a shape vector: what it reads at run time, or cannot be mended."""
    vector = entries(node.inputs[number])
    if vector is None or len(vector) < len(after):
        links.stay(after, f"the shape that {node.op_type} {node.name!r} makes is computed")
        return
    for axis, entry in zip(after, vector[len(vector) - len(after) :], strict=True):
        if axis is None or len(axis) == 1:
            continue
        if entry is None:
            links.stay([axis], f"a size that {node.op_type} {node.name!r} makes is computed")
        elif isinstance(entry, tuple):
            source = links.value(entry[0])[entry[1]]
            if source is None or len(source) != len(axis):
                links.stay([axis, source], f"{node.op_type} {node.name!r} copies a size")
            else:
                links.together(axis, source)


def concat(links: Links, node: ir.Node) -> None:
    """Channels of the inputs one behind the other."""
    after = links.output(node)
    number = int_of(node, "axis", 0) % max(len(after), 1)
    parts = [links.input(node, place) for place in range(len(node.inputs))]
    for part in parts:
        for place, axis in enumerate(part):
            if place != number:
                links.together(after[place], axis)
    joined = [part[number] for part in parts]
    if after[number] is None or any(axis is None for axis in joined):
        links.stay([after[number], *joined], f"Concat {node.name!r} joins unknown sizes")
        return
    links.together(after[number], np.concatenate([axis for axis in joined if axis is not None]))


def split(links: Links, node: ir.Node) -> None:
    """Channels of the input, a range for each output."""
    before = links.input(node, 0)
    number = int_of(node, "axis", 0) % max(len(before), 1)
    parts = [links.output(node, place) for place in range(len(node.outputs))]
    for part in parts:
        for place, axis in enumerate(part):
            if place != number:
                links.together(before[place], axis)
    cut = [part[number] for part in parts]
    if before[number] is None or any(axis is None for axis in cut):
        links.stay([before[number], *cut], f"Split {node.name!r} cuts unknown sizes")
        return
    links.together(before[number], np.concatenate([axis for axis in cut if axis is not None]))


def slice_(links: Links, node: ir.Node) -> None:
    """A range of channels; every n-th one only where none can be removed."""
    before, after = links.input(node, 0), links.output(node)
    bounds = slice_bounds(node, len(before))
    if bounds is None:
        raise Unfollowable(f"the bounds of Slice {node.name!r} are computed at run time")
    for number, (axis, result) in enumerate(zip(before, after, strict=True)):
        if number not in bounds:
            links.together(axis, result)
        elif axis is not None:
            start, end, step = bounds[number]
            kept = axis[slice(*slice(start, end, step).indices(len(axis)))] if step > 0 else None
            if step != 1 or kept is None or result is None or len(kept) != len(result):
                links.stay([axis, result], f"Slice {node.name!r} takes some of them in steps")
            else:
                links.together(kept, result)


def slice_bounds(node: ir.Node, rank: int) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step for each axis that a Slice cuts; None where they are not constant."""
    starts, ends = integers(node, 1), integers(node, 2)
    if starts is None or ends is None:
        return None
    axes: list[int] | None = list(range(len(starts)))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = axes_of(node, 3, rank)
    steps: list[int] | None = [1] * len(starts)
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = integers(node, 4)
    if axes is None or steps is None:
        return None
    return {
        axis: (start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def pad(links: Links, node: ir.Node) -> None:
    """Positions of a constant before and behind; they follow the axis they are added to."""
    before, after = links.input(node, 0), links.output(node)
    amounts = pad_amounts(node, len(before))
    if amounts is None:
        raise Unfollowable(f"the amounts of Pad {node.name!r} are computed at run time")
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    for axis, result, (low, high) in zip(before, after, amounts, strict=True):
        if low == high == 0:
            links.together(axis, result)
        elif axis is None or result is None or mode != "constant" or min(low, high) < 0:
            links.stay([axis, result], f"Pad {node.name!r} fills up by {mode!r}")
        else:
            links.together(axis, result[low : low + len(axis)])


def pad_amounts(node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """How much a Pad adds before and behind each axis; None where that is not constant."""
    amounts = integers(node, 1)
    if amounts is None:
        return None
    axes: list[int] | None = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = axes_of(node, 3, rank)
    if axes is None or len(amounts) != 2 * len(axes):
        return None
    found = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis] = (amounts[place], amounts[len(axes) + place])
    return found


def gather(links: Links, node: ir.Node) -> None:
    """Rows of a table, or channels picked by constant numbers."""
    table, places, after = links.input(node, 0), links.input(node, 1), links.output(node)
    number = int_of(node, "axis", 0) % max(len(table), 1)
    for axis, result in itertools.chain(
        zip(table[:number], after[:number], strict=True),
        zip(table[number + 1 :], after[number + len(places) :], strict=True),
    ):
        links.together(axis, result)
    constant = constant_of(node.inputs[1])
    picked = after[number : number + len(places)]
    axis = table[number]
    if constant is not None and len(places) == 1 and axis is not None and picked[0] is not None:
        rows = constant.numpy().reshape(-1)
        links.together(axis[np.where(rows < 0, rows + len(axis), rows)], picked[0])
        links.stay(places, f"Gather {node.name!r} picks by them")
        return
    links.stay([axis], f"Gather {node.name!r} picks some of them")
    if constant is None:
        for place, result in zip(places, picked, strict=True):
            links.together(place, result)
    if constant_of(node.inputs[0]) is not None and len(table) == 2 and number == 0:
        links.weight(node, 0, 1, "makes")


def expand(links: Links, node: ir.Node) -> None:
    """Axes of length 1 become copies of one."""
    before, after = links.input(node, 0), links.output(node)
    follow_target(links, node, 1, after)
    offset = len(after) - len(before)
    for number, result in enumerate(after):
        axis = before[number - offset] if number >= offset else None
        if axis is not None and result is not None and len(axis) == len(result):
            links.together(axis, result)
        elif result is not None and (axis is None or len(axis) == 1):
            links.copies(result)
            links.stay([axis], f"Expand {node.name!r} makes copies of it")
        else:
            links.stay([axis], f"Expand {node.name!r} meets an unknown size")


def tile(links: Links, node: ir.Node) -> None:
    """Every channel several times."""
    before, after = links.input(node, 0), links.output(node)
    times = integers(node, 1)
    if times is None:
        raise Unfollowable(f"how often Tile {node.name!r} repeats is computed at run time")
    for axis, result, often in zip(before, after, times, strict=True):
        if axis is None or result is None:
            links.stay([axis, result], f"Tile {node.name!r} repeats an unknown size")
        else:
            links.together(np.tile(axis, often), result)


def depth_to_space(links: Links, node: ir.Node) -> None:
    """Channels become blocks of pixels: C = blocks x channels (DCR) or channels x blocks (CRD)."""
    before, after = links.input(node, 0), links.output(node)
    blocks = int_of(node, "blocksize", 1) ** 2
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "DCR"
    channels = after[1]
    if channels is None:
        raise Unfollowable("the number of channels is not known")
    order = np.repeat(channels, blocks) if mode == "CRD" else np.tile(channels, blocks)
    links.together(before[1], order)
    links.together(before[0], after[0])
    links.stay([*before[2:], *after[2:]], f"{node.op_type} {node.name!r} lays them out in space")


def space_to_depth(links: Links, node: ir.Node) -> None:
    """Blocks of pixels become channels: C = blocks x channels."""
    before, after = links.input(node, 0), links.output(node)
    if before[1] is None:
        raise Unfollowable("the number of channels is not known")
    links.together(after[1], np.tile(before[1], int_of(node, "blocksize", 1) ** 2))
    links.together(before[0], after[0])
    links.stay([*before[2:], *after[2:]], f"{node.op_type} {node.name!r} gathers them from space")


def shape(links: Links, node: ir.Node) -> None:
    """Sizes as numbers: axes of which more than shapes is made stay as they are."""
    before = links.input(node, 0)
    links.stay(
        [before[axis] for axis in sorted(measured_axes(node))],
        f"their number is computed with (Shape {node.name!r})",
    )


def constant_of_shape(links: Links, node: ir.Node) -> None:
    """A tensor of one number in a size that can be mended."""
    follow_target(links, node, 0, links.output(node))
