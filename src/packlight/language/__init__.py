"""Language models from the outside: what `packlight.compress` does for a checkpoint or a GGUF."""

from packlight.language.ask import Ask, is_language_model, read_ask
from packlight.language.result import LanguageResult
from packlight.language.story import compress_language_model

__all__ = ["Ask", "LanguageResult", "compress_language_model", "is_language_model", "read_ask"]
