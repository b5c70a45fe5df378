"""What the engines of language models have in common in a worker: requests, over a loaded model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, NDArray[Any]]
Tokens: TypeAlias = NDArray[np.int32]
Request: TypeAlias = Callable[[dict[int, Any], Header, Arrays], tuple[Header, Arrays]]

BATCH = 512
"""Tokens that are read at once."""

_LOGITS_BYTES = 64 << 20
"""At most so much of logits leaves the worker at once."""

_SESSION = 0  # a worker holds one language model


class LoadedText(Protocol):
    """A loaded model. words: of its vocabulary."""

    words: int

    def tokenize(self, text: bytes) -> Sequence[int]:
        """Tokens of a text, without special ones."""

    def detokenize(self, tokens: Tokens) -> bytes:
        """The text of tokens."""

    def forget(self) -> None:
        """Begin a window: the next token is the first."""

    def read(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [n, vocabulary] after each of the next n tokens."""

    def read_last(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [vocabulary] after the last of the next tokens."""

    def ends(self, token: int) -> bool:
        """Whether a text ends with a token."""


def requests_of(load: Callable[[Header], tuple[LoadedText, Header]]) -> dict[str, Request]:
    """The requests that a worker answers, by name. load: gives a model and what is known of it."""

    def load_model(
        sessions: dict[int, Any], header: Header, arrays: Arrays
    ) -> tuple[Header, Arrays]:
        sessions[_SESSION], answer = load(header)
        return answer, {}

    return {
        "load_text_model": load_model,
        "tokenize": _tokenize,
        "detokenize": _detokenize,
        "logits": _logits,
        "generate": _generate,
        "time_text": _time,
    }


def count_positions(header: Header, words: int, length: int) -> int:
    """How many tokens' logits may leave the worker at once; 1 where nobody asks for them all."""
    if not header["positions"]:
        return 1
    return max(1, min(BATCH, length, _LOGITS_BYTES // (4 * words)))


def check_room(tokens: Tokens, used: int, length: int) -> None:
    """Raise ValueError where tokens cannot be read behind `used` others."""
    if not len(tokens):
        raise ValueError("There are no tokens to read.")
    if used + len(tokens) > length:
        raise ValueError(f"More tokens than the context of {length} holds.")


def _tokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Tokens [n] of text [bytes], without special ones."""
    loaded: LoadedText = sessions[_SESSION]
    return {}, {"tokens": np.array(loaded.tokenize(arrays["text"].tobytes()), np.int32)}


def _detokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Text [bytes] of tokens [n]."""
    loaded: LoadedText = sessions[_SESSION]
    text = loaded.detokenize(_checked(arrays["tokens"], loaded))
    return {}, {"text": np.frombuffer(text, np.uint8)}


def _logits(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Logits [n, vocabulary] after each of the next n tokens; `start` begins a window."""
    loaded: LoadedText = sessions[_SESSION]
    if header["start"]:
        loaded.forget()
    return {}, {"logits": loaded.read(_checked(arrays["tokens"], loaded))}


def _generate(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """The most probable continuation, up to `count` tokens or an end of text."""
    loaded: LoadedText = sessions[_SESSION]
    loaded.forget()
    last = loaded.read_last(_checked(arrays["tokens"], loaded))
    found: list[int] = []
    for _ in range(int(header["count"])):
        token = int(np.argmax(last))
        if loaded.ends(token):
            break
        found.append(token)
        if len(found) < header["count"]:
            last = loaded.read_last(np.array([token], np.int32))
    return {}, {"tokens": np.array(found, np.int32)}


def _time(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Seconds to read the tokens at once, and then to read `count` more one by one.

    Which tokens come next does not matter for the time: the prompt's own are taken, so that
    every file does the same.
    """
    loaded: LoadedText = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    loaded.forget()
    start = time.perf_counter()
    loaded.read_last(tokens)
    between = time.perf_counter()
    for place in range(int(header["count"])):
        at = place % len(tokens)
        loaded.read_last(tokens[at : at + 1])
    end = time.perf_counter()
    return {"prompt_seconds": between - start, "generation_seconds": end - between}, {}


def _checked(tokens: NDArray[Any], loaded: LoadedText) -> Tokens:
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise ValueError("Tokens are a list of 32-bit integers.")
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < loaded.words):
        raise ValueError(f"Tokens lie below the vocabulary's {loaded.words} entries.")
    return np.ascontiguousarray(tokens)
