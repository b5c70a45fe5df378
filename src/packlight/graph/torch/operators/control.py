"""Control flow, sequences and optional values.

A graph inside a node is called with its inputs and with all that the node's graphs read from
around, which comes behind the node's own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir
import torch

from packlight.graph.torch.values import DTYPES, Ints, Tensor, ints, whole


class Graph(Protocol):
    """A graph inside a node; `results` are its outputs, with their types."""

    results: Sequence[ir.Value]

    def __call__(self, given: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
        """Give the outputs for these inputs and the values from around."""


def branch(cond: Tensor, *captured: Any, then_branch: Graph, else_branch: Graph) -> Any:
    """One of two graphs."""
    return _few((then_branch if bool(cond) else else_branch)((), captured))


def _few(results: Sequence[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def loop(M: Tensor | None, cond: Tensor | None, *rest: Any, body: Graph, taken: int) -> Any:
    """A graph again and again: at most M times, and as long as the condition holds."""
    carried, captured = list(rest[: taken - 2]), rest[taken - 2 :]
    most = None if M is None else whole(M)
    going = True if cond is None else bool(cond)
    count = len(carried)
    collected: list[list[Any]] = [[] for _ in body.results[1 + count :]]
    step = 0
    while going and (most is None or step < most):
        given = [torch.tensor(step), torch.tensor(going), *carried]
        held, *results = body(given, captured)
        going = bool(held)
        carried = results[:count]
        for parts, value in zip(collected, results[count:], strict=True):
            parts.append(value)
        step += 1
    scans = [
        torch.stack(parts) if parts else _empty(value)
        for parts, value in zip(collected, body.results[1 + count :], strict=True)
    ]
    return _few([*carried, *scans])


def _empty(value: ir.Value) -> Tensor:
    """What was collected in no step at all."""
    sizes = [size if isinstance(size, int) else 0 for size in value.shape or ()]
    return torch.empty([0, *sizes], dtype=DTYPES[int(value.dtype or 1)])


def scan(
    *arguments: Any,
    body: Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    taken: int,
) -> Any:
    """A graph for each entry of the scan inputs, with states handed on."""
    own, captured = arguments[:taken], arguments[taken:]
    states = list(own[: taken - num_scan_inputs])
    inputs = own[taken - num_scan_inputs :]
    outputs = len(body.results) - len(states)
    axes = scan_input_axes or (0,) * len(inputs)
    backwards = scan_input_directions or (0,) * len(inputs)
    length = inputs[0].shape[axes[0]]
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    for step in range(length):
        entries = [
            value.select(axis, length - 1 - step if turned else step)
            for value, axis, turned in zip(inputs, axes, backwards, strict=True)
        ]
        results = body([*states, *entries], captured)
        for parts, value in zip(collected, results[len(states) :], strict=True):
            parts.append(value)
        states = results[: len(states)]
    made = []
    for place, parts in enumerate(collected):
        axis = scan_output_axes[place] if scan_output_axes else 0
        if scan_output_directions and scan_output_directions[place]:
            parts = parts[::-1]
        made.append(torch.stack(parts, axis) if parts else _empty(body.results[-outputs:][place]))
    return _few([*states, *made])


def scan_8(
    sequence_lens: Tensor | None,
    *arguments: Any,
    body: Graph,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
    taken: int,
) -> Any:
    """Scan as in version 8, for each entry of a batch; outputs end with their sequence."""
    own, captured = arguments[: taken - 1], arguments[taken - 1 :]
    states = len(own) - num_scan_inputs
    batch, longest = own[states].shape[:2]
    lengths = [longest] * batch if sequence_lens is None else ints(sequence_lens)
    rows = []
    for number, length in enumerate(lengths):
        entries = [value[number] for value in own[:states]]
        entries += [value[number, :length] for value in own[states:]]
        found = scan(
            *entries,
            *captured,
            body=body,
            num_scan_inputs=num_scan_inputs,
            scan_input_directions=directions,
            taken=len(entries),
        )
        results = list(found) if isinstance(found, tuple) else [found]
        for place in range(states, len(results)):
            missing = results[place].new_zeros((longest - length, *results[place].shape[1:]))
            results[place] = torch.cat([results[place], missing])
        rows.append(results)
    return _few([torch.stack(list(column)) for column in zip(*rows, strict=True)])


def sequence_map(input_sequence: list[Any], *rest: Any, body: Graph, taken: int) -> Any:
    """A graph for each entry of a sequence; further sequences go along, tensors stay."""
    others, captured = rest[: taken - 1], rest[taken - 1 :]
    collected: list[list[Any]] = [[] for _ in body.results]
    for place, entry in enumerate(input_sequence):
        beside = [one[place] if isinstance(one, list) else one for one in others]
        for parts, value in zip(collected, body([entry, *beside], captured), strict=True):
            parts.append(value)
    return _few(collected)


def sequence_at(input_sequence: list[Any], position: Tensor) -> Any:
    """One entry, negative positions from the end."""
    return input_sequence[whole(position)]


def sequence_construct(*inputs: Any) -> list[Any]:
    """A sequence of the inputs."""
    return list(inputs)


def sequence_empty(*, dtype: int = 1) -> list[Any]:
    """A sequence without entries."""
    return []


def sequence_erase(input_sequence: list[Any], position: Tensor | None = None) -> list[Any]:
    """Without one entry, by default the last."""
    place = -1 if position is None else whole(position)
    place %= len(input_sequence)
    return input_sequence[:place] + input_sequence[place + 1 :]


def sequence_insert(
    input_sequence: list[Any], tensor: Any, position: Tensor | None = None
) -> list[Any]:
    """With a tensor put in, by default at the end."""
    place = len(input_sequence) if position is None else whole(position)
    if place < 0:
        place += len(input_sequence)
    return [*input_sequence[:place], tensor, *input_sequence[place:]]


def sequence_length(input_sequence: list[Any]) -> Tensor:
    """How many entries there are."""
    return torch.tensor(len(input_sequence))


def split_to_sequence(
    input: Tensor, split: Ints | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """Pieces along an axis: of one size, of several, or single entries."""
    if split is None:
        pieces = list(torch.split(input, 1, axis))
        return pieces if keepdims else [piece.squeeze(axis) for piece in pieces]
    if isinstance(split, torch.Tensor) and split.ndim == 0:
        return list(torch.split(input, whole(split), axis))
    return list(torch.split(input, ints(split), axis))


def concat_from_sequence(input_sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """The entries one behind the other, along an axis that is there or a new one."""
    return torch.stack(input_sequence, axis) if new_axis else torch.cat(input_sequence, axis)


def optional(input: Any = None, *, type: Any = None) -> Any:
    """The value, or none."""
    return input


def optional_get_element(input: Any) -> Any:
    """The value that is there."""
    if input is None:
        raise ValueError("an optional value was asked for and is not there")
    return input


def optional_has_element(input: Any = None) -> Tensor:
    """Whether a value is there."""
    return torch.tensor(input is not None)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "ConcatFromSequence": concat_from_sequence,
    "If": branch,
    "Loop": loop,
    "Optional": optional,
    "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element,
    "Scan": {8: scan_8, 9: scan},
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty,
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SequenceMap": sequence_map,
    "SplitToSequence": split_to_sequence,
}
