"""Tensors of rotation factors, which llama.cpp reads beside the weights."""

from __future__ import annotations

import math

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.config import ModelConfig, RopeScaling


def rope_tensors(config: ModelConfig, where: str) -> dict[str, tuple[float, ...]]:
    """Give the factors by which each frequency is divided, by tensor name; often none.

    Raises UnusableModel when there are not half as many factors as rotated dimensions.
    """
    scaling = config.rope_scaling
    if scaling is None or not config.known:
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, scaling)}
    if scaling.kind != "longrope":
        return {}
    for factors in (scaling.short_factors, scaling.long_factors):
        if len(factors) != config.rope_width // 2 or not all(factor > 0 for factor in factors):
            raise UnusableModel(
                f"{where} gives {len(factors)} factors of rotation in rope_scaling, and "
                f"{config.rope_width // 2} positive ones are needed: download the model again."
            )
    return {
        "rope_factors_long.weight": scaling.long_factors,
        "rope_factors_short.weight": scaling.short_factors,
    }


def _llama3_factors(config: ModelConfig, scaling: RopeScaling) -> tuple[float, ...]:
    """Llama 3.1: long waves are stretched by `factor`, short ones not, those between in part.

    Source: transformers, modeling_rope_utils.py, _compute_llama3_parameters.
    """
    factor = scaling.factor or 8.0
    low, high = scaling.low_frequency or 1.0, scaling.high_frequency or 4.0
    context = scaling.original_context
    found = []
    for pair in range(config.rope_width // 2):
        wave = 2 * math.pi * config.rope_theta ** (2 * pair / config.rope_width)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(found)
