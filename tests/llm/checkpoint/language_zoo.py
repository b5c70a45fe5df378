"""Tiny language models with random weights, one of each family, with a tokenizer of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 384
TEXT = (
    "It was a bright cold day in April, and the clocks were striking 13. "
    "She'd said: don't go!  We'll see 2024's end -- don't you think?\n\n"
    "\tindented lines, numbers 1234567, naïve café, 日本語, emoji 🙂 and (brackets) [x] {y}.\n"
)

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_THETA = {"rope_theta": 10000.0, "rope_type": "default"}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
}
_GEMMA = {"head_dim": 32, "pad_token_id": 1}

# name: (module of transformers.models, its class's first name, what differs)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {"head_dim": 16, "rope_parameters": _THETA}),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("llama", "Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("llama", "Llama", {"rope_parameters": _LINEAR}),
    "mistral": ("mistral", "Mistral", {"head_dim": 32, "sliding_window": None}),
    "mixtral": ("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen2-yarn": ("qwen2", "Qwen2", {"rope_parameters": _YARN}),
    "qwen2-moe": (
        "qwen2_moe",
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "qwen3_moe",
        "Qwen3Moe",
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "gemma": ("gemma", "Gemma", _GEMMA),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {**_GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 3},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {**_GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7},
    ),
    "phi3": ("phi3", "Phi3", {}),
    "phi3-longrope": ("phi3", "Phi3", {"rope_parameters": _LONGROPE}),
    "gpt2": ("gpt2", "GPT2", {"n_inner": None}),
}
LAYER_KINDS = {
    "gemma3": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
}


def make_model(folder: Path, family: str, **changes: Any) -> Any:
    """Save a model of random weights with its tokenizer, and give it; seeded."""
    import importlib

    import torch

    module, first, own = FAMILIES[family]
    package = importlib.import_module(f"transformers.models.{module}")
    config_class = getattr(package, first + ("TextConfig" if first == "Gemma3" else "Config"))
    model_class = getattr(package, first + ("LMHeadModel" if first == "GPT2" else "ForCausalLM"))
    shape = dict(_SHAPE)
    if first == "GPT2":
        shape = {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    generator = torch.random.manual_seed(len(family))
    config = config_class(**{**shape, **own, **changes})
    config.initializer_range = 0.2
    model = model_class(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:  # norms of 1 and biases of 0 would hide much
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
            assert torch.isfinite(tensor).all(), name
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path, kind: str = "gpt-2") -> None:
    """Write a byte-level BPE tokenizer, trained on a few lines; kind: how it cuts words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    cut: Callable[[], Any] = CUTS[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = cut()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_fallback_tokenizer(folder: Path) -> list[tuple[str, str]]:
    """Write a SentencePiece-like tokenizer as Llama 2's tokenizer.json has it; give its merges."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    steps = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    learning = Tokenizer(models.BPE())
    learning.normalizer = steps
    learning.train_from_iterator(
        TEXT.split(" "),
        trainers.BpeTrainer(vocab_size=VOCABULARY - len(pieces) - 8, show_progress=False),
    )
    learned = json.loads(learning.to_str())["model"]
    for text in learned["vocab"]:
        pieces.setdefault(text, len(pieces))
    assert len(pieces) <= VOCABULARY
    merges = [(left, right) for left, right in learned["merges"]]
    # SentencePiece may merge any two tokens whose join is a token, so all such pairs are merges.
    joins = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
    pairs = sorted(
        (joins[text], text[:cut], text[cut:])
        for text in joins
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    )
    merges = [(left, right) for _, left, right in pairs]
    tokenizer = Tokenizer(
        models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = steps
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    return merges


def write_unigram_tokenizer(folder: Path, line: str) -> None:
    """Write a unigram tokenizer, as T5's tokenizer.json has it, trained on one line."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([line] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _split(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _bytes(*before: Any) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Digits(individual_digits=True)


_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: dict[str, Callable[[], Any]] = {
    "gpt-2": _bytes,
    "smollm": lambda: _bytes(_digits()),
    "dbrx": lambda: _split(_CL100K),
    "llama-bpe": lambda: _split(_CL100K),
    "qwen2": lambda: _split(_CL100K.replace("{1,3}", "")),
    "gpt-4o": lambda: _split(_GPT4O),
    "tekken": lambda: _split(_TEKKEN),
}
"""Ways to cut words, by llama.cpp's names, as the tokenizer.json of published models have them."""
