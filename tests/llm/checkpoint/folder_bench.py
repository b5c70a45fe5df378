"""Writes checkpoints byte by byte, right ones and wrong ones, without any library of models."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "int8": "I8"}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def llama_tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The tensors of CONFIG, random."""
    draw = np.random.default_rng(seed).standard_normal
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (300, 64)}
    for i in range(2):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (64,),
            f"model.layers.{i}.self_attn.q_proj.weight": (64, 64),
            f"model.layers.{i}.self_attn.k_proj.weight": (32, 64),
            f"model.layers.{i}.self_attn.v_proj.weight": (32, 64),
            f"model.layers.{i}.self_attn.o_proj.weight": (64, 64),
            f"model.layers.{i}.post_attention_layernorm.weight": (64,),
            f"model.layers.{i}.mlp.gate_proj.weight": (96, 64),
            f"model.layers.{i}.mlp.up_proj.weight": (96, 64),
            f"model.layers.{i}.mlp.down_proj.weight": (64, 96),
        }
    shapes |= {"model.norm.weight": (64,), "lm_head.weight": (300, 64)}
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def safetensors_bytes(
    tensors: Mapping[str, NDArray[Any]],
    change: Callable[[dict[str, Any]], object] = lambda head: None,
    tail: bytes = b"",
) -> bytes:
    """A safetensors file; change: does to its head what makes it wrong."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        head[name] = {
            "dtype": NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    change(head)
    coded = json.dumps(head).encode()
    coded += b" " * (-len(coded) % 8)
    return struct.pack("<Q", len(coded)) + coded + data + tail


def write_llama(
    folder: Path,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    tokenizer: bool = True,
    **changes: Any,
) -> Path:
    """Write a folder of a tiny Llama; changes: of its config.json, None takes a field away."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    content = safetensors_bytes(llama_tensors() if tensors is None else tensors)
    (folder / "model.safetensors").write_bytes(content)
    if tokenizer:
        write_bytes_tokenizer(folder)
    return folder


def write_hollow_llama(folder: Path, feed_forward: int) -> Path:
    """Write a tiny Llama with matrices as large as one likes, of zeros that take no disk."""
    write_llama(folder, intermediate_size=feed_forward)
    head: dict[str, Any] = {}
    end = 0
    for name, array in llama_tensors().items():
        shape = [feed_forward if "mlp" in name and axis == 96 else axis for axis in array.shape]
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * prod(shape)]}
        end += 4 * prod(shape)
    coded = json.dumps(head).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(coded)) + coded)
        file.truncate(8 + len(coded) + end)
    return folder


def write_tall_llama(
    folder: Path, layers: int, width: int, feed_forward: int, vocabulary: int = 300
) -> Path:
    """Write a Llama of many blocks with the same random numbers, a block at a time.

    In 64 bits, so that a large file has few weights.
    """
    changes = {"hidden_size": width, "intermediate_size": feed_forward, "num_hidden_layers": layers}
    changes["vocab_size"] = vocabulary
    write_llama(folder, **changes, num_attention_heads=4, num_key_value_heads=4)
    draw = np.random.default_rng(0)
    sides = {64: width, 32: width, 96: feed_forward, 300: vocabulary}
    block: dict[str, NDArray[np.float64]] = {}
    outer: dict[str, NDArray[np.float64]] = {}
    for name, array in llama_tensors().items():
        shape = tuple(sides[axis] for axis in array.shape)
        values = draw.standard_normal(shape) / width**0.5
        if ".layers.0." in name:
            block[name] = values
        elif ".layers." not in name:
            outer[name] = values
    head: dict[str, Any] = {}
    end = 0
    parts: list[Iterable[tuple[str, NDArray[np.float64]]]] = [outer.items()]
    parts += (
        [(name.replace(".0.", f".{layer}."), values) for name, values in block.items()]
        for layer in range(layers)
    )
    for name, array in chain.from_iterable(parts):
        offsets = [end, end + array.nbytes]
        head[name] = {"dtype": "F64", "shape": [*array.shape], "data_offsets": offsets}
        end += array.nbytes
    coded = json.dumps(head).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(coded)) + coded)
        for _, array in chain.from_iterable(parts):
            file.write(array.data)
    return folder


def write_bytes_tokenizer(folder: Path, **changes: Any) -> None:
    """Write a byte-level BPE tokenizer of single bytes and two merges."""
    alphabet = [chr(byte) for byte in range(33, 127)] + [chr(0x100 + n) for n in range(160)]
    vocab = {text: number for number, text in enumerate(["<|bos|>", "<|eos|>", *alphabet])}
    vocab |= {"th": len(vocab), "the": len(vocab) + 1}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<|bos|>", "special": True},
            {"id": 1, "content": "<|eos|>", "special": True},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["th", "e"]]},
        **changes,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": "{% for m in messages %}{{ m }}{% endfor %}"})
    )


def write_shards(folder: Path, count: int = 3) -> dict[str, str]:
    """Write a tiny Llama as `count` shards with an index, and give the index."""
    write_llama(folder)
    (folder / "model.safetensors").unlink()
    tensors = llama_tensors()
    names = list(tensors)
    index = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        index |= dict.fromkeys(mine, file)
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in mine}))
    write_index(folder, index)
    return index


def write_index(folder: Path, index: Mapping[str, str]) -> None:
    """Write what says which tensor is in which shard."""
    content = {"metadata": {"total_size": 1}, "weight_map": dict(index)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: int | bytes | float) -> bytes:
    if isinstance(content, float):
        return varint(number << 3 | 5) + struct.pack("<f", content)
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece_bytes(pieces: list[tuple[str, float, int]], model_type: int = 2) -> bytes:
    """A tokenizer.model, as protobuf writes it."""
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
        for text, score, kind in pieces
    )
    trainer = field(3, model_type) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    return content + field(2, trainer) + field(3, field(1, b"identity") + field(3, 1))
