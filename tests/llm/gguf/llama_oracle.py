"""llama.cpp on files, in a process of its own: what it reads out of what we wrote."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

_PROGRAM = r"""
import ctypes, json, sys
import numpy as np
import llama_cpp as L


def load(path, vocab_only):
    mp = L.llama_model_default_params()
    mp.n_gpu_layers, mp.use_mmap, mp.vocab_only = 0, False, vocab_only
    model = L.llama_model_load_from_file(path.encode(), mp)
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    return model


def tokens_of(model, text):
    text = text.encode()
    room = (ctypes.c_int32 * (2 * len(text) + 16))()
    vocab = L.llama_model_get_vocab(model)
    n = L.llama_tokenize(vocab, text, len(text), room, len(room), True, True)
    return np.array(room[:n], np.int64)


def logits_of(model, tokens):
    cp = L.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_threads = 256, 256, 256, 1
    cp.n_threads_batch, cp.flash_attn_type = 1, 0
    cp.type_k = cp.type_v = 0  # the cache in F32 too
    context = L.llama_init_from_model(model, cp)
    batch = L.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    if L.llama_decode(context, batch):
        sys.exit("llama.cpp does not run it")
    n = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    return np.array([np.ctypeslib.as_array(L.llama_get_logits_ith(context, i), (n,)).copy()
                     for i in range(len(tokens))])


L.llama_backend_init()
for path, job in json.load(sys.stdin):
    print(path, file=sys.stderr, flush=True)
    model = load(path, isinstance(job, str))
    found = tokens_of(model, job) if isinstance(job, str) else logits_of(model, job)
    np.save(path + ".npy", found)
"""


def run_llama(path: Path, job: list[int] | str) -> NDArray[Any]:
    """Logits [tokens, vocabulary] of tokens, or the tokens of a text."""
    return run_llama_on([(path, job)])[0]


def run_llama_on(jobs: list[tuple[Path, list[int] | str]]) -> list[NDArray[Any]]:
    """The same for many files, in one process."""
    if importlib.util.find_spec("llama_cpp") is None:  # found, not loaded into this process
        pytest.skip("llama.cpp's Python package (llama-cpp-python) is not installed")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([(str(path), job) for path, job in jobs]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [np.load(f"{path}.npy") for path, _ in jobs]
