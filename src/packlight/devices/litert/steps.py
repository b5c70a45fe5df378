"""Operators one after another, whose results no value of the graph is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from packlight.devices.litert.graph import NO_ACTIVATION, Translation


class Steps:
    """Operators one after another on float tensors of a node, of which only the last is kept."""

    def __init__(self, to: Translation, node: ir.Node, shape: Sequence[int]) -> None:
        self._to, self._name, self.shape = to, str(node.name), tuple(shape)

    def number(self, value: float) -> int:
        """A constant."""
        return self._to.draft.constant("number", np.array(value, np.float32))

    def binary(
        self, name: str, first: int, second: int, *, times: int = 1, out: int | None = None
    ) -> int:
        """ADD, SUB, MUL, DIV of tensors; written into `out`, else into a tensor of its own.

        times: as often as long along the last axis.
        """
        made = self._tensor((*self.shape[:-1], times * self.shape[-1])) if out is None else out
        self._to.draft.operator(
            name,
            [first, second],
            [made],
            f"{name.capitalize()}Options",
            fusedActivationFunction=NO_ACTIVATION,
        )
        return made

    def unary(self, name: str, source: int, options: str = "") -> int:
        """An operator of one input."""
        made = self._tensor(self.shape)
        self._to.draft.operator(name, [source], [made], options)
        return made

    def mean(self, source: int, axes: Sequence[int]) -> int:
        """The mean along axes, which are kept with one element each."""
        made = self._tensor([1 if axis in axes else n for axis, n in enumerate(self.shape)])
        inputs = [source, self._to.numbers(axes)]
        self._to.draft.operator("MEAN", inputs, [made], "ReducerOptions", keepDims=True)
        return made

    def connect(self, source: int, weight: int, bias: int, times: int, *, length: int = 1) -> int:
        """Product of source [length, .., in] and weight [times * last axis, in], and a bias."""
        made = self._tensor((length, *self.shape[1:-1], times * self.shape[-1]))
        self._to.draft.operator(
            "FULLY_CONNECTED",
            [source, weight, bias],
            [made],
            "FullyConnectedOptions",
            fusedActivationFunction=NO_ACTIVATION,
            keepNumDims=True,
        )
        return made

    def split(self, source: int, count: int, *, axis: int = -1, times: int = 1) -> list[int]:
        """Equal parts along an axis. times: as often as long along the last axis."""
        if count == 1:
            return [source]
        shape = (*self.shape[:-1], times * self.shape[-1])
        made = [self._tensor(shape) for _ in range(count)]
        place = self._to.draft.constant("axis", np.array(axis % len(shape), np.int32))
        self._to.draft.operator("SPLIT", [place, source], made, "SplitOptions", numSplits=count)
        return made

    def concat(
        self, parts: Sequence[int], axis: int, shape: Sequence[int], *, out: int | None = None
    ) -> int:
        """Parts one after another along an axis."""
        made = self._tensor(shape) if out is None else out
        self._to.draft.operator(
            "CONCATENATION",
            [*parts],
            [made],
            "ConcatenationOptions",
            axis=axis,
            fusedActivationFunction=NO_ACTIVATION,
        )
        return made

    def reshape(self, source: int, shape: Sequence[int]) -> int:
        """The same numbers in another shape."""
        made = self._tensor(shape)
        inputs = [source, self._to.numbers([*shape])]
        self._to.draft.operator("RESHAPE", inputs, [made], "ReshapeOptions", newShape=[*shape])
        return made

    def _tensor(self, shape: Sequence[int]) -> int:
        return self._to.draft.tensor(f"{self._name}_step", shape, "float32")
