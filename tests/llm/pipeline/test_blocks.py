from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")
transformers = pytest.importorskip("transformers", reason="its models are the oracle")

from packlight.llm.blocks import (  # noqa: E402
    embed_tokens,
    head_inputs,
    head_logits,
    run_block,
    walk_block,
)
from packlight.llm.checkpoint import open_checkpoint  # noqa: E402
from packlight.llm.compress_blocks import load_weights, read_wiring  # noqa: E402

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 8, "head_dim": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen2moe": (
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "qwen3moe": (
        "Qwen3Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "norm_topk_prob": True,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "gpt2": ("GPT2", {}),
}


def make_model(family: str) -> Any:
    """A random model, norms and biases included, whose logits are far from flat."""
    name, changes = FAMILIES[family]
    fields = {**COMMON, **changes}
    if family == "gpt2":
        fields = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    config = getattr(transformers, f"{name}Config")(**fields)
    head = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}.get(
        name, f"{name}ForCausalLM"
    )
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = getattr(transformers, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def run_all(checkpoint: Any, tokens: Any) -> Any:
    wiring = read_wiring(checkpoint)
    outer = load_weights(checkpoint, None)
    x = embed_tokens(outer, wiring, tokens)
    for layer in range(wiring.layers):
        x = run_block(load_weights(checkpoint, layer), wiring, layer, x)
    return head_logits(outer, wiring, head_inputs(outer, wiring, x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(family: str, tmp_path: Path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 96, (2, 24)))
    with torch.no_grad():
        expected = model(tokens).logits
        found = run_all(open_checkpoint(tmp_path), tokens)
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_weight_replaced_at_its_site_is_used(tmp_path: Path):
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    wiring, weights = read_wiring(checkpoint), load_weights(checkpoint, 0)
    x = torch.randn((1, 5, 32), generator=torch.Generator().manual_seed(0))
    walk = walk_block(weights, wiring, 0, x)
    names = []
    while True:
        try:
            site = next(walk)
        except StopIteration as end:
            outputs = end.value
            break
        names.append(site.names)
        for name in site.names:
            weights[name] = torch.zeros_like(weights[name])
    assert names == [
        ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        ("attn_output.weight",),
        ("ffn_gate.weight", "ffn_up.weight"),
        ("ffn_down.weight",),
    ]
    assert torch.equal(outputs, x)
