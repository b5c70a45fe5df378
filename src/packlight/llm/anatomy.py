"""What a language model is and where its bytes are, from its files' heads: no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from packlight.llm.architectures import BIAS, NORM, OTHER, POSITION, ROPE, ROUTER
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import uniform_types
from packlight.llm.compress_forecast import forecast_compression, rounded_names
from packlight.llm.formats import FORMATS, fits

FILE_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
"""Types that one is shown the size of a whole file in."""

_WHY_KEPT = {
    NORM: "a norm: small, and every number after it depends on it",
    BIAS: "a bias: small, and added as it is",
    ROUTER: "a router: tiny, and an error sends tokens to other experts",
    POSITION: "a learned table of positions",
    ROPE: "factors of rotation",
    OTHER: "what it is for is not known",
}


@dataclass(frozen=True)
class TensorAnatomy:
    """A tensor. source: its name in the checkpoint. shape: [out, in] for a matrix. type: as
    stored, in GGUF's words. bytes: as stored. kept: why it is never rounded; '' where it may be.
    """

    name: str
    source: str
    role: str
    block: int | None
    shape: tuple[int, ...]
    type: str
    weights: int
    bytes: int
    kept: str


@dataclass(frozen=True)
class FileSize:
    """A GGUF file in which every tensor that may has this type.

    bits: a weight, over all tensors. others: tensors whose rows it does not fit, by the type that
    they have instead.
    """

    type: str
    bytes: int
    bits: float
    others: dict[str, int]


@dataclass(frozen=True)
class LanguageAnatomy:
    """All that `packlight inspect` shows of a language model.

    size_bytes: of all tensors as stored. blocks: decoder blocks. width: of the stream between
    them; head_width: of one head; feed_forward: hidden units of a block (of one expert, where
    there are experts). context: tokens. Zero: there is none, or it is not said.
    tokenizer: as GGUF names it. files: empty where no GGUF file can be written.
    """

    path: str
    kind: str
    architecture: str
    known: bool
    parameters: int
    size_bytes: int
    blocks: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    experts: int
    experts_used: int
    vocabulary: int
    context: int
    sliding_window: int
    tied: bool
    tokenizer: str
    chat_template: bool
    tensors: tuple[TensorAnatomy, ...]
    files: tuple[FileSize, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, numbers and strings."""
        return asdict(self)


def describe_checkpoint(checkpoint: Checkpoint) -> LanguageAnatomy:
    """Take a language model apart; nothing but the heads of its files is read."""
    config, metadata = checkpoint.config, checkpoint.metadata or {}
    rounded = frozenset(rounded_names(checkpoint))
    tensors = tuple(_describe_tensors(checkpoint, rounded))
    weights = sum(one.weights for one in tensors)
    words = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return LanguageAnatomy(
        path=str(checkpoint.path),
        kind="language-model",
        architecture=config.architecture,
        known=config.known,
        parameters=weights,
        size_bytes=checkpoint.size_bytes,
        blocks=config.layers,
        width=config.width,
        heads=config.heads,
        key_value_heads=config.kv_heads,
        head_width=config.head_width,
        feed_forward=config.expert_feed_forward or config.feed_forward,
        experts=config.experts,
        experts_used=config.experts_used,
        vocabulary=config.vocabulary,
        context=config.context,
        sliding_window=config.sliding_window,
        tied=config.tied,
        tokenizer=", ".join(str(word.content) for word in words if word is not None),
        chat_template="tokenizer.chat_template" in metadata,
        tensors=tensors,
        files=tuple(_size_files(checkpoint, weights)) if checkpoint.metadata is not None else (),
        notes=tuple(_notes(checkpoint, rounded)),
    )


def _describe_tensors(checkpoint: Checkpoint, rounded: frozenset[str]) -> Iterator[TensorAnatomy]:
    for name, info in checkpoint.tensors.items():
        stored = checkpoint.parts[name].sources
        yield TensorAnatomy(
            name,
            info.source,
            info.role,
            checkpoint.block_of(name),
            info.shape,
            info.dtype,
            info.weights,
            sum(one.size_bytes for one in stored),
            "" if name in rounded else _WHY_KEPT.get(info.role, "a vector: small"),
        )


def _size_files(checkpoint: Checkpoint, weights: int) -> Iterator[FileSize]:
    for kind in FILE_TYPES:
        types = uniform_types(checkpoint, kind)
        held = sum(
            FORMATS[found].bits_per_weight * checkpoint.tensors[name].weights
            for name, found in types.items()
        )
        kept = weights - sum(checkpoint.tensors[name].weights for name in types)
        others = Counter(found for found in types.values() if found != kind)
        size = forecast_compression(checkpoint, types).size_bytes
        yield FileSize(kind, size, (held + 32 * kept) / max(weights, 1), dict(others))


def _notes(checkpoint: Checkpoint, rounded: Iterable[str]) -> Iterator[str]:
    yield from checkpoint.notes
    if checkpoint.trouble:
        yield checkpoint.trouble
    if checkpoint.metadata is None:
        yield "No GGUF file can be written of it: llama.cpp's names of its tensors are not known."
    narrow = Counter(
        width for name in rounded if not fits("Q4_K", width := checkpoint.tensors[name].shape[-1])
    )
    for width, count in sorted(narrow.items()):
        yield (
            f"{count} tensors have rows of {width} weights, which super-blocks of 256 do not "
            "divide: they get types of short blocks, which are larger."
        )
