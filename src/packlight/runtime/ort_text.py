"""onnxruntime in a worker as a language model: holds one decoder and its cache of keys and values.

The decoder's inputs are input_ids, attention_mask and past_key_values.N.key and .value; its
outputs logits, and present.N.key and .value, which stay in onnxruntime from one run to the next.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from packlight.runtime.ort import version

__all__ = ["REQUESTS", "version"]

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Tokens = NDArray[np.int64]

_SESSION = 0  # a worker holds one language model
_BATCH = 512
_LOGITS_BYTES = 64 << 20
"""At most so much of logits leaves the worker at once."""
_MOST_SETTINGS_BYTES = 1 << 20
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


@dataclass
class _Decoder:
    """A loaded decoder. words: of its vocabulary. length: tokens of its context.

    tokenizer: None where there is none. ends: tokens that end a text. caches: name and shape of
    each input of the past, without tokens. past: what they are now, after `used` tokens.
    """

    session: Any
    tokenizer: Any
    words: int
    length: int
    ends: frozenset[int]
    caches: dict[str, tuple[int, ...]]
    past: dict[str, Any] = field(default_factory=dict)
    used: int = 0

    def forget(self) -> None:
        """Begin anew."""
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.past = {
            name: value(np.zeros(shape, np.float32)) for name, shape in self.caches.items()
        }
        self.used = 0

    def read(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [n, vocabulary] after each of the next n tokens."""
        if not len(tokens):
            raise ValueError("There are no tokens to read.")
        total = self.used + len(tokens)
        if total > self.length:
            raise ValueError(f"More tokens than the context of {self.length} holds.")
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        feeds = {
            "input_ids": value(np.ascontiguousarray(tokens[None])),
            "attention_mask": value(np.ones((1, total), np.int64)),
            **self.past,
        }
        names = [name.replace("past_key_values", "present") for name in self.past]
        logits, *present = self.session.run_with_ort_values(["logits", *names], feeds)
        self.past = dict(zip(self.past, present, strict=True))
        self.used = total
        found = logits.numpy()
        if found.shape != (1, len(tokens), self.words):
            raise RuntimeError(f"The file gives logits of shape {list(found.shape)}.")
        rows: NDArray[np.float32] = found[0]
        return rows

    def read_prompt(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [vocabulary] after the last of some tokens, from an empty cache."""
        self.forget()
        for begin in range(0, len(tokens), _BATCH):
            rows = self.read(tokens[begin : begin + _BATCH])
        last: NDArray[np.float32] = rows[-1]
        return last


def _load(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Open a decoder; answers with what is known of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(header["threads"]), 1
    options.log_severity_level = 4
    if not header["spinning"]:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    folder = Path(header["path"])
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    caches: dict[str, tuple[int, ...]] = {
        str(one.name): (1, int(one.shape[1]), 0, int(one.shape[3]))
        for one in session.get_inputs()
        if _PAST.fullmatch(one.name)
    }
    shapes = {one.name: one.shape for one in session.get_outputs()}
    if not caches or "logits" not in shapes:
        raise RuntimeError("The file is no decoder with a cache of keys and values.")
    words, length = int(shapes["logits"][-1]), int(header["context"])
    tokenizer = _tokenizer(folder)
    begun = tokenizer.encode("").ids if tokenizer is not None else []
    sessions[_SESSION] = _Decoder(session, tokenizer, words, length, _ends(folder), caches)
    batch = min(_BATCH, length)
    positions = max(1, min(batch, _LOGITS_BYTES // (4 * words))) if header["positions"] else 1
    return {
        "vocabulary": words,
        "positions": positions,
        "trained_context": 0,
        "parameters": 0,
        "adds_start": bool(begun),
        "start": int(begun[0]) if begun else -1,
        "texts": {
            "general.architecture": "",
            "general.name": folder.name,
            "tokenizer.ggml.model": type(tokenizer.model).__name__ if tokenizer else "",
            "tokenizer.ggml.pre": "",
        },
    }, {}


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, where there is one and the library that reads it."""
    path = folder / "tokenizer.json"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        return None
    return library.Tokenizer.from_file(str(path)) if path.is_file() else None


def _ends(folder: Path) -> frozenset[int]:
    """The tokens that end a text."""
    path = folder / "genai_config.json"
    if not path.is_file() or path.stat().st_size > _MOST_SETTINGS_BYTES:
        return frozenset()
    found = json.loads(path.read_bytes())["model"]["eos_token_id"]
    return frozenset(int(one) for one in (found if isinstance(found, list) else [found]))


def _tokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Tokens [n] of text [bytes], without special ones."""
    text = arrays["text"].tobytes().decode("utf-8", "replace")
    ids = _words(sessions).encode(text, add_special_tokens=False).ids
    return {}, {"tokens": np.array(ids, np.int32)}


def _detokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Text [bytes] of tokens [n]."""
    text = _words(sessions).decode(arrays["tokens"].tolist(), skip_special_tokens=False)
    return {}, {"text": np.frombuffer(text.encode("utf-8", "replace"), np.uint8)}


def _words(sessions: dict[int, Any]) -> Any:
    decoder: _Decoder = sessions[_SESSION]
    if decoder.tokenizer is None:
        raise RuntimeError(
            "There is no tokenizer.json, or tokenizers is not installed (packlight[llm])."
        )
    return decoder.tokenizer


def _logits(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Logits [n, vocabulary] after each of the next n tokens; `start` begins a window."""
    decoder: _Decoder = sessions[_SESSION]
    if header["start"]:
        decoder.forget()
    return {}, {"logits": decoder.read(_checked(arrays["tokens"], decoder))}


def _generate(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """The most probable continuation, up to `count` tokens or an end of text."""
    decoder: _Decoder = sessions[_SESSION]
    last = decoder.read_prompt(_checked(arrays["tokens"], decoder))
    found: list[int] = []
    for _ in range(int(header["count"])):
        token = int(np.argmax(last))
        if token in decoder.ends:
            break
        found.append(token)
        if len(found) < header["count"]:
            last = decoder.read(np.array([token], np.int64))[-1]
    return {}, {"tokens": np.array(found, np.int32)}


def _time(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Seconds to read the tokens at once, and then to read `count` more one by one.

    Which tokens come next does not matter for the time: the prompt's own are taken, so that
    every file does the same.
    """
    decoder: _Decoder = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], decoder)
    start = time.perf_counter()
    decoder.read_prompt(tokens)
    between = time.perf_counter()
    for place in range(int(header["count"])):
        at = place % len(tokens)
        decoder.read(tokens[at : at + 1])
    end = time.perf_counter()
    return {"prompt_seconds": between - start, "generation_seconds": end - between}, {}


REQUESTS: dict[str, Callable[[dict[int, Any], Header, Arrays], tuple[Header, Arrays]]] = {
    "load_text_model": _load,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
    "logits": _logits,
    "generate": _generate,
    "time_text": _time,
}


def _checked(tokens: NDArray[Any], decoder: _Decoder) -> Tokens:
    if tokens.dtype != np.int32 or tokens.ndim != 1 or not len(tokens):
        raise ValueError("Tokens are a list of 32-bit integers.")
    if not (tokens.min() >= 0 and tokens.max() < decoder.words):
        raise ValueError(f"Tokens lie below the vocabulary's {decoder.words} entries.")
    return tokens.astype(np.int64)
