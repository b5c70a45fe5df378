"""What a tensor of an unknown architecture is for, guessed from its name and shape."""

from __future__ import annotations

from packlight.llm.architectures import (
    BIAS,
    EMBEDDING,
    LINEAR,
    NORM,
    OTHER,
    OUTPUT,
    POSITION,
    ROPE,
    ROUTER,
)
from packlight.llm.checkpoint.config import ModelConfig

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "token_embd", "embed_in", "tok_embeddings")
_POSITIONS = ("wpe", "embed_positions", "position_embd", "position_embeddings")
_TOUCHY = ("ssm_", "conv", "time_", "rwkv", "altup", "laurel", "per_layer", "mamba", "rel_b")
_OUTPUTS = ("lm_head", "embed_out", "output.weight")


def infer_role(name: str, shape: tuple[int, ...], config: ModelConfig) -> str:
    """Guess a role. A matrix that nothing tells to be something else is a linear layer.

    What belongs to recurrent layers and the like is best left alone: `OTHER`.
    """
    if name.startswith("rope_"):
        return ROPE
    if name.endswith(".bias"):
        return BIAS
    if len(shape) < 2:
        return NORM
    if any(part in name for part in _POSITIONS):
        return POSITION
    if any(part in name for part in _EMBEDDINGS):
        return EMBEDDING
    if any(name == part or name.startswith(f"{part}.") for part in _OUTPUTS):
        return OUTPUT
    if config.experts and shape[0] == config.experts and len(shape) == 2:
        return ROUTER
    if len(shape) > 3 or min(shape) < 2 or any(part in name for part in _TOUCHY):
        return OTHER
    return LINEAR
