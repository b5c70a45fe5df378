"""The name that was meant, for messages about one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The nearest of the known names as words for a sentence, ` (did you mean 'x'?)`, or ''."""
    found = difflib.get_close_matches(str(word)[:200], list(known), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
