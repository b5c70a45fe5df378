"""transformers in a worker: loads one folder and answers requests about text.

Weights are read from safetensors files only, never from pickles; code that comes with a folder
is never run, and nothing is asked of a network.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Tokens = NDArray[np.int32]

_SESSION = 0  # a worker holds one language model
_BATCH = 512
_LOGITS_BYTES = 64 << 20
"""At most so much of logits leaves the worker at once."""

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[_name] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def version() -> str:
    """The version of transformers that runs here."""
    return importlib.metadata.version("transformers")


@dataclass
class _Model:
    """A loaded folder. ends: tokens that end a text. cache: of the current window, None at its
    beginning; used: how many tokens it holds.
    """

    torch: Any
    model: Any
    tokenizer: Any
    words: int
    length: int
    ends: frozenset[int]
    cache: Any = None
    used: int = 0


def _load(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Open a folder; answers with what is known of it."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(header["threads"]))
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    path = header["path"]
    with _quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        ).eval()
        _decompress(torch, model)
    words = int(model.config.get_text_config().vocab_size)
    if words < 1:
        raise RuntimeError("The folder has no vocabulary.")
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    begun = tokenizer.encode("").ids
    length = int(header["context"])
    positions = max(1, min(_BATCH, length, _LOGITS_BYTES // (4 * words)))
    sessions[_SESSION] = _Model(torch, model, tokenizer, words, length, _ends(model))
    return {
        "vocabulary": words,
        "positions": positions if header["positions"] else 1,
        "trained_context": int(getattr(model.config, "max_position_embeddings", 0) or 0),
        "parameters": int(model.num_parameters()),
        "adds_start": bool(begun),
        "start": int(begun[0]) if begun else -1,
        "texts": {
            "general.architecture": str(model.config.model_type),
            "general.name": Path(path).name,
            "tokenizer.ggml.model": type(tokenizer.model).__name__,
            "tokenizer.ggml.pre": str(tokenizer.get_vocab_size()),
        },
    }, {}


def _tokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Tokens [n] of text [bytes], without special ones."""
    loaded: _Model = sessions[_SESSION]
    text = arrays["text"].tobytes().decode("utf-8", "replace")
    ids = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    return {}, {"tokens": np.array(ids, np.int32)}


def _detokenize(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Text [bytes] of tokens [n]."""
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    text = loaded.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    return {}, {"text": np.frombuffer(text.encode("utf-8", "replace"), np.uint8)}


def _logits(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Logits [n, vocabulary] after each of the next n tokens; `start` begins a window."""
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    if header["start"]:
        _forget(loaded)
    return {}, {"logits": _read(loaded, tokens, every=True)}


def _generate(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """The most probable continuation, up to `count` tokens or an end of text."""
    loaded: _Model = sessions[_SESSION]
    _forget(loaded)
    last = _read(loaded, _checked(arrays["tokens"], loaded), every=False)
    found: list[int] = []
    for _ in range(int(header["count"])):
        token = int(np.argmax(last[-1]))
        if token in loaded.ends:
            break
        found.append(token)
        if len(found) < header["count"]:
            last = _read(loaded, np.array([token], np.int32), every=False)
    return {}, {"tokens": np.array(found, np.int32)}


def _time(sessions: dict[int, Any], header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Seconds to read the tokens at once, and then to read `count` more one by one."""
    loaded: _Model = sessions[_SESSION]
    tokens = _checked(arrays["tokens"], loaded)
    _forget(loaded)
    start = time.perf_counter()
    _read(loaded, tokens, every=False)
    between = time.perf_counter()
    for place in range(int(header["count"])):
        at = place % len(tokens)
        _read(loaded, tokens[at : at + 1], every=False)
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


def _decompress(torch: Any, model: Any) -> None:
    """Decompress the weights now rather than with the first tokens, all to the same 32 bits."""
    if getattr(model, "ct_decompress_hook", None) is None:
        return
    model.hf_quantizer.compressor.decompress_model(model)
    for parameter in model.parameters():  # 4-bit floats come as 16 bits
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _ends(model: Any) -> frozenset[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _checked(tokens: NDArray[Any], loaded: _Model) -> Tokens:
    if tokens.dtype != np.int32 or tokens.ndim != 1 or not len(tokens):
        raise ValueError("Tokens are a list of at least one 32-bit integer.")
    if not (tokens.min() >= 0 and tokens.max() < loaded.words):
        raise ValueError(f"Tokens lie below the vocabulary's {loaded.words} entries.")
    return np.ascontiguousarray(tokens)


def _forget(loaded: _Model) -> None:
    loaded.cache, loaded.used = None, 0


def _read(loaded: _Model, tokens: Tokens, *, every: bool) -> NDArray[np.float32]:
    """Read tokens after those already read; logits of every one, or of the last one only."""
    if loaded.used + len(tokens) > loaded.length:
        raise ValueError(f"More tokens than the context of {loaded.length} holds.")
    torch = loaded.torch
    with torch.inference_mode(), _quiet():
        found = loaded.model(
            input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
            past_key_values=loaded.cache,
            use_cache=True,
            logits_to_keep=0 if every else 1,
        )
    loaded.cache = found.past_key_values
    loaded.used += len(tokens)
    logits: NDArray[np.float32] = found.logits[0].float().numpy()
    return np.ascontiguousarray(logits[:, : loaded.words])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars are nobody's to read, and warnings no last words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
