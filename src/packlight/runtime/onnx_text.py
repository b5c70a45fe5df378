"""An ONNX decoder run by onnxruntime as a language model, in a child process of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packlight.runtime.limits import Limits
from packlight.runtime.text import TextModel, TextRuntime

_DEFAULT = Limits()


class OnnxText(TextRuntime):
    """onnxruntime with one decoder loaded, its weights beside it; see `TextRuntime`.

    The file knows nothing of words: to_tokens and to_text say what they are, start which token
    every text begins with, where one does, and ends which ones end it.
    """

    engine = "onnxruntime text"
    called = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        to_tokens: Callable[[str], Sequence[int]],
        to_text: Callable[[Sequence[int]], str],
        start: int | None = None,
        ends: Sequence[int] = (),
        threads: int = 1,
        context: int = 512,
        every_position: bool = True,
        limits: Limits = _DEFAULT,
    ) -> None:
        self._to_tokens, self._to_text, self._start = to_tokens, to_text, start
        files = (path, path.with_name(path.name + ".data"))
        super().__init__(
            path,
            threads=threads,
            context=context,
            every_position=every_position,
            limits=limits,
            mapped_bytes=sum(one.stat().st_size for one in files if one.is_file()),
            more={"ends": list(ends)},
        )

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Tokens [n] of a text, without a start token; special tokens in it are plain text."""
        return np.asarray(self._to_tokens(text), np.int32)

    def detokenize(self, tokens: ArrayLike) -> str:
        """The text of tokens [n]."""
        return self._to_text(self._given(tokens, least=0).tolist())

    def _describe(self, answer: dict[str, Any]) -> TextModel:
        return TextModel(
            architecture="",
            name=self.path.name,
            vocabulary=int(answer["vocabulary"]),
            parameters=0,
            trained_context=0,
            adds_start=self._start is not None,
            start=-1 if self._start is None else self._start,
            tokenizer="",
        )


def onnx_text_name() -> str:
    """The runtime with its version, for reports; nothing of it is imported."""
    return f"onnxruntime {importlib.metadata.version('onnxruntime')} CPU"
