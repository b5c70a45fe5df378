"""Checkpoints of random weights in the shape of a Llama, written as they are drawn.

    python llm_random.py FOLDER PARAMETERS

makes a Hugging Face folder of about so many weights: bfloat16, in shards, normal with a standard
deviation of 0.02, the same for the same number. Its tokenizer knows single bytes.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 512 << 20
PIECE = 1 << 22
DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; rows of all matrices are whole super-blocks of 256."""

    width: int
    feed_forward: int
    layers: int
    vocabulary: int = 32_000
    head: int = 64

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name."""
        inner, outer = self.width, self.feed_forward
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, inner)}
        for number in range(self.layers):
            block = f"model.layers.{number}."
            shapes |= {
                f"{block}input_layernorm.weight": (inner,),
                f"{block}self_attn.q_proj.weight": (inner, inner),
                f"{block}self_attn.k_proj.weight": (inner // 4, inner),
                f"{block}self_attn.v_proj.weight": (inner // 4, inner),
                f"{block}self_attn.o_proj.weight": (inner, inner),
                f"{block}post_attention_layernorm.weight": (inner,),
                f"{block}mlp.gate_proj.weight": (outer, inner),
                f"{block}mlp.up_proj.weight": (outer, inner),
                f"{block}mlp.down_proj.weight": (inner, outer),
            }
        return {**shapes, "model.norm.weight": (inner,), "lm_head.weight": (self.vocabulary, inner)}

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(map(prod, self.tensors.values()))


def shape_of(parameters: int) -> Shape:
    """Returns the shape of about so many weights: blocks as wide as in models of that size."""
    width, feed_forward = (2048, 5632) if parameters >= 500_000_000 else (512, 1536)
    none, one = (Shape(width, feed_forward, layers).parameters for layers in (0, 1))
    return Shape(width, feed_forward, max(round((parameters - none) / (one - none)), 1))


def write_random_llama(folder: Path, shape: Shape) -> None:
    """Writes the folder; config.json last, so that a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, axes in shape.tensors.items():
        if size and size + 2 * prod(axes) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = axes
        size += 2 * prod(axes)
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, tensors, number)
        places |= dict.fromkeys(tensors, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    _write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // shape.head,
        "num_key_value_heads": shape.width // shape.head // 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    _write_json(folder / "config.json", config)


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, axes in tensors.items():
        begin, end = end, end + 2 * prod(axes)
        head[name] = {"dtype": "BF16", "shape": list(axes), "data_offsets": [begin, end]}
    coded = json.dumps(head).encode()
    coded += b" " * (-len(coded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(coded)) + coded)
        for number, axes in enumerate(tensors.values()):
            for piece in _draw(axes, np.random.default_rng((seed, number))):
                file.write(piece.tobytes())


def _draw(axes: tuple[int, ...], rng: np.random.Generator) -> Iterator[NDArray[np.uint16]]:
    """Yields a tensor's weights as the upper halves of float32: cut, not rounded."""
    left = prod(axes)
    while left:
        count = min(left, PIECE)
        drawn = np.ones(count, np.float32)
        if len(axes) > 1:
            drawn = rng.standard_normal(count, np.float32) * np.float32(DEVIATION)
        yield (drawn.view("<u4") >> 16).astype("<u2")
        left -= count


def _write_tokenizer(folder: Path) -> None:
    alphabet = [chr(byte) for byte in range(33, 127)] + [chr(0x100 + n) for n in range(160)]
    words = ["<|bos|>", "<|eos|>", *alphabet]
    special = [{"id": n, "content": words[n], "special": True} for n in (0, 1)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None,
        "model": {
            "type": "BPE",
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": [],
        },
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", {"bos_token": words[0], "eos_token": words[1]})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    write_random_llama(Path(sys.argv[1]), shape_of(int(sys.argv[2])))
