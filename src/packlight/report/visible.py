"""Hostile text made harmless: names come from model files, and those from anyone.

A tensor may be called `</script><img onerror=...>`, or hold an escape sequence
for the terminal or a character that turns the reading direction around. All text
that did not come from our own source passes through here before it is shown.
"""

from __future__ import annotations

import html
import re
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_NUMBER_AND_UNIT = re.compile(r"(\d) (?=(?:%|bytes\b|[KMGT]?B\b|ms\b|s\b|dB\b|times\b|samples\b))")


def visible(text: str, *, limit: int = 400, keep: str = "") -> str:
    r"""`text` with control, bidirectional, surrogate and unassigned characters spelled out.

    They become `\x1b` or `\u202e`, as Python writes them; what is longer than `limit`
    characters is cut in the middle. Characters of `keep` (line ends of a code snippet)
    pass unchanged.
    """
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _INVISIBLE
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escape(text: str, *, limit: int = 400, keep: str = "") -> str:
    """`text` as HTML: made visible, then `& < > " '` escaped."""
    return html.escape(visible(text, limit=limit, keep=keep), quote=True)


def escape_prose(text: str, *, limit: int = 4000) -> str:
    """A sentence as HTML, with its numbers and their units kept on one line."""
    return _NUMBER_AND_UNIT.sub("\\1&nbsp;", escape(text, limit=limit))
