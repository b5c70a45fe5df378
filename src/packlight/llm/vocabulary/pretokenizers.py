"""Which of llama.cpp's ways to cut a text into words is that of a tokenizer.json.

llama.cpp's converter encodes a text with the model's tokenizer and knows the way by a hash of
the tokens, model by model (conversion/base.py, get_vocab_base_pre). Here the way is known by
its own definition, so that a model that nobody has listed yet is understood too. The patterns are
those of src/llama-vocab.cpp, as the tokenizer.json of the models have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packlight.errors import UnusableModel

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_DIGITS = ("digits",)
_BYTES = ("bytes", _GPT2)

# Steps of a pre-tokenizer -> llama.cpp's name where merges are applied in order, and its name
# where a word that is a token is taken as it is ("ignore_merges").
_KNOWN: Mapping[tuple[tuple[str, ...], ...], tuple[str, str]] = {
    (_BYTES,): ("gpt-2", ""),
    (_DIGITS, _BYTES): ("smollm", ""),
    (("split", rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"),): (
        "dbrx",
        "llama-bpe",
    ),
    (("split", rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"),): ("qwen2", ""),
    (
        (
            "split",
            rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ): ("qwen35", ""),
    (
        (
            "split",
            rf"{_UPPER}*{_LOWER}+{_SHORT}?|{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_TAIL_SLASH}",
        ),
    ): ("gpt-4o", ""),
    (("split", rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}|{_TAIL_SLASH}"),): ("", "tekken"),
    (("split", _GPT2),): ("gpt-2", ""),
}


def name_pretokenizer(tokenizer: Mapping[str, Any], where: str) -> str:
    """Give llama.cpp's name of how a byte-level BPE tokenizer cuts words.

    tokenizer: a parsed tokenizer.json. Raises UnusableModel when llama.cpp has no such way, or
    it is not known here.
    """
    steps = tuple(_steps_of(tokenizer.get("pre_tokenizer"), where))
    in_order, whole = _KNOWN.get(steps, ("", ""))
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, Mapping) and model.get("ignore_merges") is True
    name = whole if ignore_merges else in_order
    # Of those that take whole words no second name is needed where merges lead there too.
    if not (name or in_order or whole):
        shown = "; ".join(" ".join(step) for step in steps)[:300] or "none"
        raise UnusableModel(
            f"{where} cuts words in a way that llama.cpp is not known to have ({shown}): give "
            "tokenizer.ggml.pre yourself, or use a GGUF of this model that llama.cpp converted."
        )
    return name or in_order or whole


def _steps_of(described: Any, where: str) -> list[tuple[str, ...]]:
    """Reduce a pre-tokenizer to what it does; byte-level steps that only rename bytes vanish."""
    if described is None:
        return []
    if not isinstance(described, Mapping):
        raise UnusableModel(f"{where} describes its pre_tokenizer by no JSON object.")
    kind = described.get("type")
    if kind == "Sequence":
        parts = described.get("pretokenizers")
        if not isinstance(parts, list) or len(parts) > 16:
            raise UnusableModel(f"{where} has a pre_tokenizer that is no short list of steps.")
        return [step for part in parts for step in _steps_of(part, where)]
    if kind == "ByteLevel":
        if described.get("add_prefix_space") is True:
            return [("bytes with a space in front",)]
        return [_BYTES] if described.get("use_regex", True) else []
    if kind == "Digits" and described.get("individual_digits") is True:
        return [_DIGITS]
    if kind == "Split":
        pattern = described.get("pattern")
        text = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        plain = described.get("behavior") in ("Isolated", "isolated", "Removed", "removed")
        inverted = described.get("behavior") in ("Removed", "removed")
        if isinstance(text, str) and plain and bool(described.get("invert")) is inverted:
            return [("split", text)]
    return [(str(kind)[:50], str(described)[:200])]
