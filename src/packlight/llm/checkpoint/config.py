"""What a model is, read from config.json: a closed set of fields, each within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.architectures import BY_MODEL_TYPE, Architecture

MOST = 1 << 24
"""Of any count in a configuration; the largest vocabularies have 2^18 tokens."""
MOST_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MOST_FACTORS = 1 << 14


@dataclass(frozen=True)
class RopeScaling:
    """How positions past the trained length are rotated. kind: linear, yarn, llama3, longrope.

    short_factors, long_factors: what longrope divides each frequency by. Zero: not given.
    """

    kind: str
    factor: float = 0.0
    original_context: int = 0
    low_frequency: float = 0.0
    high_frequency: float = 0.0
    attention_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A language model in numbers. architecture: llama.cpp's name of it, or, if not known here,
    the checkpoint's own. Widths count numbers, head_width those of one head, rope_width those of
    a head that are rotated; feed_forward and its kin are hidden widths. Zero: there is none.

    sliding_layers: which layers see only sliding_window tokens back. tied: the output is the
    embeddings again.
    """

    architecture: str
    model_type: str
    known: bool
    layers: int
    width: int
    vocabulary: int
    context: int
    heads: int
    kv_heads: int
    head_width: int
    rope_width: int
    feed_forward: int
    norm_epsilon: float
    tied: bool
    activation: str = ""
    rope_theta: float = 0.0
    rope_theta_sliding: float = 0.0
    rope_scaling: RopeScaling | None = None
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    shared_feed_forward: int = 0
    sliding_window: int = 0
    sliding_layers: tuple[bool, ...] = ()
    attention_softcap: float = 0.0
    output_softcap: float = 0.0
    bos: int | None = None
    eos: int | None = None

    def dimension(self, word: str) -> int:
        """What a word of `Piece.shape` stands for."""
        return {
            "width": self.width,
            "vocabulary": self.vocabulary,
            "context": self.context,
            "query": self.heads * self.head_width,
            "key": self.kv_heads * self.head_width,
            "head": self.head_width,
            "feed_forward": self.feed_forward,
            "experts": self.experts,
            "expert_feed_forward": self.expert_feed_forward,
            "shared": self.shared_feed_forward,
        }[word]


