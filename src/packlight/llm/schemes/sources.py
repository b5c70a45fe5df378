"""The way back from a checkpoint's tensors, as GGUF names and orders them, to Hugging Face's.

A tensor of the model (`blk.3.attn_q.weight`) has one or, with experts, many tensors in the folder
(`model.layers.3.self_attn.q_proj.weight`). Queries' and keys' rows stand there half by half of a
head, and in the model turn by turn (`packlight.llm.checkpoint.parts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel, WrongUsage
from packlight.llm.architectures import IGNORED_PARTS, LINEAR
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.folder import read_weights
from packlight.llm.checkpoint.parts import Part
from packlight.llm.schemes.layouts import ITEM_BYTES
from packlight.llm.storage import Stored

_LAYER = re.compile(r"(?<=\.)(layers|h)\.\d+\.")
_PIECE = 1 << 24
_ENDING = ".weight"


def check_folder(checkpoint: Checkpoint) -> None:
    """Raise WrongUsage where a checkpoint cannot become a folder of Hugging Face's."""
    if not checkpoint.path.is_dir():
        raise WrongUsage(
            f"{checkpoint.path} is a GGUF file, which lacks the config.json that vLLM needs: give "
            "the Hugging Face folder that it was made from, or use --target llama.cpp."
        )
    for name in checkpoint.with_role(LINEAR):
        if checkpoint.parts[name].change == "transpose":
            raise WrongUsage(
                f"{checkpoint.path} is a {checkpoint.config.model_type}, whose layers are no "
                "linear ones in transformers (its weights are transposed): vLLM has no scheme for "
                "them. Use --target llama.cpp."
            )


def outputs_of(checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    """Names in the folder of what a tensor of the model is made of."""
    block = checkpoint.block_of(name)
    return tuple(_rename(one.name, block) for one in checkpoint.parts[name].sources)


def is_linear(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor holds the weights of linear layers, as transformers has them."""
    info, part = checkpoint.tensors[name], checkpoint.parts[name]
    return (
        info.role == LINEAR
        and part.change in ("", "rotary", "stack")
        and all(len(one.shape) == 2 and one.name.endswith(_ENDING) for one in part.sources)
    )


def other_tensors(checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """Tensors of the folder that belong to no tensor of the model, but to what it is part of."""
    used = {one.name for part in checkpoint.parts.values() for one in part.sources}
    return tuple(
        one
        for name, one in read_weights(checkpoint.path).tensors.items()
        if name not in used and (name.startswith(IGNORED_PARTS) or not checkpoint.config.known)
    )


def to_folder_rows(part: Part, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows [out, ..] of the model in the folder's order."""
    if part.change != "rotary":
        return rows
    heads = rows.reshape(-1, part.head_width // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def to_model_rows(part: Part, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows [out, ..] of the folder in the model's order; the way back."""
    if part.change != "rotary":
        return rows
    heads = rows.reshape(-1, 2, part.head_width // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def read_pieces(stored: Stored) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's bytes as they are stored, some at a time. Raises UnusableModel."""
    left = int(np.prod(stored.shape, dtype=np.int64)) * ITEM_BYTES[stored.dtype]
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    break
                left -= len(piece)
                yield np.frombuffer(piece, np.uint8)
    except OSError as error:
        raise UnusableModel(
            f"{stored.name} cannot be read from {stored.file}: {error.strerror or error}."
        ) from None
    if left:
        raise UnusableModel(f"{stored.file} became shorter while {stored.name} was read.")


def _rename(name: str, block: int | None) -> str:
    """A stored name with the number of the block that the tensor is in now."""
    return name if block is None else _LAYER.sub(rf"\g<1>.{block}.", name, count=1)
