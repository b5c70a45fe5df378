"""The list of tokens: text, score and type of each, whatever tokenizer they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.vocabulary.sentencepiece import SentencePieces

MOST_TOKENS = 1 << 21
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NEVER = -1000.0
"""Score of tokens that no merge leads to."""


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Tokens:
    """texts, scores, types: by token id. scores are empty where merges rule."""

    texts: tuple[bytes, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """A token that was added to a vocabulary, and stands for itself in a text."""

    id: int
    text: str
    special: bool


def tokens_of_vocab(
    vocab: Mapping[str, int], added: list[Added], size: int, scores: Mapping[str, float] | None
) -> Tokens:
    """Make the list from a vocabulary by text. size: of the model's embeddings.

    scores: of each text (SentencePiece); None: merges rule (byte-level BPE).
    """
    texts: dict[int, bytes] = {}
    types: dict[int, int] = {}
    numbers: dict[int, float] = {}
    for text, token in vocab.items():
        texts[token] = text.encode("utf-8", "surrogatepass")
        is_byte = scores is not None and _BYTE.fullmatch(text)
        types[token] = TokenType.BYTE if is_byte else TokenType.NORMAL
        numbers[token] = (scores or {}).get(text, _NEVER)
    for one in added:
        kind = TokenType.CONTROL if one.special or looks_special(one.text) else None
        text = one.text if kind else one.text.replace("\u2581", " ")
        texts[one.id] = text.encode("utf-8", "surrogatepass")
        types[one.id] = kind or TokenType.USER_DEFINED
        numbers[one.id] = _NEVER
    return _fill(texts, types, numbers if scores is not None else None, size)


def tokens_of_pieces(pieces: SentencePieces, added: list[Added], size: int) -> Tokens:
    """Make the list from a SentencePiece vocabulary and what was added to it."""
    texts = dict(enumerate(pieces.pieces))
    types = dict(enumerate(pieces.types))
    scores = dict(enumerate(pieces.scores))
    for one in added:
        if one.id < len(pieces.pieces) and types[one.id] == TokenType.UNKNOWN:
            continue
        kind = TokenType.CONTROL if one.special or looks_special(one.text) else None
        text = one.text if kind else one.text.replace("\u2581", " ")
        texts[one.id] = text.encode("utf-8", "surrogatepass")
        types[one.id] = kind or TokenType.USER_DEFINED
        scores[one.id] = _NEVER
    return _fill(texts, types, scores, size)


def scores_of_merges(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, float]:
    """Give each token the score under which merging the best pair first follows the merges.

    SentencePiece merges the pair whose joined token has the highest score; BPE the pair whose
    merge comes first. With minus the rank of a token's first merge both do the same.
    """
    scores = dict.fromkeys(vocab, 0.0)
    for rank, (left, right) in reversed(list(enumerate(merges))):
        scores[left + right] = -float(rank)
    made = {left + right for left, right in merges}
    return {text: score if text in made else _NEVER for text, score in scores.items()}


def looks_special(text: str) -> bool:
    """Tell whether an added token is one of control though its file does not say so.

    As llama.cpp's converter judges (conversion/base.py, does_token_look_special).
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def parse_added(listed: Any, where: str) -> list[Added]:
    """Read the added_tokens of a tokenizer.json. Raises UnusableModel."""
    if not isinstance(listed, list):
        raise UnusableModel(f"{where} has added_tokens that are no list.")
    return [
        _added(one, one.get("id") if isinstance(one, Mapping) else None, where) for one in listed
    ]


def parse_decoder(listed: Any, where: str) -> list[Added]:
    """Read the added_tokens_decoder of a tokenizer_config.json. Raises UnusableModel."""
    if not isinstance(listed, Mapping):
        return []
    return [
        _added(one, int(key) if key.isdecimal() else None, where) for key, one in listed.items()
    ]


def _added(one: Any, token: Any, where: str) -> Added:
    text = one.get("content") if isinstance(one, Mapping) else None
    if not isinstance(text, str) or type(token) is not int or not 0 <= token < MOST_TOKENS:
        raise UnusableModel(f"{where} lists an added token without text or number.")
    return Added(token, text, one.get("special") is True)


def _fill(
    texts: dict[int, bytes],
    types: dict[int, int],
    scores: dict[int, float] | None,
    size: int,
) -> Tokens:
    """Fill up to the size of the embeddings; llama.cpp wants every text once."""
    beyond = [token for token in texts if token >= size]
    if beyond:
        raise UnusableModel(
            f"The tokenizer has the token {min(beyond)}, and the model's vocabulary only {size} "
            "tokens: tokenizer and weights are not of one model."
        )
    seen: set[bytes] = set()
    out = []
    for token in range(size):
        text = texts.get(token, b"") or f"[PAD{token}]".encode()
        if text in seen:
            text = text + f"[{token}]".encode()
            types[token] = TokenType.UNUSED
        seen.add(text)
        out.append(text)
    kinds = tuple(int(types.get(token, TokenType.UNUSED)) for token in range(size))
    numbers = () if scores is None else tuple(scores.get(token, -10000.0) for token in range(size))
    return Tokens(tuple(out), numbers, kinds)
