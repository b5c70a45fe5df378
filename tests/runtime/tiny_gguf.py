"""A Llama of one block for tests: written as GGUF, and computed in NumPy by the book."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD = 32, 48, 2, 1, 16
VOCABULARY = 258
EPSILON, BASE = 1e-5, 10000.0

Weights = dict[str, NDArray[np.float32]]


def draw_weights(seed: int) -> Weights:
    """Random weights by their GGUF names, [out, in]; all of them float32."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output.weight": (VOCABULARY, WIDTH),
        "blk.0.attn_q.weight": (HEADS * HEAD, WIDTH),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD, WIDTH),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, HEADS * HEAD),
        "blk.0.ffn_gate.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_up.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, HIDDEN),
    }
    found = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        found[name] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    return found


def write_gguf(path: Path, weights: Weights) -> None:
    """Writes the weights with a byte-level tokenizer that knows one merge."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCABULARY)
    words = ["<|bos|>", "<|eos|>", *_byte_words()]
    words[-1] = "th"  # takes the place of the last byte, which no UTF-8 text has
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([kinds.CONTROL] * 2 + [kinds.NORMAL] * (len(words) - 2))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_words() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def reference_logits(weights: Weights, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Logits [n, vocabulary] of the whole sequence at once, in float64, with a causal mask."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["token_embd.weight"][tokens]
    h = _norm(x, w["blk.0.attn_norm.weight"])
    q = _rotate((h @ w["blk.0.attn_q.weight"].T).reshape(len(tokens), HEADS, HEAD))
    k = _rotate((h @ w["blk.0.attn_k.weight"].T).reshape(len(tokens), KV_HEADS, HEAD))
    v = (h @ w["blk.0.attn_v.weight"].T).reshape(len(tokens), KV_HEADS, HEAD)
    k, v = (np.repeat(each, HEADS // KV_HEADS, axis=1) for each in (k, v))
    scores = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(HEAD)
    scores[:, np.triu(np.ones((len(tokens), len(tokens)), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hnm,mhd->nhd", shares, v).reshape(len(tokens), HEADS * HEAD)
    x = x + mixed @ w["blk.0.attn_output.weight"].T
    h = _norm(x, w["blk.0.ffn_norm.weight"])
    gate = h @ w["blk.0.ffn_gate.weight"].T
    up = h @ w["blk.0.ffn_up.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * up) @ w["blk.0.ffn_down.weight"].T
    return _norm(x, w["output_norm.weight"]) @ w["output.weight"].T


def _norm(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * weight


def _rotate(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotates neighbours (0, 1), (2, 3), ... as llama.cpp does for Llamas; x: [n, heads, HEAD]."""
    speeds = BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    angles = np.arange(len(x))[:, None, None] * speeds
    even, odd = x[..., 0::2], x[..., 1::2]
    found = np.empty_like(x)
    found[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    found[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return found
