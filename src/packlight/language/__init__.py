"""Language models from the outside: what `packlight.compress` does for a checkpoint or a GGUF."""

from packlight.language.ask import is_language_model
from packlight.language.enter import enter
from packlight.language.forecast import LanguageForecast
from packlight.language.result import LanguageResult

__all__ = ["LanguageForecast", "LanguageResult", "enter", "is_language_model"]
