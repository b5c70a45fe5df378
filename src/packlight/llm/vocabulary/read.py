"""Finds a model's tokenizer in its folder, and makes GGUF metadata of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.config import ModelConfig
from packlight.llm.checkpoint.folder import has_file, resolve_within
from packlight.llm.gguf.values import Kind, Value, value_of
from packlight.llm.vocabulary.pretokenizers import name_pretokenizer
from packlight.llm.vocabulary.sentencepiece import BPE, SentencePieces, parse_sentencepiece
from packlight.llm.vocabulary.special import special_pairs
from packlight.llm.vocabulary.templates import template_pairs
from packlight.llm.vocabulary.tokens import (
    MOST_TOKENS,
    Added,
    Tokens,
    TokenType,
    parse_added,
    parse_decoder,
    scores_of_merges,
    tokens_of_pieces,
    tokens_of_vocab,
)
from packlight.strict_json import read_json

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer is read from."""

MOST_BYTES = 1 << 27
_KEY = "tokenizer.ggml"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF metadata; or the sentence why there is none."""

    metadata: Mapping[str, Value]
    notes: tuple[str, ...] = ()
    trouble: str = ""


def read_vocabulary(folder: Path, config: ModelConfig) -> Vocabulary:
    """Read the tokenizer of the model in `folder`. Never raises: see Vocabulary.trouble."""
    try:
        return _read(folder, config)
    except UnusableModel as error:
        return Vocabulary({}, trouble=str(error))


def _read(folder: Path, config: ModelConfig) -> Vocabulary:
    settings: Mapping[str, Any] = {}
    if has_file(folder, "tokenizer_config.json"):
        settings = _json(folder, "tokenizer_config.json")
    tokenizer: Mapping[str, Any] = {}
    if has_file(folder, "tokenizer.json"):
        tokenizer = _json(folder, "tokenizer.json")
    added = parse_added(tokenizer.get("added_tokens") or [], f"{folder}/tokenizer.json")
    known = {one.id for one in added}
    more = parse_decoder(settings.get("added_tokens_decoder"), f"{folder}/tokenizer_config.json")
    added += [one for one in more if one.id not in known]
    notes: list[str] = []
    pieces = _pieces(folder, bool(tokenizer))
    if pieces is not None:
        pairs, tokens = _from_pieces(pieces, added, config)
    elif tokenizer:
        pairs, tokens = _from_json(tokenizer, added, config, f"{folder}/tokenizer.json", notes)
    elif has_file(folder, "vocab.json"):
        raise UnusableModel(
            f"{folder} has its tokenizer as vocab.json alone: save it as tokenizer.json, with "
            "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    else:
        raise UnusableModel(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model), without which "
            "llama.cpp cannot turn text into tokens: download it with the model."
        )
    if isinstance(settings.get("add_prefix_space"), bool):
        pairs[f"{_KEY}.add_space_prefix"] = value_of(settings["add_prefix_space"])
    pairs |= special_pairs(tokens, settings, tokenizer, config, pieces)
    pairs |= template_pairs(folder, settings)
    return Vocabulary(pairs, tuple(notes))


def _pieces(folder: Path, has_json: bool) -> SentencePieces | None:
    """Read tokenizer.model; some models have something else under this name, and a JSON file."""
    if not has_file(folder, "tokenizer.model"):
        return None
    path = resolve_within(folder, "tokenizer.model")
    if path.stat().st_size > MOST_BYTES:
        raise UnusableModel(f"{folder}/tokenizer.model has more than {MOST_BYTES} bytes.")
    try:
        return parse_sentencepiece(path.read_bytes(), f"{folder}/tokenizer.model")
    except UnusableModel:
        if has_json:
            return None
        raise


def _from_pieces(
    pieces: SentencePieces, added: list[Added], config: ModelConfig
) -> tuple[dict[str, Value], Tokens]:
    tokens = tokens_of_pieces(pieces, added, config.vocabulary)
    unigram = pieces.model_type != BPE
    pairs = _list_pairs("t5" if unigram else "llama", "default", tokens)
    prefix = pieces.add_space_prefix and not config.architecture.startswith("gemma")
    pairs[f"{_KEY}.add_space_prefix"] = value_of(prefix)
    if unigram:
        pairs[f"{_KEY}.remove_extra_whitespaces"] = value_of(pieces.remove_extra_spaces)
        if pieces.charsmap:
            pairs[f"{_KEY}.precompiled_charsmap"] = value_of(list(pieces.charsmap), Kind.U8)
    return pairs, tokens


def _from_json(
    tokenizer: Mapping[str, Any],
    added: list[Added],
    config: ModelConfig,
    where: str,
    notes: list[str],
) -> tuple[dict[str, Value], Tokens]:
    model = tokenizer.get("model")
    if not isinstance(model, Mapping):
        raise UnusableModel(f"{where} describes no model: download it again.")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "Unigram":
        return _from_unigram(tokenizer, model, added, config, where)
    if kind != "BPE":
        raise UnusableModel(
            f"{where} is a tokenizer of the type {str(kind)[:50]!r}; BPE and Unigram are known."
        )
    vocab = _vocab(model.get("vocab"), where)
    merges = _merges(model.get("merges"), where)
    steps = _normalizers(tokenizer.get("normalizer"))
    if model.get("byte_fallback") is True:
        return _from_fallback(tokenizer, vocab, merges, added, config, steps)
    name = name_pretokenizer(tokenizer, where)
    if steps - {"NFC"}:
        raise UnusableModel(
            f"{where} changes a text before cutting it ({', '.join(sorted(steps))}), which "
            "llama.cpp does not for such a tokenizer."
        )
    if steps:
        notes.append("The tokenizer composes characters (NFC) first, and llama.cpp does not.")
    tokens = tokens_of_vocab(vocab, added, config.vocabulary, None)
    pairs = _list_pairs("gpt2", name, tokens)
    if merges:
        # A space within a merge would be taken for the one between its parts.
        joined = [
            f"{a} {b}"
            for a, b in ((x.replace(" ", "\u0120"), y.replace(" ", "\u0120")) for x, y in merges)
        ]
        pairs[f"{_KEY}.merges"] = value_of(joined)
    return pairs, tokens


def _from_fallback(
    tokenizer: Mapping[str, Any],
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    added: list[Added],
    config: ModelConfig,
    steps: set[str],
) -> tuple[dict[str, Value], Tokens]:
    """A SentencePiece vocabulary in the clothes of BPE, as Llama 2, Mistral and Gemma have it."""
    scores = scores_of_merges(vocab, merges)
    tokens = tokens_of_vocab(vocab, added, config.vocabulary, scores)
    types = list(tokens.types)
    unknown = _model_text(tokenizer, "unk_token")
    if unknown in vocab:
        types[vocab[unknown]] = TokenType.UNKNOWN
    tokens = Tokens(tokens.texts, tokens.scores, tuple(types))
    pairs = _list_pairs("llama", "default", tokens)
    cut = tokenizer.get("pre_tokenizer")
    metaspace = isinstance(cut, Mapping) and cut.get("type") == "Metaspace"
    prefix = "Prepend" in steps or (
        metaspace and isinstance(cut, Mapping) and cut.get("prepend_scheme", "always") != "never"
    )
    pairs[f"{_KEY}.add_space_prefix"] = value_of(prefix)
    return pairs, tokens


def _from_unigram(
    tokenizer: Mapping[str, Any],
    model: Mapping[str, Any],
    added: list[Added],
    config: ModelConfig,
    where: str,
) -> tuple[dict[str, Value], Tokens]:
    listed = model.get("vocab")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_TOKENS:
        raise UnusableModel(f"{where} has no vocabulary: download it again.")
    scores: dict[str, float] = {}
    for pair in listed:
        if not isinstance(pair, list) or not _is_scored(pair):
            raise UnusableModel(f"{where} has a vocabulary that is no list of texts and scores.")
        scores[pair[0]] = float(pair[1])
    vocab = {text: token for token, text in enumerate(pair[0] for pair in listed)}
    tokens = tokens_of_vocab(vocab, added, config.vocabulary, scores)
    types = list(tokens.types)
    if isinstance(model.get("unk_id"), int) and 0 <= model["unk_id"] < len(types):
        types[model["unk_id"]] = TokenType.UNKNOWN
    tokens = Tokens(tokens.texts, tokens.scores, tuple(types))
    pairs = _list_pairs("t5", "default", tokens)
    pairs[f"{_KEY}.add_space_prefix"] = value_of(True)
    steps = _listed(tokenizer.get("normalizer"), "normalizers")
    pairs[f"{_KEY}.remove_extra_whitespaces"] = value_of(any(map(_joins_spaces, steps)))
    for one in steps:
        if one.get("type") == "Precompiled" and isinstance(one.get("precompiled_charsmap"), str):
            try:
                rules = base64.b64decode(one["precompiled_charsmap"], validate=True)
            except ValueError:
                raise UnusableModel(f"{where} has a damaged precompiled_charsmap.") from None
            pairs[f"{_KEY}.precompiled_charsmap"] = value_of(list(rules), Kind.U8)
    return pairs, tokens


def _list_pairs(model: str, pre: str, tokens: Tokens) -> dict[str, Value]:
    pairs = {
        f"{_KEY}.model": value_of(model),
        f"{_KEY}.pre": value_of(pre),
        f"{_KEY}.tokens": value_of(tokens.texts),
        f"{_KEY}.token_type": value_of(tokens.types, Kind.I32),
    }
    if tokens.scores:
        pairs[f"{_KEY}.scores"] = value_of(tokens.scores, Kind.F32)
    return pairs


def _vocab(vocab: Any, where: str) -> Mapping[str, int]:
    if not isinstance(vocab, Mapping) or not 0 < len(vocab) <= MOST_TOKENS:
        raise UnusableModel(f"{where} has no vocabulary: download it again.")
    if not all(type(token) is int and 0 <= token < MOST_TOKENS for token in vocab.values()):
        raise UnusableModel(f"{where} has a vocabulary whose tokens are not all whole numbers.")
    if len(set(vocab.values())) != len(vocab):
        raise UnusableModel(f"{where} gives one number to several tokens.")
    return vocab


def _merges(merges: Any, where: str) -> list[tuple[str, str]]:
    """Merges as pairs; older files join them by a space."""
    found = []
    for one in merges if isinstance(merges, list) else []:
        pair = one.split(" ") if isinstance(one, str) else one
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) for part in pair)
        ):
            raise UnusableModel(f"{where} has a merge that is no pair of texts.")
        found.append((pair[0], pair[1]))
    return found


def _listed(described: Any, key: str) -> list[Mapping[str, Any]]:
    """A step, or the steps of a sequence of steps."""
    if not isinstance(described, Mapping):
        return []
    if described.get("type") == "Sequence":
        parts = described.get(key)
        return [one for one in parts if isinstance(one, Mapping)] if isinstance(parts, list) else []
    return [described]


def _is_scored(pair: list[Any]) -> bool:
    return len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int | float)


def _joins_spaces(step: Mapping[str, Any]) -> bool:
    """Tell whether a step makes one space of several."""
    return step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"}


def _normalizers(described: Any) -> set[str]:
    return {str(one.get("type"))[:50] for one in _listed(described, "normalizers")}


def _model_text(tokenizer: Mapping[str, Any], key: str) -> str:
    model = tokenizer.get("model")
    text = model.get(key) if isinstance(model, Mapping) else None
    return text if isinstance(text, str) else ""


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(resolve_within(folder, name), MOST_BYTES)
