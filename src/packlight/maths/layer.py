"""What all solvers of the layer problem share: checks, types, and where scales belong.

A layer is weight W [out, in] with the second moments H = E[x x^T] [in, in] of what reaches
it; a solver picks V from some set so that tr((W - V) H (W - V)^T) is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from array_api_compat import array_namespace, device

from packlight.maths.grids import Array, block_counts, expand_blocks

Precision: TypeAlias = Literal["float32", "float64"]

LARGE = 1024
"""Inputs above which a layer that comes in float32 is also worked on in float32."""


@dataclass(frozen=True)
class ByInput:
    """One value a group of inputs: rows [groups or 1, out or 1], `size` inputs a group."""

    rows: Array
    size: int

    def at(self, place: int) -> Array:
        """Give the values of one input, [out or 1]."""
        return self.rows[min(place // self.size, self.rows.shape[0] - 1), :]

    def of_inputs(self, some: slice) -> Array:
        """Give the values of some inputs, [inputs, out or 1]."""
        xp = array_namespace(self.rows)
        place = xp.arange(some.start, some.stop, device=device(self.rows)) // self.size
        return xp.take(self.rows, place.clip(0, self.rows.shape[0] - 1), axis=0)

    def of_outputs(self, chosen: Array) -> ByInput:
        """Keep some outputs. chosen: their indices."""
        xp = array_namespace(self.rows)
        if self.rows.shape[1] == 1:
            return self
        return ByInput(xp.take(self.rows, chosen, axis=1), self.size)


def by_input(
    xp: Any, values: Array, shape: tuple[int, int], block_shape: tuple[int, int]
) -> ByInput:
    """Arrange one value a block of a weight, blocks being (1, n), (1, -1) or (-1, -1)."""
    wide = xp.astype(one_a_block(xp, values, shape, block_shape), xp.float64)
    size = shape[1] if block_shape[1] == -1 else block_shape[1]
    return ByInput(xp.asarray(wide.T, copy=True), max(size, 1))


def one_a_block(
    xp: Any, values: Array, shape: tuple[int, int], block_shape: tuple[int, int]
) -> Array:
    """Give values in the shape of the blocks, [1, 1] where one holds for all."""
    counts = block_counts(shape, block_shape)
    return expand_blocks(xp.asarray(values), counts, (1,) * len(counts))


def block_shape_of(weight: Array, scale: Array, group_size: int | None) -> tuple[int, int]:
    """Tell from a scale's shape how a weight [out, in] is cut into blocks."""
    outputs, inputs = weight.shape
    shape = tuple(getattr(scale, "shape", ()))
    if group_size is not None:
        return (1, group_size)
    if len(shape) == 2 and shape[0] == outputs and shape[1] > 1:
        if inputs % shape[1]:
            raise ValueError(f"{shape[1]} groups do not divide {inputs} inputs: say the group_size")
        return (1, inputs // shape[1])
    return (1, -1) if outputs in shape else (-1, -1)


def check_moments(second_moments: Array, inputs: int) -> None:
    """Raise ValueError for second moments that are not [inputs, inputs] or not finite."""
    xp = array_namespace(second_moments)
    if tuple(second_moments.shape) != (inputs, inputs):
        raise ValueError(
            f"second moments of shape {tuple(second_moments.shape)} do not fit {inputs} inputs"
        )
    if not all(bool(xp.all(xp.isfinite(second_moments[rows, :]))) for rows in row_slices(inputs)):
        raise ValueError("the second moments are not finite: look for NaN in the samples")


def working_type(weight: Array, precision: Precision | None) -> Any:
    """Give the type to compute in: float64, but for layers that are large and not float64."""
    xp = array_namespace(weight)
    if precision is None:
        narrow = weight.shape[1] > LARGE and xp.finfo(weight.dtype).bits <= 32
        precision = "float32" if narrow else "float64"
    return getattr(xp, precision)


def row_slices(count: int, size: int = 256) -> Iterator[slice]:
    """Cut rows into pieces, so that what is computed of them stays small."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
