"""GGUF's block formats: weights to bytes and back, bit-exact with llama.cpp's layouts."""

from packlight.llm.formats.codebooks import has_codebooks
from packlight.llm.formats.quantizing import Quantized, quantize, quantize_with_info
from packlight.llm.formats.table import (
    FORMATS,
    BlockFormat,
    decode,
    encode,
    fallback,
    fits,
    row_bytes,
)

__all__ = [
    "FORMATS",
    "BlockFormat",
    "Quantized",
    "decode",
    "encode",
    "fallback",
    "fits",
    "has_codebooks",
    "quantize",
    "quantize_with_info",
    "row_bytes",
]
