"""The architectures that llama.cpp runs and this wing knows, as data.

For each: where every tensor stands in a Hugging Face checkpoint and in GGUF, what shape the
configuration asks of it, what must be done to its rows, and which settings llama.cpp computes in
one way only. Sources: llama.cpp's src/llama-arch.cpp, src/models/*.cpp and conversion/*.py;
transformers' models/*/modeling_*.py. OPT is not here: llama.cpp does not run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMBEDDING, OUTPUT, LINEAR, ROUTER = "embedding", "output", "linear", "router"
NORM, BIAS, POSITION, ROPE, OTHER = "norm", "bias", "position", "rope", "other"
ROLES = (EMBEDDING, OUTPUT, LINEAR, ROUTER, NORM, BIAS, POSITION, ROPE, OTHER)
"""What a tensor is for. router: chooses experts, tiny and touchy; position: a learned table;
rope: factors of rotation; other: not known, best left as it is."""


@dataclass(frozen=True)
class Piece:
    """One tensor. name: in GGUF; source: in the checkpoint; {i} is the block, {e} the expert.

    shape: outermost axis first, in the words of `Dimensions`. change: what is done on reading:
    "rotary" interleaves the halves of each head's rows as llama.cpp's rotation has them,
    "plus_one" adds 1 (Gemma stores norms as what they differ from 1), "transpose" turns [in, out]
    into [out, in] (GPT-2's Conv1D), "stack" puts the experts' matrices one behind the other,
    "flatten" drops axes of 1. needed: without it the checkpoint is incomplete.
    """

    name: str
    source: str
    shape: str
    role: str
    change: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls `name`. model_types: what config.json calls it.

    prefixes: of the checkpoint's names, which may be left out or be longer in a model that
    sees pictures too. untied: llama.cpp asks for an output matrix of its own even if it is the
    embeddings again; always_tied: it has no place for one. fixed: settings of config.json
    with the values under which llama.cpp computes the same as transformers. window:
    how many layers make a period of which the last one sees everything; 0: no window.
    rotary: positions turn queries and keys; partly_rotary: perhaps only a part of each head.
    """

    name: str
    model_types: tuple[str, ...]
    pieces: tuple[Piece, ...]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rotary: bool = True
    partly_rotary: bool = False
    layer_norm: bool = False
    tied_by_default: bool = False
    untied: bool = False
    always_tied: bool = False
    window: int = 0
    scaled_query: int = 0  # at so many layers queries are scaled by width / heads instead
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of what config.json leaves out

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return any(piece.change == "stack" for piece in self.pieces)

    @property
    def activation(self) -> str:
        """The one activation that llama.cpp computes for it, by transformers' name."""
        names = ("hidden_activation", "hidden_act", "activation_function")
        return next(str(self.fixed[name][0]) for name in names if name in self.fixed)


def _block(
    *pieces: tuple[str, str, str, str] | tuple[str, str, str, str, str],
) -> tuple[Piece, ...]:
    made = []
    for name, source, shape, role, *rest in pieces:
        change, needed = (rest[0].strip("?") if rest else ""), not (rest and rest[0][-1:] == "?")
        made.append(
            Piece(f"blk.{{i}}.{name}", f"model.layers.{{i}}.{source}", shape, role, change, needed)
        )
    return tuple(made)


_OUTSIDE = (
    Piece("token_embd.weight", "model.embed_tokens.weight", "vocabulary width", EMBEDDING),
    Piece("output_norm.weight", "model.norm.weight", "width", NORM),
    Piece("output.weight", "lm_head.weight", "vocabulary width", OUTPUT),
)
_ATTENTION = _block(
    ("attn_norm.weight", "input_layernorm.weight", "width", NORM),
    ("attn_q.weight", "self_attn.q_proj.weight", "query width", LINEAR),
    ("attn_k.weight", "self_attn.k_proj.weight", "key width", LINEAR),
    ("attn_v.weight", "self_attn.v_proj.weight", "key width", LINEAR),
    ("attn_output.weight", "self_attn.o_proj.weight", "width query", LINEAR),
)
_QKV_BIASES = _block(
    ("attn_q.bias", "self_attn.q_proj.bias", "query", BIAS, "?"),
    ("attn_k.bias", "self_attn.k_proj.bias", "key", BIAS, "?"),
    ("attn_v.bias", "self_attn.v_proj.bias", "key", BIAS, "?"),
)
_ROTARY_ATTENTION = _block(
    ("attn_norm.weight", "input_layernorm.weight", "width", NORM),
    ("attn_q.weight", "self_attn.q_proj.weight", "query width", LINEAR, "rotary"),
    ("attn_q.bias", "self_attn.q_proj.bias", "query", BIAS, "rotary?"),
    ("attn_k.weight", "self_attn.k_proj.weight", "key width", LINEAR, "rotary"),
    ("attn_k.bias", "self_attn.k_proj.bias", "key", BIAS, "rotary?"),
    ("attn_v.weight", "self_attn.v_proj.weight", "key width", LINEAR),
    ("attn_v.bias", "self_attn.v_proj.bias", "key", BIAS, "?"),
    ("attn_output.weight", "self_attn.o_proj.weight", "width query", LINEAR),
    ("attn_output.bias", "self_attn.o_proj.bias", "width", BIAS, "?"),
)
_FFN_NORM = _block(("ffn_norm.weight", "post_attention_layernorm.weight", "width", NORM))
_GATED = _block(
    ("ffn_gate.weight", "mlp.gate_proj.weight", "feed_forward width", LINEAR),
    ("ffn_up.weight", "mlp.up_proj.weight", "feed_forward width", LINEAR),
    ("ffn_down.weight", "mlp.down_proj.weight", "width feed_forward", LINEAR),
)
_GATED_BIASES = _block(
    ("ffn_gate.bias", "mlp.gate_proj.bias", "feed_forward", BIAS, "?"),
    ("ffn_up.bias", "mlp.up_proj.bias", "feed_forward", BIAS, "?"),
    ("ffn_down.bias", "mlp.down_proj.bias", "width", BIAS, "?"),
)
_QK_NORMS = _block(
    ("attn_q_norm.weight", "self_attn.q_norm.weight", "head", NORM),
    ("attn_k_norm.weight", "self_attn.k_norm.weight", "head", NORM),
)
_EXPERTS = _block(
    ("ffn_gate_inp.weight", "mlp.gate.weight", "experts width", ROUTER),
    (
        "ffn_gate_exps.weight",
        "mlp.experts.{e}.gate_proj.weight",
        "experts expert_feed_forward width",
        LINEAR,
        "stack",
    ),
    (
        "ffn_up_exps.weight",
        "mlp.experts.{e}.up_proj.weight",
        "experts expert_feed_forward width",
        LINEAR,
        "stack",
    ),
    (
        "ffn_down_exps.weight",
        "mlp.experts.{e}.down_proj.weight",
        "experts width expert_feed_forward",
        LINEAR,
        "stack",
    ),
)
_MIXTRAL_EXPERTS = _block(
    ("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "experts width", ROUTER),
    (
        "ffn_gate_exps.weight",
        "block_sparse_moe.experts.{e}.w1.weight",
        "experts feed_forward width",
        LINEAR,
        "stack",
    ),
    (
        "ffn_up_exps.weight",
        "block_sparse_moe.experts.{e}.w3.weight",
        "experts feed_forward width",
        LINEAR,
        "stack",
    ),
    (
        "ffn_down_exps.weight",
        "block_sparse_moe.experts.{e}.w2.weight",
        "experts width feed_forward",
        LINEAR,
        "stack",
    ),
)
_SHARED_EXPERT = _block(
    ("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "width", ROUTER, "flatten"),
    ("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "shared width", LINEAR),
    ("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "shared width", LINEAR),
    ("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "width shared", LINEAR),
)
_GEMMA_NORMS = _block(
    ("post_attention_norm.weight", "post_attention_layernorm.weight", "width", NORM),
    ("ffn_norm.weight", "pre_feedforward_layernorm.weight", "width", NORM),
    ("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width", NORM),
)
_FUSED = _block(
    ("attn_norm.weight", "input_layernorm.weight", "width", NORM),
    ("attn_qkv.weight", "self_attn.qkv_proj.weight", "query+key+key width", LINEAR),
    ("attn_output.weight", "self_attn.o_proj.weight", "width query", LINEAR),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "width", NORM),
    (
        "ffn_up.weight",
        "mlp.gate_up_proj.weight",
        "feed_forward+feed_forward width",
        LINEAR,
    ),
    ("ffn_down.weight", "mlp.down_proj.weight", "width feed_forward", LINEAR),
)


def _plus_one(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Gemma's norms multiply by 1 + weight; GGUF holds the sum."""
    return tuple(
        Piece(one.name, one.source, one.shape, one.role, "plus_one") if one.role == NORM else one
        for one in pieces
    )


def _gpt2(name: str, source: str, shape: str, role: str, change: str = "") -> Piece:
    return Piece(f"blk.{{i}}.{name}", f"model.h.{{i}}.{source}", shape, role, change)


_GPT2 = (
    Piece("token_embd.weight", "model.wte.weight", "vocabulary width", EMBEDDING),
    Piece("position_embd.weight", "model.wpe.weight", "context width", POSITION),
    Piece("output_norm.weight", "model.ln_f.weight", "width", NORM),
    Piece("output_norm.bias", "model.ln_f.bias", "width", BIAS),
    Piece("output.weight", "lm_head.weight", "vocabulary width", OUTPUT),
    _gpt2("attn_norm.weight", "ln_1.weight", "width", NORM),
    _gpt2("attn_norm.bias", "ln_1.bias", "width", BIAS),
    _gpt2("attn_qkv.weight", "attn.c_attn.weight", "query+key+key width", LINEAR, "transpose"),
    _gpt2("attn_qkv.bias", "attn.c_attn.bias", "query+key+key", BIAS),
    _gpt2("attn_output.weight", "attn.c_proj.weight", "width query", LINEAR, "transpose"),
    _gpt2("attn_output.bias", "attn.c_proj.bias", "width", BIAS),
    _gpt2("ffn_norm.weight", "ln_2.weight", "width", NORM),
    _gpt2("ffn_norm.bias", "ln_2.bias", "width", BIAS),
    _gpt2("ffn_up.weight", "mlp.c_fc.weight", "feed_forward width", LINEAR, "transpose"),
    _gpt2("ffn_up.bias", "mlp.c_fc.bias", "feed_forward", BIAS),
    _gpt2("ffn_down.weight", "mlp.c_proj.weight", "width feed_forward", LINEAR, "transpose"),
    _gpt2("ffn_down.bias", "mlp.c_proj.bias", "width", BIAS),
)

_SILU = {"hidden_act": ("silu", "swish", None)}
_GELU = {"hidden_activation": ("gelu_pytorch_tanh", "gelu", None)}
_ALL_SPARSE: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (1, None),
    "mlp_only_layers": ([], None),
}

ARCHITECTURES = (
    Architecture(
        "llama",
        ("llama", "mistral"),
        _OUTSIDE + _ROTARY_ATTENTION + _FFN_NORM + _GATED + _GATED_BIASES,
        _SILU,
    ),
    Architecture(
        "llama", ("mixtral",), _OUTSIDE + _ROTARY_ATTENTION + _FFN_NORM + _MIXTRAL_EXPERTS, _SILU
    ),
    Architecture(
        "qwen2", ("qwen2",), _OUTSIDE + _ATTENTION + _QKV_BIASES + _FFN_NORM + _GATED, _SILU
    ),
    Architecture(
        "qwen2moe",
        ("qwen2_moe",),
        _OUTSIDE + _ATTENTION + _QKV_BIASES + _FFN_NORM + _EXPERTS + _SHARED_EXPERT,
        {**_SILU, **_ALL_SPARSE, "norm_topk_prob": (False, None)},
        untied=True,
    ),
    Architecture(
        "qwen3", ("qwen3",), _OUTSIDE + _ATTENTION + _QK_NORMS + _FFN_NORM + _GATED, _SILU
    ),
    Architecture(
        "qwen3moe",
        ("qwen3_moe",),
        _OUTSIDE + _ATTENTION + _QK_NORMS + _FFN_NORM + _EXPERTS,
        {**_SILU, **_ALL_SPARSE, "norm_topk_prob": (True,)},
    ),
    Architecture(
        "gemma",
        ("gemma",),
        _plus_one(_OUTSIDE + _ATTENTION + _FFN_NORM + _GATED),
        {**_GELU, "hidden_act": ("gelu", "gelu_pytorch_tanh", None)},
        tied_by_default=True,
        always_tied=True,
    ),
    Architecture(
        "gemma2",
        ("gemma2",),
        _plus_one(_OUTSIDE + _ATTENTION + _GEMMA_NORMS + _GATED),
        _GELU,
        tied_by_default=True,
        always_tied=True,
        window=2,
        scaled_query=46,
    ),
    Architecture(
        "gemma3",
        ("gemma3_text", "gemma3"),
        _plus_one(_OUTSIDE + _ATTENTION + _QK_NORMS + _GEMMA_NORMS + _GATED),
        {**_GELU, "attn_logit_softcapping": (None, 0, 0.0)},
        tied_by_default=True,
        window=6,
        scaled_query=62,
        # Those of Gemma3TextConfig: the published models that see pictures rely on them.
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window": 4096,
        },
    ),
    Architecture("phi3", ("phi3",), _OUTSIDE + _FUSED, _SILU, partly_rotary=True),
    Architecture(
        "gpt2",
        ("gpt2",),
        _GPT2,
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "add_cross_attention": (False, None),
        },
        rotary=False,
        layer_norm=True,
        tied_by_default=True,
    ),
)

BY_MODEL_TYPE = {kind: one for one in ARCHITECTURES for kind in one.model_types}

# Prefixes that stand for "model." in some checkpoints, the longest first.
PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("transformer.", "model."),
)
# GPT-2 was published without a prefix.
BARE = ("wte.", "wpe.", "ln_f.", "h.")

# Tensors that hold no weights: masks and tables that every program makes for itself.
IGNORED_ENDINGS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Parts of a model that sees pictures, which the language model does without.
IGNORED_PARTS = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)


def known_names() -> str:
    """The model types that can become GGUF, for a message."""
    return ", ".join(sorted(BY_MODEL_TYPE))
