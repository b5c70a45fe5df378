"""onnxruntime in a worker as a language model: holds one decoder and its cache of keys and values.

The decoder's inputs are input_ids, attention_mask and past_key_values.N.key and .value; its
outputs logits, and present.N.key and .value, which stay in onnxruntime from one run to the next.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from packlight.runtime.ort import version
from packlight.runtime.text_engine import (
    BATCH,
    Header,
    Tokens,
    check_room,
    count_positions,
    requests_of,
)

__all__ = ["REQUESTS", "version"]

_MOST_SETTINGS_BYTES = 1 << 20
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


@dataclass
class _Decoder:
    """A loaded decoder. words: of its vocabulary. length: tokens of its context.

    tokenizer: None where there is none. end_tokens: that end a text. caches: name and shape of
    each input of the past, without tokens. past: what they are now, after `used` tokens.
    """

    session: Any
    tokenizer: Any
    words: int
    length: int
    end_tokens: frozenset[int]
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

    def tokenize(self, text: bytes) -> Sequence[int]:
        """Tokens of a text, without special ones."""
        said = text.decode("utf-8", "replace")
        ids: list[int] = self._needed_tokenizer().encode(said, add_special_tokens=False).ids
        return ids

    def detokenize(self, tokens: Tokens) -> bytes:
        """The text of tokens."""
        found: str = self._needed_tokenizer().decode(tokens.tolist(), skip_special_tokens=False)
        return found.encode("utf-8", "replace")

    def read(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [n, vocabulary] after each of the next n tokens."""
        check_room(tokens, self.used, self.length)
        total = self.used + len(tokens)
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        feeds = {
            "input_ids": value(np.ascontiguousarray(tokens[None], np.int64)),
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

    def read_last(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [vocabulary] after the last of the next tokens, some of which are read at once."""
        check_room(tokens, self.used, self.length)
        for begin in range(0, len(tokens), BATCH):
            rows = self.read(tokens[begin : begin + BATCH])
        last: NDArray[np.float32] = rows[-1]
        return last

    def ends(self, token: int) -> bool:
        """Whether a text ends with a token."""
        return token in self.end_tokens

    def _needed_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise RuntimeError(
                "There is no tokenizer.json, or tokenizers is not installed (packlight[llm])."
            )
        return self.tokenizer


def _load(header: Header) -> tuple[_Decoder, Header]:
    """Open a decoder; gives what is known of it, too."""
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
    loaded = _Decoder(session, tokenizer, words, length, _ends(folder), caches)
    return loaded, {
        "vocabulary": words,
        "positions": count_positions(header, words, length),
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
    }


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


REQUESTS = requests_of(_load)
