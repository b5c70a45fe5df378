"""Runs a graph: steps over a list of values, each dropped after its last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Step(NamedTuple):
    """One node: `run` of the values at `inputs` gives those at `outputs`; `dropped` end here."""

    run: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dropped: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class Program:
    """A graph made ready: steps over `size` values, the last of which is always None.

    given: where the values that `run_program` takes are put. outputs: where results lie.
    """

    steps: tuple[Step, ...]
    size: int
    given: tuple[int, ...]
    outputs: tuple[int, ...]

    def __deepcopy__(self, memo: Any) -> Program:
        """Itself: copies of a module share what never changes."""
        return self


def run_program(
    program: Program,
    given: Sequence[Any],
    through: Mapping[int, Callable[[Any], Any]] | None = None,
) -> list[Any]:
    """The outputs of a program. given: one value for each of `program.given`.

    through: by place, a function that each value put there goes through (fake quantization,
    or one that only looks). Whatever a node raises has a note that names it.
    """
    values: list[Any] = [None] * program.size
    for place, value in zip(program.given, given, strict=True):
        values[place] = value
    if through:
        for place in through.keys() & set(program.given):
            values[place] = through[place](values[place])
    for run, inputs, outputs, dropped, label in program.steps:
        arguments = [values[place] for place in inputs]
        try:
            result = run(*arguments)
        except Exception as error:
            result = _run_again(run, arguments, label, error)
        if type(result) is tuple:
            for place, value in zip(outputs, result, strict=False):
                values[place] = value
        else:
            values[outputs[0]] = result
        if through:
            for place in outputs:
                if place in through:
                    values[place] = through[place](values[place])
        for place in dropped:
            values[place] = None
    return [values[place] for place in program.outputs]


# Types for which PyTorch has few kernels, and those that hold all their values.
_WIDER = {
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e4m3fnuz: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.float8_e5m2fnuz: torch.float32,
    torch.float8_e8m0fnu: torch.float32,
}


def _run_again(
    run: Callable[..., Any], arguments: Sequence[Any], label: str, error: Exception
) -> Any:
    """Repeat what failed in wider types, or with constants of the CPU moved to the others."""
    tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
    narrow = {one.dtype for one in tensors if one.dtype in _WIDER}
    devices = {one.device for one in tensors if one.device.type != "cpu"}
    moved = len(devices) == 1 and len({one.device for one in tensors}) > 1
    if not isinstance(error, (RuntimeError, NotImplementedError)) or not (narrow or moved):
        error.add_note(f"in node {label}")
        raise error

    def prepare(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        return one.to(
            next(iter(devices)) if moved else one.device, _WIDER.get(one.dtype, one.dtype)
        )

    def restore(one: Any) -> Any:
        if not narrow or not isinstance(one, torch.Tensor):
            return one
        back = next(iter(narrow))
        return one.to(back) if one.dtype == _WIDER[back] else one

    try:
        result = run(*[prepare(one) for one in arguments])
    except Exception as second:
        second.add_note(f"in node {label}")
        raise
    if type(result) is tuple:  # what follows the first are places and counts
        return (restore(result[0]), *result[1:])
    return restore(result)