def read_config(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """Read the fields of a config.json; `where` is what messages call it.

    Code that the file names (auto_map) is never run. Raises UnusableModel when a field that is
    needed is missing or out of its limits, or llama.cpp would compute it differently.
    """
    if fields.get("quantization_config"):
        raise UnusableModel(
            f"{where} says that the model is quantized already: use the original in BF16, F16 "
            "or F32."
        )
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or len(model_type) > 100:
        raise UnusableModel(f"{where} names no model_type: download the model again.")
    if isinstance(fields.get("text_config"), dict):
        fields = {**fields, **fields["text_config"]}
    architecture = BY_MODEL_TYPE.get(model_type)
    if architecture is not None:
        given = {key: value for key, value in fields.items() if value is not None}
        fields = {**architecture.defaults, **given}
    if architecture is not None:
        check_fixed(architecture, fields, where)
    read = _Fields(fields, where, lenient=architecture is None)
    width = read.count("hidden_size", "n_embd")
    heads = read.count("num_attention_heads", "n_head")
    layers = read.count("num_hidden_layers", "n_layer", most=MOST_LAYERS)
    head_width = read.count("head_dim", default=max(1, width // max(heads, 1)))
    experts = read.count("num_local_experts", "num_experts", default=0, most=MOST_EXPERTS)
    feed_forward = read.count(
        "intermediate_size", "n_inner", default=4 * width if model_type == "gpt2" else None
    )
    kv_heads = read.count("num_key_value_heads", default=heads)
    experts_used = read.count("num_experts_per_tok", default=0, most=MOST_EXPERTS)
    if architecture is not None and architecture.has_experts and not 1 <= experts_used <= experts:
        raise UnusableModel(
            f"{where} asks for {experts_used} of {experts} experts at a time: download the model "
            "again."
        )
    if architecture is not None and heads % kv_heads:
        raise UnusableModel(
            f"{where} asks for {heads} heads that share {kv_heads} keys and values, which does "
            "not divide: download the model again."
        )
    rope = _rope(fields, where)
    whole = rope.get("full_attention", rope)
    sliding = rope.get("sliding_attention", {})
    part = _number(
        whole.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0)), where
    )
    if architecture is not None and architecture.rotary:
        if part != 1 and not architecture.partly_rotary:
            raise UnusableModel(
                f"{where} turns {part:g} of each head by its position, and llama.cpp's "
                f"{architecture.name} turns all of it."
            )
        if head_width % 2 or int(head_width * part) % 2:
            raise UnusableModel(f"{where} has heads of odd width, which cannot be rotated.")
    context = read.count("max_position_embeddings", "n_positions", "n_ctx")
    window, layers_sliding = _window(read, architecture, layers)
    return ModelConfig(
        architecture=architecture.name if architecture else model_type,
        model_type=model_type,
        known=architecture is not None,
        layers=layers,
        width=width,
        vocabulary=read.count("vocab_size"),
        context=context,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        rope_width=int(head_width * part) if architecture is None or architecture.rotary else 0,
        feed_forward=feed_forward,
        norm_epsilon=read.real("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
        tied=read.truth(
            "tie_word_embeddings", default=architecture is not None and architecture.tied_by_default
        ),
        activation=architecture.activation
        if architecture
        else read.text("hidden_activation", "hidden_act", "activation_function"),
        rope_theta=_number(whole.get("rope_theta", fields.get("rope_theta", 10000.0)), where),
        rope_theta_sliding=_number(
            sliding.get("rope_theta", fields.get("rope_local_base_freq", 0.0)), where
        ),
        rope_scaling=_scaling(whole, fields, context, where),
        experts=experts,
        experts_used=experts_used,
        expert_feed_forward=read.count(
            "moe_intermediate_size", default=feed_forward if experts else 0
        ),
        shared_feed_forward=read.count("shared_expert_intermediate_size", default=0),
        sliding_window=window,
        sliding_layers=layers_sliding,
        attention_softcap=read.real("attn_logit_softcapping", default=0.0),
        output_softcap=read.real("final_logit_softcapping", default=0.0),
        bos=_first(fields.get("bos_token_id")),
        eos=_first(fields.get("eos_token_id")),
    )


def check_fixed(architecture: Architecture, fields: Mapping[str, Any], where: str) -> None:
    """Refuse settings that llama.cpp would not compute as transformers does."""
    for name, allowed in architecture.fixed.items():
        if fields.get(name) not in allowed:
            raise UnusableModel(
                f"{where} has {name} = {str(fields.get(name))[:50]}, and llama.cpp computes this "
                f"architecture ({architecture.name}) with {allowed[0]} only."
            )
    if not architecture.scaled_query:
        return
    scalar, heads = fields.get("query_pre_attn_scalar"), fields.get("num_attention_heads")
    if not isinstance(scalar, int | float) or not isinstance(heads, int) or heads < 1:
        return
    large = fields.get("num_hidden_layers") == architecture.scaled_query
    asked = fields.get("hidden_size", 0) // heads if large else fields.get("head_dim", scalar)
    if scalar != asked:
        raise UnusableModel(
            f"{where} has query_pre_attn_scalar = {scalar}, and llama.cpp computes a model of this "
            f"architecture ({architecture.name}) and depth with {asked} only."
        )


class _Fields:
    """Fields under one of several names, each checked against its limits.

    lenient: of an unknown architecture nothing is asked, and what is missing is 0.
    """

    def __init__(self, fields: Mapping[str, Any], where: str, *, lenient: bool) -> None:
        self._fields, self._where, self._lenient = fields, where, lenient

    def count(self, *names: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number from 1 to `most`; 0 where the default is."""
        value = self._find(names)
        if value is None:
            if default is None and not self._lenient:
                raise self._missing(names)
            return default or 0
        if type(value) is not int or not (0 if default == 0 else 1) <= value <= most:
            raise UnusableModel(
                f"{self._where} has {names[0]} = {str(value)[:50]}, which must be a whole number "
                f"from 1 to {most}: download the model again."
            )
        return value

    def real(self, *names: str, default: float | None = None) -> float:
        """A finite number, not negative."""
        value = self._find(names)
        if value is None:
            if default is None and not self._lenient:
                raise self._missing(names)
            return default or 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise UnusableModel(f"{self._where} has {names[0]} = {str(value)[:50]}, no number.")
        return float(value)

    def truth(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._fields.get(name)
        return value if isinstance(value, bool) else default

    def text(self, *names: str) -> str:
        """A short text, or none."""
        value = self._find(names)
        return value[:100] if isinstance(value, str) else ""

    def raw(self, name: str) -> Any:
        """The field as it is."""
        return self._fields.get(name)

    def _find(self, names: tuple[str, ...]) -> Any:
        return next(
            (self._fields[name] for name in names if self._fields.get(name) is not None), None
        )

    def _missing(self, names: tuple[str, ...]) -> UnusableModel:
        return UnusableModel(f"{self._where} lacks {' or '.join(names)}: download the model again.")


def _rope(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of rotation: rope_parameters, or as older files have them, rope_scaling."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    nested = (
        [rope.get(name, {}) for name in ("full_attention", "sliding_attention")]
        if isinstance(rope, dict)
        else [None]
    )
    if not all(isinstance(one, dict) for one in nested):
        raise UnusableModel(f"{where} has rope settings that are no JSON object.")
    return rope


def _scaling(
    rope: Mapping[str, Any], fields: Mapping[str, Any], context: int, where: str
) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind in ("default", None):
        return None
    if kind not in ("linear", "yarn", "llama3", "longrope"):
        raise UnusableModel(
            f"{where} asks for the rotation {str(kind)[:50]!r}; llama.cpp knows linear, yarn, "
            "llama3 and longrope."
        )
    original = rope.get(
        "original_max_position_embeddings", fields.get("original_max_position_embeddings")
    )
    original = original if type(original) is int and 0 < original <= MOST else context
    return RopeScaling(
        kind=kind,
        factor=_number(rope.get("factor", 0.0), where),
        original_context=original,
        low_frequency=_number(rope.get("low_freq_factor", 0.0), where),
        high_frequency=_number(rope.get("high_freq_factor", 0.0), where),
        attention_factor=_number(rope.get("attention_factor", rope.get("attn_factor")), where),
        beta_fast=_number(rope.get("beta_fast"), where),
        beta_slow=_number(rope.get("beta_slow"), where),
        short_factors=_numbers(rope.get("short_factor"), where),
        long_factors=_numbers(rope.get("long_factor"), where),
    )


def _window(
    read: _Fields, architecture: Architecture | None, layers: int
) -> tuple[int, tuple[bool, ...]]:
    """The sliding window, and which layers it holds for."""
    window = read.count("sliding_window", default=0)
    if read.raw("use_sliding_window") is False or not window:
        return 0, ()
    listed = read.raw("layer_types")
    if isinstance(listed, list) and len(listed) == layers:
        sliding = tuple(kind == "sliding_attention" for kind in listed)
    else:
        period = read.raw("sliding_window_pattern") or read.raw("_sliding_window_pattern")
        period = period or (architecture.window if architecture else 0)
        period = period if type(period) is int and period > 0 else 1
        sliding = tuple(period == 1 or (layer + 1) % period != 0 for layer in range(layers))
    return (window, sliding) if any(sliding) else (0, ())


def _number(value: Any, where: str) -> float:
    """A number of the rotation's settings, 0 where there is none. Raises UnusableModel."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise UnusableModel(
            f"{where} has rope settings with {str(value)[:50]!r} for a number: download the model "
            "again."
        )
    return float(value)


def _numbers(values: Any, where: str) -> tuple[float, ...]:
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > MOST_FACTORS:
        raise UnusableModel(f"{where} has factors of rotation that are no short list.")
    return tuple(_number(one, where) for one in values)


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < MOST else None
