"""GGUF files: read with nothing taken on trust, written tensor by tensor, resumable.

The format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

from packlight.llm.gguf.plain import plain_contents
from packlight.llm.gguf.reader import GgufFile, read_gguf
from packlight.llm.gguf.values import Kind, Value
from packlight.llm.gguf.writer import begin_gguf, write_gguf
from packlight.llm.gguf.writing import Writing

__all__ = [
    "GgufFile",
    "Kind",
    "Value",
    "Writing",
    "begin_gguf",
    "plain_contents",
    "read_gguf",
    "write_gguf",
]
