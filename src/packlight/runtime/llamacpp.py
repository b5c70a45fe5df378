"""A GGUF file run by llama.cpp, in a child process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from packlight.errors import MissingExtra, RuntimeRefused
from packlight.runtime.text import TextModel, TextRunner, TextRuntime, TextSeconds

__all__ = [
    "LLAMACPP",
    "LlamaCpp",
    "TextModel",
    "TextSeconds",
    "check_llamacpp",
    "has_llamacpp",
    "llamacpp_name",
]


class LlamaCpp(TextRunner):
    """llama.cpp with one .gguf file loaded; see `TextRunner`.

    With `every_position` threads leave the cores to others while they wait.
    Raises MissingExtra where llama-cpp-python is not installed.
    """

    engine = "llama.cpp"

    @classmethod
    def find_weights(cls, path: Path) -> Iterable[Path]:
        """The file."""
        check_llamacpp()
        if not path.is_file():
            raise RuntimeRefused(f"There is no file {path} to load.")
        return (path,)


def has_llamacpp() -> bool:
    """Whether llama-cpp-python is installed here; nothing of it is imported."""
    return importlib.util.find_spec("llama_cpp") is not None


def check_llamacpp() -> None:
    """Raises MissingExtra where llama-cpp-python is not installed."""
    if not has_llamacpp():
        raise MissingExtra(
            "llama-cpp-python is not installed here, so a GGUF file cannot be run and measured: "
            "run `pip install packlight[llamacpp]` (it is built from source, which takes about "
            "ten minutes and a C++ compiler)."
        )


def llamacpp_name() -> str:
    """The runtime with its version, for reports; nothing of it is imported."""
    return f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')}) CPU"


LLAMACPP = TextRuntime(LlamaCpp, llamacpp_name, check_llamacpp)
