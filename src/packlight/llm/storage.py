"""How tensors are stored: the types that GGUF knows, and where in a file a tensor lies."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path


@dataclass(frozen=True)
class TensorType:
    """A type of tensor data.

    block: weights that are stored together, along the inputs. block_bytes: what they take.
    gguf_type: the number that stands for it in a file. file_type: what `general.file_type`
    says of a file that is mostly of this type.
    """

    name: str
    gguf_type: int
    block: int
    block_bytes: int
    file_type: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, inputs: int) -> int:
        """Bytes of one row of `inputs` weights, which `block` must divide."""
        return inputs // self.block * self.block_bytes


_TABLE = (
    TensorType("F32", 0, 1, 4, 0),
    TensorType("F16", 1, 1, 2, 1),
    TensorType("Q4_0", 2, 32, 18, 2),
    TensorType("Q4_1", 3, 32, 20, 3),
    TensorType("Q5_0", 6, 32, 22, 8),
    TensorType("Q5_1", 7, 32, 24, 9),
    TensorType("Q8_0", 8, 32, 34, 7),
    TensorType("Q8_1", 9, 32, 36),
    TensorType("Q2_K", 10, 256, 84, 10),
    TensorType("Q3_K", 11, 256, 110, 12),
    TensorType("Q4_K", 12, 256, 144, 15),
    TensorType("Q5_K", 13, 256, 176, 17),
    TensorType("Q6_K", 14, 256, 210, 18),
    TensorType("Q8_K", 15, 256, 292),
    TensorType("IQ2_XXS", 16, 256, 66, 19),
    TensorType("IQ2_XS", 17, 256, 74, 20),
    TensorType("IQ3_XXS", 18, 256, 98, 23),
    TensorType("IQ1_S", 19, 256, 50, 24),
    TensorType("IQ4_NL", 20, 32, 18, 25),
    TensorType("IQ3_S", 21, 256, 110, 26),
    TensorType("IQ2_S", 22, 256, 82, 28),
    TensorType("IQ4_XS", 23, 256, 136, 30),
    TensorType("I8", 24, 1, 1),
    TensorType("I16", 25, 1, 2),
    TensorType("I32", 26, 1, 4),
    TensorType("I64", 27, 1, 8),
    TensorType("F64", 28, 1, 8),
    TensorType("IQ1_M", 29, 256, 56, 31),
    TensorType("BF16", 30, 1, 2, 32),
    TensorType("TQ1_0", 34, 256, 54, 36),
    TensorType("TQ2_0", 35, 256, 66, 37),
    TensorType("MXFP4", 39, 32, 17, 38),
)

TYPES = {one.name: one for one in _TABLE}
"""By name, as llama.cpp spells it."""

BY_NUMBER = {one.gguf_type: one for one in _TABLE}

PLAIN = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})
"""Types without blocks and scales."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. dtype: GGUF's name of its type; shape: outermost axis first, so
    [out, in] for a matrix; offset: of its first byte in `file`.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Rows of shape[-1] weights, all leading axes together."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return TYPES[self.dtype].row_bytes(self.shape[-1]) if self.shape else 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes
