"""Configurations as they are published, and what llama.cpp is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from packlight.errors import UnusableModel
from packlight.llm.architectures import ARCHITECTURES, ROLES
from packlight.llm.checkpoint.config import ModelConfig, read_config
from packlight.llm.checkpoint.metadata import config_of, metadata_of
from packlight.llm.checkpoint.rotation import rope_tensors


def shape(
    width: int, layers: int, heads: int, kv_heads: int, feed_forward: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
    }


LLAMA_3_2 = {
    **shape(2048, 16, 32, 8, 8192, 128256),
    "model_type": "llama",
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
LLAMA_2 = {**shape(4096, 32, 32, 32, 11008, 32000), "model_type": "llama", "rope_scaling": None}
MISTRAL = {
    **shape(4096, 32, 32, 8, 14336, 32000),
    "model_type": "mistral",
    "sliding_window": 4096,
}
NEMO = {**shape(5120, 40, 32, 8, 14336, 131072), "model_type": "mistral", "head_dim": 128}
MIXTRAL = {
    **shape(4096, 32, 32, 8, 14336, 32000),
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
QWEN_2_5 = {
    **shape(896, 24, 14, 2, 4864, 151936),
    "model_type": "qwen2",
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}
QWEN_3_MOE = {
    **shape(2048, 48, 32, 4, 6144, 151936),
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
GEMMA_2_27B = {
    **shape(4608, 46, 32, 16, 36864, 256000),
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma2",
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
PHI_4_MINI = {
    **shape(3072, 32, 24, 8, 8192, 200064),
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [1.0 + n for n in range(48)],
        "short_factor": [1.0] * 48,
    },
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
}
GPT_2 = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 50257,
}
PUBLISHED = {
    "llama-3.2": LLAMA_3_2,
    "llama-2": LLAMA_2,
    "mistral": MISTRAL,
    "nemo": NEMO,
    "mixtral": MIXTRAL,
    "qwen-2.5": QWEN_2_5,
    "qwen-3-moe": QWEN_3_MOE,
    "gemma-2-27b": GEMMA_2_27B,
    "gemma-3-4b": GEMMA_3_4B,
    "phi-4-mini": PHI_4_MINI,
    "gpt-2": GPT_2,
}


def told(fields: dict[str, Any]) -> dict[str, Any]:
    """What stands in the metadata below the architecture's name."""
    config = read_config(fields, "it")
    prefix = f"{config.architecture}."
    return {
        key.removeprefix(prefix): value.content
        for key, value in metadata_of(config).items()
        if key.startswith(prefix)
    }


def test_llama_3_2():
    found = told(LLAMA_3_2)
    assert found["vocab_size"] == 128256 and found["context_length"] == 131072
    assert (found["attention.head_count"], found["attention.head_count_kv"]) == (32, 8)
    assert found["attention.key_length"] == found["rope.dimension_count"] == 64
    assert found["rope.freq_base"] == 500000.0
    assert not any(key.startswith("rope.scaling") for key in found)
    config = read_config(LLAMA_3_2, "it")
    assert (config.bos, config.eos, config.tied) == (128000, 128001, True)
    assert len(rope_tensors(config, "it")["rope_freqs.weight"]) == 32


def test_llama_2_and_mistral():
    assert told(LLAMA_2)["attention.key_length"] == 128
    assert told(LLAMA_2)["rope.freq_base"] == 10000.0
    assert told(NEMO)["attention.key_length"] == 128
    assert "attention.sliding_window" not in told(MISTRAL)
    assert read_config(MISTRAL, "it").sliding_layers == (True,) * 32


def test_mixtures_of_experts():
    found = told(MIXTRAL)
    assert (found["expert_count"], found["expert_used_count"]) == (8, 2)
    assert "expert_feed_forward_length" not in found
    found = told(QWEN_3_MOE)
    assert (found["expert_count"], found["expert_used_count"]) == (128, 8)
    assert (found["feed_forward_length"], found["expert_feed_forward_length"]) == (6144, 768)


def test_qwen_without_its_window():
    assert read_config(QWEN_2_5, "it").sliding_window == 0
    assert told(QWEN_2_5)["attention.key_length"] == 64


def test_gemma():
    found = told(GEMMA_2_27B)
    assert found["attn_logit_softcapping"] == 50 and found["final_logit_softcapping"] == 30
    assert found["attention.sliding_window"] == 4096
    assert "attention.sliding_window_pattern" not in found
    assert read_config(GEMMA_2_27B, "it").sliding_layers[:3] == (True, False, True)
    found = told(GEMMA_3_4B)
    assert found["vocab_size"] == 262208 and found["attention.head_count"] == 8
    assert (found["attention.key_length"], found["attention.sliding_window"]) == (256, 1024)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (1e6, 1e4)
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 8)
    assert "attention.sliding_window_pattern" not in found
    config = read_config(GEMMA_3_4B, "it")
    assert config.eos == 1 and config.tied and sum(config.sliding_layers) == 34 - 5


def test_phi_4_mini():
    found = told(PHI_4_MINI)
    assert found["rope.dimension_count"] == 96 and found["rope.scaling.type"] == "longrope"
    assert found["rope.scaling.original_context_length"] == 4096
    assert found["rope.scaling.attn_factor"] == pytest.approx((1 + 5 / 12) ** 0.5)
    factors = rope_tensors(read_config(PHI_4_MINI, "it"), "it")
    assert factors["rope_factors_long.weight"][1] == 2.0
    with pytest.raises(UnusableModel, match=r"gives 47 factors of rotation .* and 48 positive"):
        scaling = {**PHI_4_MINI["rope_scaling"], "short_factor": [1.0] * 47}
        rope_tensors(read_config({**PHI_4_MINI, "rope_scaling": scaling}, "it"), "it")


def test_gpt_2():
    found = told(GPT_2)
    assert found["feed_forward_length"] == 3072 and found["context_length"] == 1024
    assert found["attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert not any(key.startswith("rope") for key in found)


@pytest.mark.parametrize("name", PUBLISHED)
def test_metadata_say_what_the_config_said(name: str, tmp_path: Any):
    config = read_config(PUBLISHED[name], "it")
    tensors = dict.fromkeys(
        [*([] if config.tied else ["output.weight"]), *rope_tensors(config, "")]
    )
    back = config_of(metadata_of(config), tensors, tmp_path)
    for field in ModelConfig.__dataclass_fields__:
        if field in ("model_type", "bos", "eos", "rope_scaling"):
            continue
        asked, found = getattr(config, field), getattr(back, field)
        if field.startswith("sliding") and config.architecture in ("llama", "phi3"):
            continue  # llama.cpp has no window there
        if field == "rope_theta" and name == "gpt-2":
            continue
        assert found == pytest.approx(asked), field
    assert (back.rope_scaling is None) == (config.rope_scaling is None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": 0.5}, r"turns 0\.5 of each head .* llama turns all of it"),
        ({"head_dim": 63}, "odd width"),
        ({"rope_theta": "1e4"}, "rope settings with '1e4' for a number"),
        ({"rope_theta": 1e300}, "for a number"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": 2}}, "no short list"),
        ({"num_local_experts": 5000}, "num_local_experts = 5000"),
        ({"rms_norm_eps": None}, "lacks rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "no number"),
        ({"rope_parameters": {"full_attention": 3}}, "no JSON object"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(UnusableModel, match=message):
        read_config({**LLAMA_2, **changes}, "it")


@pytest.mark.parametrize("changes", [{"num_local_experts": None}, {"num_experts_per_tok": 9}])
def test_experts_that_are_not_there_are_refused(changes: dict[str, Any]):
    with pytest.raises(UnusableModel, match="experts at a time"):
        read_config({**MIXTRAL, **changes}, "it")


def test_the_tables_are_whole():
    for architecture in ARCHITECTURES:
        names = [piece.name for piece in architecture.pieces]
        sources = [piece.source for piece in architecture.pieces]
        assert len(set(names)) == len(names) and len(set(sources)) == len(sources)
        for piece in architecture.pieces:
            assert piece.role in ROLES
            assert ("{i}" in piece.name) == ("{i}" in piece.source)
            assert ("{e}" in piece.source) == (piece.change == "stack")
            assert len(piece.name.format(i=511)) < 64
