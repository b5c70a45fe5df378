"""The runtimes that language models are made for."""

from __future__ import annotations

from packlight.language.gguf import GgufTarget
from packlight.language.onnxruntime import OnnxTarget
from packlight.language.target import LanguageTarget
from packlight.language.vllm import VllmTarget

LANGUAGE_TARGETS: dict[str, LanguageTarget] = {
    "llama.cpp": GgufTarget(),
    "ollama": GgufTarget(),
    "onnxruntime": OnnxTarget(),
    "vllm": VllmTarget(),
}
"""By name, as `packlight.language.ask` reads it."""
