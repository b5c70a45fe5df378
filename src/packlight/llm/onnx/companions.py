"""What lies beside an ONNX decoder: the tokenizer's files, and what onnxruntime-genai asks.

Source of genai_config.json: onnxruntime-genai's own model builder and its reference of settings.
"""

from __future__ import annotations

import json
from typing import Any

from packlight.errors import WrongUsage
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.folder import has_file, resolve_within
from packlight.llm.onnx.support import context_of
from packlight.llm.text import MOST_TOKENIZER_BYTES
from packlight.strict_json import read_json

CARRIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)

_MOST_JSON = 1 << 24


def companion_files(checkpoint: Checkpoint, model: str) -> dict[str, bytes]:
    """Contents by name: files carried over from the checkpoint's folder, and genai_config.json.

    model: the name of the graph's file. Raises WrongUsage for a checkpoint that is no folder.
    """
    folder = checkpoint.path
    if not folder.is_dir():
        raise WrongUsage(
            f"{folder} is a GGUF file, and its tokenizer has no place beside an ONNX file: give "
            "the Hugging Face folder that it was made from, or use --target llama.cpp."
        )
    found = {}
    for name in CARRIED:
        if has_file(folder, name):
            path = resolve_within(folder, name)
            if path.stat().st_size <= MOST_TOKENIZER_BYTES:
                found[name] = path.read_bytes()
    settings = genai_config(checkpoint, model)
    return {**found, "genai_config.json": json.dumps(settings, indent=4).encode() + b"\n"}


def end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The tokens that end a text: of generation_config.json, or else of config.json."""
    folder = checkpoint.path
    listed: Any = None
    if has_file(folder, "generation_config.json"):
        path = resolve_within(folder, "generation_config.json")
        listed = read_json(path, _MOST_JSON).get("eos_token_id")
    listed = listed if listed is not None else checkpoint.config.eos
    listed = listed if isinstance(listed, list) else [listed]
    vocabulary = checkpoint.config.vocabulary
    return tuple(one for one in listed if type(one) is int and 0 <= one < vocabulary)


def genai_config(checkpoint: Checkpoint, model: str) -> dict[str, Any]:
    """The settings that onnxruntime-genai loads a decoder by."""
    config, context, ends = checkpoint.config, context_of(checkpoint), end_tokens(checkpoint)
    end = ends[0] if ends else 0
    return {
        "model": {
            "bos_token_id": config.bos if config.bos is not None else end,
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": model,
                "head_size": config.head_width,
                "hidden_size": config.width,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.heads,
                "num_hidden_layers": config.layers,
                "num_key_value_heads": config.kv_heads,
            },
            "eos_token_id": list(ends) if len(ends) > 1 else end,
            "pad_token_id": end,
            "type": config.model_type,
            "vocab_size": config.vocabulary,
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
