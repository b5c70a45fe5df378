"""What is known of a model's inputs and outputs before anything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    name: as in the model file.
    dtype: NumPy's name of the element type ("float32", "int64", "bool", ...).
    shape: an int where the axis is fixed, a name (str) where it is symbolic,
        None where nothing is known. A scalar has the shape ().
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"
