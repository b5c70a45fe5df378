"""How one decoder computes, as data: what its tensors alone don't say.

What a block has is told by the tensors that are there (a gate, norms of queries and keys,
biases, experts); the numbers below tell the rest. Tensors have GGUF's names and orders of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from packlight.errors import UnusableModel
from packlight.llm.architectures import ARCHITECTURES, Architecture
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.config import ModelConfig, RopeScaling

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu"]

_NEIGHBOURS = ("llama",)
"""Architectures whose rows of queries and keys llama.cpp wants with pairs side by side."""

_UNNORMALIZED = ("qwen2moe",)
"""Architectures whose experts' shares are not made to add up to 1."""


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


def plain_frequencies(base: float, size: int) -> tuple[float, ...]:
    """Give base^(-2i / size) for the size / 2 pairs of dimensions."""
    return tuple(float(base ** (-2 * i / size)) for i in range(size // 2))


def wiring_of(config: ModelConfig, divisors: Sequence[float] | None = None) -> Wiring:
    """Give the wiring of a known architecture.

    divisors: [rope_width / 2] what each frequency is divided by, where the model has a tensor of
    them (`rope_freqs.weight`). Raises UnusableModel for an architecture that is not known.
    """
    table: Mapping[str, Architecture] = {one.name: one for one in ARCHITECTURES}
    known = table.get(config.architecture)
    if known is None or not config.known:
        raise UnusableModel(
            f"a model of the type {config.model_type!r} cannot be computed block by block: known "
            f"are {', '.join(sorted(table))}; compress it without a text"
        )
    gemma = known.name.startswith("gemma")
    sliding = config.sliding_layers or (False,) * config.layers
    large = bool(known.scaled_query) and config.layers == known.scaled_query
    size = config.width / config.heads if large else config.head_width
    whole = _rotary(config, config.rope_theta, config.rope_scaling, divisors)
    near = whole
    if config.rope_theta_sliding:
        near = _rotary(config, config.rope_theta_sliding, None, None)
    return Wiring(
        width=config.width,
        heads=config.heads,
        key_heads=config.kv_heads,
        head_size=config.head_width,
        rotary=tuple(near if one else whole for one in sliding),
        window=tuple(config.sliding_window if one else None for one in sliding),
        attention_scale=1 / math.sqrt(size),
        norm="layer" if known.layer_norm else "rms",
        norm_epsilon=config.norm_epsilon,
        activation="gelu_tanh" if gemma or known.name == "gpt2" else "silu",
        attention_softcap=config.attention_softcap or None,
        final_softcap=config.output_softcap or None,
        embedding_scale=math.sqrt(config.width) if gemma else 1.0,
        experts_used=config.experts_used,
        normalized_experts=known.name not in _UNNORMALIZED,
    )


def read_wiring(checkpoint: Checkpoint) -> Wiring:
    """The wiring of a checkpoint, its tensor of rotation factors included."""
    name = "rope_freqs.weight"
    divisors = None
    if name in checkpoint.tensors:
        divisors = [float(one) for one in checkpoint.read(name).ravel()]
    return wiring_of(checkpoint.config, divisors)


def _rotary(
    config: ModelConfig,
    base: float,
    scaling: RopeScaling | None,
    divisors: Sequence[float] | None,
) -> Rotary | None:
    size = config.rope_width
    if not size:
        return None
    frequencies = list(plain_frequencies(base, size))
    magnitude = 1.0
    if scaling is not None and scaling.kind == "linear":
        frequencies = [one / (scaling.factor or 1.0) for one in frequencies]
    if scaling is not None and scaling.kind == "yarn":
        frequencies, magnitude = _stretch(frequencies, base, size, scaling)
    if scaling is not None and scaling.kind == "longrope":
        # Windows of calibration are within what the model was first trained for.
        divisors = scaling.short_factors or divisors
        ratio = config.context / max(scaling.original_context, 1)
        magnitude = scaling.attention_factor or (
            math.sqrt(1 + math.log(ratio) / math.log(scaling.original_context))
            if ratio > 1
            else 1.0
        )
    if divisors is not None:
        if len(divisors) != len(frequencies):
            raise UnusableModel(
                f"{len(divisors)} factors of rotation were found for {len(frequencies)} "
                "frequencies: the checkpoint's configuration does not fit its tensors"
            )
        frequencies = [one / by for one, by in zip(frequencies, divisors, strict=True)]
    pairs: Literal["neighbours", "halves"] = (
        "neighbours" if config.architecture in _NEIGHBOURS else "halves"
    )
    return Rotary(pairs, size, tuple(frequencies), magnitude)


def _stretch(
    frequencies: Sequence[float], base: float, size: int, scaling: RopeScaling
) -> tuple[list[float], float]:
    """YaRN (Peng et al. 2023): slow turns are stretched by the factor, fast ones left alone."""
    factor = scaling.factor or 1.0

    def pair_of(turns: float) -> float:
        around = scaling.original_context / (turns * 2 * math.pi)
        return size * math.log(around) / (2 * math.log(base))

    low = max(math.floor(pair_of(scaling.beta_fast or 32.0)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow or 1.0)), size - 1)
    found = []
    for i, one in enumerate(frequencies):
        share = min(max((i - low) / max(high - low, 1e-3), 0.0), 1.0)
        found.append(one / factor * share + one * (1 - share))
    magnitude = scaling.attention_factor or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return found, magnitude
