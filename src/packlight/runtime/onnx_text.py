"""A folder with an ONNX decoder run by onnxruntime, in a child process of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from packlight.errors import RuntimeRefused
from packlight.runtime.text import TextRunner, TextRuntime

MODEL = "model.onnx"


class OnnxText(TextRunner):
    """onnxruntime with the decoder of one folder loaded; see `TextRunner`.

    The folder has model.onnx with its weights beside it, tokenizer.json, without which there are
    no words, and genai_config.json, which says what tokens end a text.
    """

    engine = "onnxruntime decoder"

    @classmethod
    def find_weights(cls, path: Path) -> Iterable[Path]:
        """The graph of a folder, and its weights."""
        if not (path / MODEL).is_file():
            raise RuntimeRefused(f"There is no folder {path} with a {MODEL} to load.")
        return path.glob(f"{MODEL}*")


def onnx_text_name() -> str:
    """The runtime with its version, for reports; nothing of it is imported."""
    return f"onnxruntime {importlib.metadata.version('onnxruntime')} CPU"


ONNX_TEXT = TextRuntime(OnnxText, onnx_text_name, lambda: None)
