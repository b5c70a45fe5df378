"""A model as it is, without compression: what a compressed one is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from packlight.llm.architectures import EMBEDDING, LINEAR, OTHER, OUTPUT
from packlight.llm.gguf.writer import Content, Rows

if TYPE_CHECKING:
    from packlight.llm.checkpoint.model import Checkpoint


def plain_contents(checkpoint: Checkpoint, kind: str = "F16") -> Iterator[Content]:
    """Yield every tensor for `write_gguf`: matrices as F32, F16 or BF16, the rest as F32.

    As llama.cpp's converter has it; what is not known (role "other") stays as it is stored.
    """
    for name, info in checkpoint.tensors.items():
        if info.role == OTHER and checkpoint.parts[name].sources:
            yield name, info.dtype, _stored(checkpoint, name)
        else:
            wide = kind if info.role in (EMBEDDING, LINEAR, OUTPUT) else "F32"
            yield name, wide, _blocks(checkpoint, name)


def _blocks(checkpoint: Checkpoint, name: str) -> Callable[[], Rows]:
    return lambda: checkpoint.read_blocks(name)


def _stored(checkpoint: Checkpoint, name: str) -> Callable[[], Rows]:
    return lambda: checkpoint.read_stored(name)
