"""The numbers of a model as GGUF metadata, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.architectures import ARCHITECTURES
from packlight.llm.checkpoint.config import MOST_LAYERS, ModelConfig, RopeScaling
from packlight.llm.gguf.values import Kind, Value, value_of

# Key below the architecture's name, field of ModelConfig; whole numbers.
_COUNTS = (
    ("vocab_size", "vocabulary"),
    ("context_length", "context"),
    ("embedding_length", "width"),
    ("block_count", "layers"),
    ("feed_forward_length", "feed_forward"),
    ("attention.head_count", "heads"),
    ("attention.head_count_kv", "kv_heads"),
    ("attention.key_length", "head_width"),
    ("attention.value_length", "head_width"),
    ("rope.dimension_count", "rope_width"),
    ("expert_count", "experts"),
    ("expert_used_count", "experts_used"),
    ("expert_shared_feed_forward_length", "shared_feed_forward"),
)
_REALS = (
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_theta_sliding"),
    ("attn_logit_softcapping", "attention_softcap"),
    ("final_logit_softcapping", "output_softcap"),
)


def metadata_of(config: ModelConfig) -> dict[str, Value]:
    """The metadata that llama.cpp needs of a model of a known architecture, tokenizer aside."""
    architecture = next(one for one in ARCHITECTURES if config.model_type in one.model_types)
    name = architecture.name
    pairs: dict[str, Value] = {
        "general.architecture": value_of(name),
        "general.type": value_of("model"),
    }
    for key, attribute in _COUNTS:
        if number := getattr(config, attribute):
            pairs[f"{name}.{key}"] = value_of(number, Kind.U32)
    epsilon = "layer_norm_epsilon" if architecture.layer_norm else "layer_norm_rms_epsilon"
    pairs[f"{name}.attention.{epsilon}"] = value_of(config.norm_epsilon, Kind.F32)
    for key, attribute in _REALS if architecture.rotary else ():
        if number := getattr(config, attribute):
            pairs[f"{name}.{key}"] = value_of(number, Kind.F32)
    if config.experts and name != "llama":
        pairs[f"{name}.expert_feed_forward_length"] = value_of(config.expert_feed_forward)
    if name == "phi3":
        pairs[f"{name}.attention.sliding_window"] = value_of(config.sliding_window)
    elif architecture.window and config.sliding_window:
        pairs[f"{name}.attention.sliding_window"] = value_of(config.sliding_window)
        period = architecture.window
        usual = tuple((layer + 1) % period != 0 for layer in range(config.layers))
        if config.sliding_layers != usual:
            pairs[f"{name}.attention.sliding_window_pattern"] = value_of(config.sliding_layers)
    elif architecture.window:
        pairs[f"{name}.attention.sliding_window"] = value_of(0)
    if config.rope_scaling is not None:
        pairs |= _scaling_pairs(f"{name}.rope.scaling", config.rope_scaling, config)
    return pairs


def _scaling_pairs(prefix: str, scaling: RopeScaling, config: ModelConfig) -> dict[str, Value]:
    if scaling.kind == "llama3":
        return {}  # a tensor of factors says it all
    pairs = {f"{prefix}.type": value_of(scaling.kind)}
    if scaling.kind in ("linear", "yarn") and scaling.factor:
        pairs[f"{prefix}.factor"] = value_of(scaling.factor, Kind.F32)
    if scaling.kind in ("yarn", "longrope"):
        pairs[f"{prefix}.original_context_length"] = value_of(scaling.original_context)
    if scaling.kind == "longrope":
        attention = scaling.attention_factor or longrope_attention(scaling, config.context)
        pairs[f"{prefix}.attn_factor"] = value_of(attention, Kind.F32)
    elif scaling.kind == "yarn":
        for key, number in (
            ("yarn_attn_factor", scaling.attention_factor),
            ("yarn_beta_fast", scaling.beta_fast),
            ("yarn_beta_slow", scaling.beta_slow),
        ):
            if number:
                pairs[f"{prefix}.{key}"] = value_of(number, Kind.F32)
    return pairs


def longrope_attention(scaling: RopeScaling, context: int) -> float:
    """What attention is scaled by: sqrt(1 + log(s) / log(original context)), s how much longer."""
    from math import log, sqrt

    longer = context / scaling.original_context
    return sqrt(1 + log(longer) / log(scaling.original_context)) if longer > 1 else 1.0


def config_of(metadata: Mapping[str, Value], tensors: Mapping[str, Any], path: Path) -> ModelConfig:
    """Read a model's numbers from the metadata of a GGUF file. Raises UnusableModel."""
    name = _text(metadata, "general.architecture", path)
    known = [one for one in ARCHITECTURES if one.name == name]
    read = _Keys(metadata, name, path, lenient=not known)
    heads = read.count("attention.head_count")
    width = read.count("embedding_length")
    head_width = read.count("attention.key_length", default=width // max(heads, 1))
    experts = read.count("expert_count", default=0)
    feed_forward = read.count("feed_forward_length", default=0)
    tokens = metadata.get("tokenizer.ggml.tokens")
    epsilons = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
    return ModelConfig(
        architecture=name,
        model_type=_model_type(name, experts),
        known=bool(known),
        layers=read.count("block_count", most=MOST_LAYERS),
        width=width,
        vocabulary=read.count("vocab_size", default=tokens.items if tokens else 0),
        context=read.count("context_length"),
        heads=heads,
        kv_heads=read.count("attention.head_count_kv", default=heads),
        head_width=head_width,
        rope_width=read.count(
            "rope.dimension_count", default=head_width if not known or known[0].rotary else 0
        ),
        feed_forward=feed_forward,
        norm_epsilon=next((e for key in epsilons if (e := read.real(key))), 0.0),
        tied="output.weight" not in tensors,
        activation=known[0].activation if known else "",
        rope_theta=read.real("rope.freq_base") or 10000.0,
        rope_theta_sliding=read.real("rope.freq_base_swa"),
        rope_scaling=_scaling_of(read, "rope_freqs.weight" in tensors),
        experts=experts,
        experts_used=read.count("expert_used_count", default=0),
        expert_feed_forward=read.count(
            "expert_feed_forward_length", default=feed_forward if experts else 0
        ),
        shared_feed_forward=read.count("expert_shared_feed_forward_length", default=0),
        sliding_window=read.count("attention.sliding_window", default=0),
        sliding_layers=_sliding_of(read, known[0].window if known else 0),
        attention_softcap=read.real("attn_logit_softcapping"),
        output_softcap=read.real("final_logit_softcapping"),
        bos=_token(metadata, "tokenizer.ggml.bos_token_id"),
        eos=_token(metadata, "tokenizer.ggml.eos_token_id"),
    )


class _Keys:
    """Numbers below an architecture's name. lenient: what is missing or odd is 0."""

    def __init__(
        self, metadata: Mapping[str, Value], name: str, path: Path, *, lenient: bool
    ) -> None:
        self._metadata, self._name, self._path, self._lenient = metadata, name, path, lenient

    def raw(self, key: str) -> Any:
        """The value under a key, or None."""
        value = self._metadata.get(f"{self._name}.{key}")
        return None if value is None else value.content

    def count(self, key: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """A whole number up to `most`. Raises UnusableModel when it is missing and needed."""
        value = self.raw(key)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 <= value <= most:
            if self._lenient:
                return 0
            raise UnusableModel(
                f"{self._path} has {self._name}.{key} = {str(value)[:50]}, which must be a whole "
                f"number up to {most}: convert it again."
            )
        return value

    def real(self, key: str) -> float:
        """A number; 0 where there is none."""
        value = self.raw(key)
        return float(value) if isinstance(value, int | float) else 0.0


def _scaling_of(read: _Keys, has_factors: bool) -> RopeScaling | None:
    kind = read.raw("rope.scaling.type")
    if kind in (None, "none"):
        return RopeScaling("llama3") if has_factors else None
    return RopeScaling(
        kind=str(kind),
        factor=read.real("rope.scaling.factor"),
        original_context=int(read.real("rope.scaling.original_context_length")),
        attention_factor=read.real("rope.scaling.attn_factor")
        or read.real("rope.scaling.yarn_attn_factor"),
        beta_fast=read.real("rope.scaling.yarn_beta_fast"),
        beta_slow=read.real("rope.scaling.yarn_beta_slow"),
    )


def _sliding_of(read: _Keys, period: int) -> tuple[bool, ...]:
    layers = read.count("block_count", most=MOST_LAYERS)
    if not read.raw("attention.sliding_window") or not period:
        return ()
    listed = read.raw("attention.sliding_window_pattern")
    if isinstance(listed, list) and len(listed) == layers:
        return tuple(bool(one) for one in listed)
    period = listed if type(listed) is int and listed > 0 else period
    return tuple((layer + 1) % period != 0 for layer in range(layers))


def _model_type(name: str, experts: int) -> str:
    if name == "llama":
        return "mixtral" if experts else "llama"
    found = [one.model_types[0] for one in ARCHITECTURES if one.name == name]
    return found[0] if found else name


def _text(metadata: Mapping[str, Value], key: str, path: Path) -> str:
    value = metadata.get(key)
    content = value.content if value is not None else None
    if not isinstance(content, str) or not content:
        raise UnusableModel(f"{path} does not say what model it is (no {key}): convert it again.")
    return content


def _token(metadata: Mapping[str, Value], key: str) -> int | None:
    value = metadata.get(key)
    content = value.content if value is not None else None
    return content if type(content) is int else None
