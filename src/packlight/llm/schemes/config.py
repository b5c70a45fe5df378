"""The small files of a folder for vLLM: config.json with the scheme, and what goes along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.folder import has_file, resolve_within
from packlight.llm.schemes.folder import FolderPlan
from packlight.llm.schemes.sources import outputs_of
from packlight.llm.schemes.table import Scheme
from packlight.strict_json import read_json

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files that are carried over as they are, where there are any."""

MOST_BYTES = 1 << 28
_MOST_CONFIG_BYTES = 1 << 22
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def small_files(checkpoint: Checkpoint, plan: FolderPlan) -> dict[str, bytes]:
    """The content of every file but the weights. Raises UnusableModel for one that is too large."""
    folder = checkpoint.path
    config = dict(read_json(resolve_within(folder, "config.json"), _MOST_CONFIG_BYTES))
    config.pop("torch_dtype", None)
    config["dtype"] = _DTYPES[plan.half]
    if plan.scheme.format:
        config["quantization_config"] = quantization_config(checkpoint, plan)
    files = {"config.json": json.dumps(config, indent=2).encode() + b"\n"}
    for name in COMPANIONS:
        if has_file(folder, name):
            files[name] = _read(resolve_within(folder, name))
    return files


def quantization_config(checkpoint: Checkpoint, plan: FolderPlan) -> dict[str, Any]:
    """What config.json says of the weights, as compressed-tensors reads it."""
    layers: dict[int, list[str]] = {}
    for name in plan.rounded:
        group = plan.scheme.group_of(checkpoint.tensors[name].shape[-1]) or 0
        layers.setdefault(group, []).extend(_modules(checkpoint, name))
    ignore = [module for name in plan.kept for module in _modules(checkpoint, name)]
    ignore += [one.name.removesuffix(".weight") for one in plan.others if len(one.shape) > 1]
    if "lm_head" not in ignore:  # one that is the embedding has no weights of its own
        ignore.append("lm_head")
    return {
        "quant_method": "compressed-tensors",
        "format": plan.scheme.format,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignore,
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(layers) == 1 else names,
                "weights": _weights(plan.scheme, group),
                "input_activations": _plain(plan.scheme.activations),
                "output_activations": None,
                "format": plan.scheme.format,
            }
            for number, (group, names) in enumerate(layers.items())
        },
    }


def _weights(scheme: Scheme, group: int) -> dict[str, Any]:
    floats = scheme.format in ("float-quantized", "nvfp4-pack-quantized")
    found: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "float" if floats else "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group" if scheme.groups else "channel",
        "group_size": group if scheme.groups else None,
    }
    if scheme.format == "nvfp4-pack-quantized":
        found["strategy"] = "tensor_group"
        found |= {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
    return found


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _modules(checkpoint: Checkpoint, name: str) -> list[str]:
    """Modules of transformers that a tensor is the weight of."""
    return [
        output.removesuffix(".weight")
        for output in outputs_of(checkpoint, name)
        if output.endswith(".weight") and len(checkpoint.tensors[name].shape) > 1
    ]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UnusableModel(f"{path} is larger than {MOST_BYTES} bytes: download the model again.")
    return content
