"""llama.cpp in a worker: loads one GGUF file and answers requests about text.

The low-level interface of llama-cpp-python is used, which is llama.cpp's own. Everything
runs on the processor, weights are mapped from the file, and what llama.cpp logs is kept
only to be told when it refuses something.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.runtime import refusal
from packlight.runtime.text_engine import (
    BATCH,
    Header,
    Tokens,
    check_room,
    count_positions,
    requests_of,
)

_ERROR = 4  # in ggml's numbers of how bad a message is
# "llama_model_load: error loading model: " is for llama.cpp's makers.
_PLACE = re.compile(r"^(?:\w+: |error loading model: )+")
_KEPT_LINES = 30
_NAMES = ("general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre")

# On an abort llama.cpp would print a backtrace, which hides its last words.
os.environ["GGML_NO_BACKTRACE"] = "1"


def _import_interface(*, spinning: bool) -> Any:
    """llama.cpp's functions, without what llama-cpp-python builds on top of them.

    Its package's own `__init__` leads to templates, caches and a server: memory that has
    nothing to do with running a file. spinning: see `_load`.
    """
    if not spinning:
        os.environ["OMP_WAIT_POLICY"] = "passive"  # read once, as the library is loaded
    if "llama_cpp" not in sys.modules:
        found = importlib.util.find_spec("llama_cpp")
        if found is None:
            raise RuntimeError("llama-cpp-python is not installed.")
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(found)
    return importlib.import_module("llama_cpp.llama_cpp")


def _listen_to(interface: Any) -> tuple[Any, deque[str]]:
    """Keep the last errors instead of printing all: the callback, and where."""
    said: deque[str] = deque(maxlen=_KEPT_LINES)

    def listen(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            said.append(text.decode("utf-8", "replace").strip())

    callback = interface.llama_log_callback(listen)
    interface.llama_log_set(callback, ctypes.c_void_p(0))
    return callback, said


def version() -> str:
    """The version of llama-cpp-python that runs here."""
    return importlib.metadata.version("llama-cpp-python")


@dataclass
class _Model:
    """A loaded file. interface: llama.cpp's functions. said: its last errors.

    callback: what it says them to, which must live as long as it does.
    used: tokens that the cache holds of the current window.
    """

    interface: Any
    callback: Any
    said: deque[str]
    model: Any
    context: Any
    vocabulary: Any
    words: int
    length: int
    used: int = 0

    def tokenize(self, text: bytes) -> Sequence[int]:
        """Tokens of a text, without special ones."""
        room = len(text) + 8
        for _ in range(2):
            tokens = (self.interface.llama_token * room)()
            count = self.interface.llama_tokenize(
                self.vocabulary, text, len(text), tokens, room, False, False
            )
            if count >= 0:
                found: list[int] = tokens[:count]
                return found
            room = -count
        raise RuntimeError(_reason("llama.cpp could not tokenize the text", self.said))

    def detokenize(self, tokens: Tokens) -> bytes:
        """The text of tokens."""
        room = 16 * len(tokens) + 64
        for _ in range(2):
            text = ctypes.create_string_buffer(room)
            pointer = tokens.ctypes.data_as(self.interface.llama_token_p)
            count = self.interface.llama_detokenize(
                self.vocabulary, pointer, len(tokens), text, room, False, False
            )
            if count >= 0:
                return text.raw[:count]
            room = -count
        raise RuntimeError(_reason("llama.cpp could not turn the tokens into text", self.said))

    def forget(self) -> None:
        """Begin a window."""
        self.interface.llama_memory_clear(self.interface.llama_get_memory(self.context), True)
        self.used = 0

    def read(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [n, vocabulary] after each of the next n tokens."""
        self._decode(tokens, every=True)
        pointer = self.interface.llama_get_logits(self.context)
        return self._array(pointer, (len(tokens), self.words)).copy()

    def read_last(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [vocabulary] after the last of the next tokens, until more are read."""
        self._decode(tokens, every=False)
        return self._array(self.interface.llama_get_logits_ith(self.context, -1), (self.words,))

    def ends(self, token: int) -> bool:
        """Whether a text ends with a token."""
        return bool(self.interface.llama_vocab_is_eog(self.vocabulary, token))

    def _decode(self, tokens: Tokens, *, every: bool) -> None:
        """Read tokens after those already read; logits of every one, or of the last one only."""
        check_room(tokens, self.used, self.length)
        batch = self.interface.llama_batch_init(BATCH, 0, 1)
        try:
            for begin in range(0, len(tokens), BATCH):
                part = tokens[begin : begin + BATCH]
                batch.n_tokens = len(part)
                ctypes.memmove(batch.token, part.ctypes.data, part.nbytes)
                for place in range(len(part)):
                    batch.pos[place] = self.used + place
                    batch.n_seq_id[place] = 1
                    batch.seq_id[place][0] = 0
                    batch.logits[place] = every or begin + place == len(tokens) - 1
                self.said.clear()
                status = self.interface.llama_decode(self.context, batch)
                if status != 0:
                    raise RuntimeError(_reason(f"llama.cpp ended with status {status}", self.said))
                self.used += len(part)
            self.interface.llama_synchronize(self.context)
        finally:
            self.interface.llama_batch_free(batch)

    @staticmethod
    def _array(pointer: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if not pointer:
            raise RuntimeError("llama.cpp gave no logits for this file.")
        return np.ctypeslib.as_array(pointer, shape)


def _load(header: Header) -> tuple[_Model, Header]:
    """Open a file; gives what is known of it, too.

    spinning: threads wait busily for each other, as is llama.cpp's default and speed needs;
    False leaves the cores to others, and is many times faster where they are busy.
    """
    C = _import_interface(spinning=header["spinning"])
    callback, said = _listen_to(C)
    C.llama_backend_init()
    settings = C.llama_model_default_params()
    settings.n_gpu_layers = 0
    settings.load_mode = C.LLAMA_LOAD_MODE_MMAP
    model = C.llama_model_load_from_file(os.fsencode(header["path"]), settings)
    if not model:
        raise RuntimeError(_reason("llama.cpp could not load the file", said))
    vocabulary = C.llama_model_get_vocab(model)
    words = int(C.llama_vocab_n_tokens(vocabulary))
    if words < 1:
        raise RuntimeError("The file has no vocabulary.")
    length = int(header["context"])
    batch = min(BATCH, length)
    positions = count_positions(header, words, length)
    wanted = C.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = length, batch, batch
    wanted.n_outputs_max = positions
    wanted.n_threads = wanted.n_threads_batch = int(header["threads"])
    wanted.no_perf = True
    context = C.llama_init_from_model(model, wanted)
    if not context:
        raise RuntimeError(_reason("llama.cpp could not make a context for the file", said))
    loaded = _Model(C, callback, said, model, context, vocabulary, words, length)
    return loaded, {
        "vocabulary": words,
        "positions": positions,
        "trained_context": int(C.llama_model_n_ctx_train(model)),
        "parameters": int(C.llama_model_n_params(model)),
        "adds_start": bool(C.llama_vocab_get_add_bos(vocabulary)),
        "start": int(C.llama_vocab_bos(vocabulary)),
        "texts": {name: _metadata(C, model, name) for name in _NAMES},
    }


REQUESTS = requests_of(_load)


def _metadata(C: Any, model: Any, name: str) -> str:
    text = ctypes.create_string_buffer(256)
    with contextlib.suppress(UnicodeError):
        if C.llama_model_meta_val_str(model, name.encode("ascii"), text, len(text)) >= 0:
            return text.value.decode("utf-8", "replace")
    return ""


def _reason(what: str, said: deque[str]) -> str:
    """What was not possible, with the first thing that llama.cpp said of it.

    What it says later only tells where the first led to; but lack of memory is told apart.
    """
    lines = [_PLACE.sub("", line) for line in said]
    lines = [line for line in lines if line]
    told = next(filter(refusal.speaks_of_memory, lines), lines[0] if lines else "")
    return f"{what}: {told}." if told else f"{what}, without saying why."
