"""A checkpoint: what the model is, its tensors under their GGUF names, and reading them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.architectures import known_names
from packlight.llm.checkpoint.config import ModelConfig
from packlight.llm.checkpoint.parts import Part, read_part
from packlight.llm.checkpoint.stored import read_bytes
from packlight.llm.gguf.values import Value

_BLOCK = re.compile(r"(?:^|\.)(?:blk|layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the model. shape: [out, in] for a matrix, [experts, out, in] for stacked ones;
    dtype: as the checkpoint stores it, in GGUF's words; source: its name there, {e} for the
    expert; role: see packlight.llm.architectures.ROLES.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str
    role: str

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint; nothing of the weights is in memory.

    tensors: by GGUF name, in the order of the blocks; for an unknown architecture by the
    checkpoint's own names. files: what it is read from. size_bytes: of all tensors as stored.
    fingerprint: changes with configuration, tokenizer, tensors' places and a sample of their
    bytes. notes: what a user should know. metadata: for GGUF. trouble: why there is none.
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    parts: Mapping[str, Part]
    files: tuple[Path, ...]
    size_bytes: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Value] | None = None
    trouble: str = ""

    @property
    def roles(self) -> dict[str, str]:
        """The role of every tensor."""
        return {name: info.role for name, info in self.tensors.items()}

    def with_role(self, *roles: str) -> tuple[str, ...]:
        """Names of the tensors that have one of these roles."""
        return tuple(name for name, info in self.tensors.items() if info.role in roles)

    def block_of(self, name: str) -> int | None:
        """The decoder block that a tensor belongs to; None outside of the blocks."""
        found = _BLOCK.search(name)
        return int(found[1]) if found else None

    def in_block(self, name: str, block: int) -> str:
        """The name that a block's tensor has in another block."""
        found = _BLOCK.search(name)
        return f"{name[: found.start(1)]}{block}{name[found.end(1) :]}" if found else name

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor whole, in its shape, rows in GGUF's order. Raises UnusableModel."""
        part = self._part(name)
        return read_part(part, 0, part.rows).reshape(part.shape)

    def read_rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        """Read rows begin..end, leading axes taken together: float32 [end - begin, in]."""
        return read_part(self._part(name), begin, end)

    def read_blocks(self, name: str, most_bytes: int = 1 << 24) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of a tensor in blocks of at most so many bytes: float32 [n, in]."""
        part = self._part(name)
        step = max(1, most_bytes // (4 * part.shape[-1]))
        for begin in range(0, part.rows, step):
            yield read_part(part, begin, min(begin + step, part.rows))

    def read_stored(self, name: str) -> NDArray[np.uint8]:
        """Read a tensor's bytes as they are stored: uint8 [rows, row_bytes].

        Only where they are the model's own rows. Raises UnusableModel for what is made of
        several tensors, or whose rows are changed on reading.
        """
        part = self._part(name)
        if part.change or len(part.sources) != 1 or part.scales is not None:
            raise UnusableModel(f"{name} is not stored as it is in {self.path}.")
        return read_bytes(part.sources[0], 0, part.rows)

    def gguf_metadata(self) -> Mapping[str, Value]:
        """Everything that a GGUF file has in front of the tensors, tokenizer included.

        Raises UnusableModel when the architecture is not known.
        """
        if self.metadata is None:
            raise UnusableModel(
                f"{self.path} is a model of the type {self.config.model_type!r}, which cannot be "
                f"written for llama.cpp here; known are: {known_names()}."
            )
        return self.metadata

    def _part(self, name: str) -> Part:
        try:
            return self.parts[name]
        except KeyError:
            raise UnusableModel(f"{self.path} has no tensor {name}.") from None
