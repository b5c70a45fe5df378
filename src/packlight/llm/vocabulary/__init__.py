"""Tokenizers as GGUF metadata: tokens, merges, special tokens and the chat template."""

from packlight.llm.vocabulary.read import FILES, Vocabulary, read_vocabulary

__all__ = ["FILES", "Vocabulary", "read_vocabulary"]
