"""Special tokens: which they are, and which are put around a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packlight.llm.checkpoint.config import ModelConfig
from packlight.llm.gguf.values import Kind, Value, value_of
from packlight.llm.vocabulary.sentencepiece import SentencePieces
from packlight.llm.vocabulary.tokens import Tokens

_KEY = "tokenizer.ggml"
# Name in tokenizer_config.json, in GGUF.
_NAMES = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))


def special_pairs(
    tokens: Tokens,
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    config: ModelConfig,
    pieces: SentencePieces | None,
) -> dict[str, Value]:
    """Give the ids of special tokens, and whether a text begins or ends with one.

    What tokenizer_config.json says comes first, then config.json, then the SentencePiece model.
    """
    ids = {text: token for token, text in enumerate(tokens.texts)}
    found: dict[str, int] = {}
    spare = {"bos": config.bos, "eos": config.eos}
    for name, _ in _NAMES:
        text = _text(settings.get(f"{name}_token"))
        token = ids.get(text.encode("utf-8", "surrogatepass")) if text else None
        if token is None:
            token = spare.get(name)
        if token is None and pieces is not None:
            token = getattr(pieces, "unknown" if name == "unk" else name)
        if token is not None and 0 <= token < len(tokens.texts):
            found[name] = token
    pairs = {
        f"{_KEY}.{key}_token_id": value_of(found[name], Kind.U32)
        for name, key in _NAMES
        if name in found
    }
    first, last = surrounded(tokenizer, found, tokens)
    begin = _truth(
        settings.get("add_bos_token"), first, default=pieces is not None and not tokenizer
    )
    end = _truth(settings.get("add_eos_token"), last, default=False)
    pairs[f"{_KEY}.add_bos_token"] = value_of(begin and "bos" in found)
    pairs[f"{_KEY}.add_eos_token"] = value_of(end and "eos" in found)
    return pairs


def surrounded(
    tokenizer: Mapping[str, Any], found: Mapping[str, int], tokens: Tokens
) -> tuple[bool | None, bool | None]:
    """Tell whether a tokenizer.json puts BOS in front of a text and EOS behind; None: no word."""
    described = tokenizer.get("post_processor")
    if not isinstance(described, Mapping):
        return None, None
    steps = described.get("processors") if described.get("type") == "Sequence" else [described]
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, Mapping) or step.get("type") != "TemplateProcessing":
            continue
        single = step.get("single")
        if isinstance(single, list) and single:
            return (
                _is_token(single[0], found.get("bos"), tokens),
                _is_token(single[-1], found.get("eos"), tokens),
            )
    return None, None


def _is_token(one: Any, token: int | None, tokens: Tokens) -> bool:
    special = one.get("SpecialToken") if isinstance(one, Mapping) else None
    text = special.get("id") if isinstance(special, Mapping) else None
    if token is None or not isinstance(text, str):
        return False
    return tokens.texts[token] == text.encode("utf-8", "surrogatepass")


def _truth(said: Any, seen: bool | None, *, default: bool) -> bool:
    # What tokenizer.json does is what transformers does, whatever a setting beside it says.
    if seen is not None:
        return seen
    return said if isinstance(said, bool) else default


def _text(said: Any) -> str:
    said = said.get("content") if isinstance(said, Mapping) else said
    return said if isinstance(said, str) else ""
