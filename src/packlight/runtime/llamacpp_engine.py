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
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.runtime import refusal

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Tokens = NDArray[np.int32]

_SESSION = 0  # a worker holds one language model
_BATCH = 512
_LOGITS_BYTES = 64 << 20
"""At most so much of logits leaves the worker at once."""
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


def _load(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Open a file; answers with what is known of it.

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
    batch = min(_BATCH, length)
    positions = max(1, min(batch, _LOGITS_BYTES // (4 * words))) if header["positions"] else 1
    wanted = C.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = length, batch, batch
    wanted.n_outputs_max = positions
    wanted.n_threads = wanted.n_threads_batch = int(header["threads"])
    wanted.no_perf = True
    context = C.llama_init_from_model(model, wanted)
    if not context:
        raise RuntimeError(_reason("llama.cpp could not make a context for the file", said))
    sessions[_SESSION] = _Model(C, callback, said, model, context, vocabulary, words, length)
    return {
        "vocabulary": words,
        "positions": positions,
        "trained_context": int(C.llama_model_n_ctx_train(model)),
        "parameters": int(C.llama_model_n_params(model)),
        "adds_start": bool(C.llama_vocab_get_add_bos(vocabulary)),
        "start": int(C.llama_vocab_bos(vocabulary)),
        "texts": {name: _metadata(C, model, name) for name in _NAMES},
    }, {}


def _tokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Tokens [n] of text [bytes], without special ones."""
    loaded: _Model = sessions[_SESSION]
    text = arrays["text"].tobytes()
    room = len(text) + 8
    for _ in range(2):
        tokens = (loaded.interface.llama_token * room)()
        count = loaded.interface.llama_tokenize(
            loaded.vocabulary, text, len(text), tokens, room, False, False
        )
        if count >= 0:
            return {}, {"tokens": np.array(tokens[:count], np.int32)}
        room = -count
    raise RuntimeError(_reason("llama.cpp could not tokenize the text", loaded.said))


def _detokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Text [bytes] of tokens [n]."""
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    room = 16 * len(tokens) + 64
    for _ in range(2):
        text = ctypes.create_string_buffer(room)
        pointer = tokens.ctypes.data_as(loaded.interface.llama_token_p)
        count = loaded.interface.llama_detokenize(
            loaded.vocabulary, pointer, len(tokens), text, room, False, False
        )
        if count >= 0:
            return {}, {"text": np.frombuffer(text.raw[:count], np.uint8)}
        room = -count
    raise RuntimeError(_reason("llama.cpp could not turn the tokens into text", loaded.said))


def _logits(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Logits [n, vocabulary] after each of the next n tokens; `start` begins a window."""
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    if header["start"]:
        _forget(loaded)
    _decode(loaded, tokens, every=True)
    pointer = loaded.interface.llama_get_logits(loaded.context)
    if not pointer:
        raise RuntimeError("llama.cpp gave no logits for this file.")
    return {}, {"logits": np.ctypeslib.as_array(pointer, (len(tokens), loaded.words)).copy()}


def _generate(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """The most probable continuation, up to `count` tokens or an end of text."""
    loaded: _Model = sessions[_SESSION]
    _forget(loaded)
    _decode(loaded, _checked(arrays["tokens"], loaded), every=False)
    found: list[int] = []
    for _ in range(int(header["count"])):
        token = int(np.argmax(_last_logits(loaded)))
        if loaded.interface.llama_vocab_is_eog(loaded.vocabulary, token):
            break
        found.append(token)
        if len(found) < header["count"]:
            _decode(loaded, np.array([token], np.int32), every=False)
    return {}, {"tokens": np.array(found, np.int32)}


def _time(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Seconds to read the tokens at once, and then to read `count` more one by one.

    Which tokens come next does not matter for the time: the prompt's own are taken, so that
    every file does the same.
    """
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    _forget(loaded)
    start = time.perf_counter()
    _decode(loaded, tokens, every=False)
    between = time.perf_counter()
    for place in range(int(header["count"])):
        at = place % len(tokens)
        _decode(loaded, tokens[at : at + 1], every=False)
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


def _checked(tokens: NDArray[Any], loaded: _Model) -> Tokens:
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise ValueError("Tokens are a list of 32-bit integers.")
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < loaded.words):
        raise ValueError(f"Tokens lie below the vocabulary's {loaded.words} entries.")
    return np.ascontiguousarray(tokens)


def _forget(loaded: _Model) -> None:
    loaded.interface.llama_memory_clear(loaded.interface.llama_get_memory(loaded.context), True)
    loaded.used = 0


def _decode(loaded: _Model, tokens: Tokens, *, every: bool) -> None:
    """Read tokens after those already read; logits of every one, or of the last one only."""
    if not len(tokens):
        raise ValueError("There are no tokens to read.")
    if loaded.used + len(tokens) > loaded.length:
        raise ValueError(f"More tokens than the context of {loaded.length} holds.")
    batch = loaded.interface.llama_batch_init(_BATCH, 0, 1)
    try:
        for begin in range(0, len(tokens), _BATCH):
            part = tokens[begin : begin + _BATCH]
            batch.n_tokens = len(part)
            ctypes.memmove(batch.token, part.ctypes.data, part.nbytes)
            for place in range(len(part)):
                batch.pos[place] = loaded.used + place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = every or begin + place == len(tokens) - 1
            loaded.said.clear()
            status = loaded.interface.llama_decode(loaded.context, batch)
            if status != 0:
                raise RuntimeError(_reason(f"llama.cpp ended with status {status}", loaded.said))
            loaded.used += len(part)
        loaded.interface.llama_synchronize(loaded.context)
    finally:
        loaded.interface.llama_batch_free(batch)


def _last_logits(loaded: _Model) -> NDArray[np.float32]:
    pointer = loaded.interface.llama_get_logits_ith(loaded.context, -1)
    if not pointer:
        raise RuntimeError("llama.cpp gave no logits for this file.")
    return np.ctypeslib.as_array(pointer, (loaded.words,))


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
