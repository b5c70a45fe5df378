"""A checkpoint without some of its blocks: a view that everything downstream takes for the model.

The blocks that stay are numbered anew; configuration and metadata say how many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace

from packlight.errors import UnusableModel
from packlight.llm.architectures import BY_MODEL_TYPE
from packlight.llm.checkpoint.model import Checkpoint
from packlight.llm.checkpoint.parts import Part
from packlight.llm.gguf.values import Kind, Value, value_of
from packlight.llm.storage import Stored


def check_alike(checkpoint: Checkpoint) -> None:
    """Raise UnusableModel where a block cannot simply go, as blocks are not alike."""
    config = checkpoint.config
    architecture = BY_MODEL_TYPE.get(config.model_type)
    if architecture is None or not config.known:
        raise UnusableModel(
            f"{checkpoint.path} is a model of the type {config.model_type!r}, whose blocks cannot "
            "be computed here, so nobody can say which may go: leave --prune out."
        )
    if architecture.window or architecture.scaled_query or any(config.sliding_layers):
        raise UnusableModel(
            f"The blocks of {checkpoint.path} are not alike: which of them see only a window of "
            f"the text is counted off by llama.cpp's {architecture.name}, and would be wrong once "
            "some are gone; leave --prune out."
        )
    found: dict[int, dict[str, tuple[int, ...]]] = {n: {} for n in range(config.layers)}
    for name, info in checkpoint.tensors.items():
        block = checkpoint.block_of(name)
        if block is not None:
            found.setdefault(block, {})[checkpoint.in_block(name, 0)] = info.shape
    other = next((n for n in found if found[n] != found[0]), None)
    if other is not None:
        raise UnusableModel(
            f"The blocks of {checkpoint.path} are not alike: block {other} has other tensors than "
            "block 0, so numbering them anew would mix them up; leave --prune out."
        )


def drop_blocks(
    checkpoint: Checkpoint,
    removed: Collection[int],
    *,
    replaced: Mapping[str, Stored] | None = None,
    mark: str = "",
) -> Checkpoint:
    """Give the checkpoint without these blocks, whose `check_alike` has passed.

    replaced: by the name in `checkpoint`, where tensors lie that stand in the place of its own.
    mark: tells these apart in the fingerprint.
    """
    layers = checkpoint.config.layers
    kept = [block for block in range(layers) if block not in removed]
    number = {block: place for place, block in enumerate(kept)}
    infos, parts = {}, {}
    for name, info in checkpoint.tensors.items():
        block = checkpoint.block_of(name)
        if block is not None and block not in number:
            continue
        part, new, source = checkpoint.parts[name], name, info.source
        if block is not None:
            new = checkpoint.in_block(name, number[block])
            source = checkpoint.in_block(source, number[block])
        if replaced and name in replaced:
            part = Part(info.shape, (replaced[name],))
            info = replace(info, dtype=replaced[name].dtype)
        infos[new], parts[new] = replace(info, name=new, source=source), part
    said = f"{checkpoint.fingerprint} without {sorted(set(removed))} {mark}"
    config = checkpoint.config
    return replace(
        checkpoint,
        config=replace(
            config,
            layers=len(kept),
            sliding_layers=tuple(config.sliding_layers[n] for n in kept if config.sliding_layers),
        ),
        tensors=infos,
        parts=parts,
        size_bytes=sum(one.size_bytes for part in parts.values() for one in part.sources),
        fingerprint=hashlib.sha256(said.encode()).hexdigest(),
        metadata=_shorten_metadata(checkpoint, kept),
    )


def _shorten_metadata(checkpoint: Checkpoint, kept: Collection[int]) -> dict[str, Value] | None:
    """The count of blocks, and lists of one item a block without those that went."""
    if checkpoint.metadata is None:
        return None
    layers, prefix = checkpoint.config.layers, f"{checkpoint.config.architecture}."
    pairs = {}
    for key, value in checkpoint.metadata.items():
        if key == f"{prefix}block_count":
            value = value_of(len(kept), value.kind)
        elif key.startswith(prefix) and value.kind is Kind.ARRAY and value.items == layers:
            content, kind = value.content, Kind(value.raw[0])
            assert isinstance(content, list)
            value = value_of([content[block] for block in kept], kind)
        pairs[key] = value
    return pairs
