"""A GGUF file run by llama.cpp, in a child process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packlight.errors import MissingExtra
from packlight.runtime.limits import Limits
from packlight.runtime.text import TextModel, TextRuntime

_DEFAULT = Limits()


class LlamaCpp(TextRuntime):
    """llama.cpp with one .gguf file loaded; see `TextRuntime`.

    Raises MissingExtra where llama-cpp-python is not installed too.
    """

    engine = "llama.cpp"
    called = "llama.cpp"

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context: int = 512,
        every_position: bool = True,
        limits: Limits = _DEFAULT,
    ) -> None:
        check_llamacpp()
        super().__init__(
            path,
            threads=threads,
            context=context,
            every_position=every_position,
            limits=limits,
            mapped_bytes=path.stat().st_size if path.is_file() else 0,
        )

    def _describe(self, answer: dict[str, Any]) -> TextModel:
        return _model_of(answer)

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Tokens [n] of a text, without a start token; special tokens in it are plain text."""
        coded = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        _, found = self._ask("tokenize", {}, {"text": coded}, doing="tokenizing a text")
        return self._tokens(found, limit=len(coded) + 8)

    def detokenize(self, tokens: ArrayLike) -> str:
        """The text of tokens [n]; what is no whole character becomes a replacement mark."""
        given = self._given(tokens, least=0)
        if not len(given):
            return ""
        _, found = self._ask("detokenize", {}, {"tokens": given}, doing="writing tokens as text")
        text = found.get("text")
        if text is None or text.dtype != np.uint8 or text.ndim != 1:
            raise self._nonsense("a text")
        return text.tobytes().decode("utf-8", "replace")


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


def _model_of(answer: dict[str, Any]) -> TextModel:
    texts = answer["texts"]
    family = "/".join(
        str(texts[key]) for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre") if texts[key]
    )
    return TextModel(
        architecture=str(texts["general.architecture"]),
        name=str(texts["general.name"]),
        vocabulary=int(answer["vocabulary"]),
        parameters=int(answer["parameters"]),
        trained_context=int(answer["trained_context"]),
        adds_start=answer["adds_start"] is True,
        start=int(answer["start"]),
        tokenizer=family,
    )
