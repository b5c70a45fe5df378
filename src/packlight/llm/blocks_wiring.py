"""How one decoder computes, as data: what its tensors alone don't say.

What a block has is told by the tensors that are there (a gate, norms of queries and keys,
biases, experts); the numbers below tell the rest. Tensors have GGUF's names and orders of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of one layer (Su et al. 2021).

    pairs: of which dimensions a pair is made: neighbours (2i, 2i + 1), as llama.cpp orders the
    rows of Llama's queries and keys, or halves (i, i + size / 2). size: dimensions of a head that
    turn, the first ones. frequencies: [size / 2] radians a position. magnitude: of what is turned.
    """

    pairs: Literal["neighbours", "halves"]
    size: int
    frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class Wiring:
    """The numbers of one decoder.

    rotary: of each layer, None where positions are not turned. window: of each layer, the
    positions that are seen, itself included; None where all are. attention_scale: of the products
    of queries and keys. experts_used: of the experts of a layer, for each token.
    normalized_experts: whether the weights of those used add up to 1. embedding_scale: of what
    enters the first block.
    """

    width: int
    heads: int
    key_heads: int
    head_size: int
    rotary: tuple[Rotary | None, ...]
    window: tuple[int | None, ...]
    attention_scale: float
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    activation: Activation = "silu"
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    experts_used: int = 0
    normalized_experts: bool = True

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.rotary)


def plain_frequencies(base: float, size: int, factor: float = 1.0) -> tuple[float, ...]:
    """Give base^(-2i / size) / factor for the size / 2 pairs."""
    return tuple(float(base ** (-2 * i / size)) / factor for i in range(size // 2))
