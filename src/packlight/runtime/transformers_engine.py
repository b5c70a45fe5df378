"""transformers in a worker: loads one folder and answers requests about text.

Weights are read from safetensors files only, never from pickles; code that comes with a folder
is never run, and nothing is asked of a network.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.runtime.text_engine import (
    Header,
    Tokens,
    check_room,
    count_positions,
    requests_of,
)

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[_name] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def version() -> str:
    """The version of transformers that runs here."""
    return importlib.metadata.version("transformers")


@dataclass
class _Model:
    """A loaded folder. end_tokens: that end a text. cache: of the current window, None at its
    beginning; used: how many tokens it holds.
    """

    torch: Any
    model: Any
    tokenizer: Any
    words: int
    length: int
    end_tokens: frozenset[int]
    cache: Any = None
    used: int = 0

    def tokenize(self, text: bytes) -> Sequence[int]:
        """Tokens of a text, without special ones."""
        said = text.decode("utf-8", "replace")
        ids: list[int] = self.tokenizer.encode(said, add_special_tokens=False).ids
        return ids

    def detokenize(self, tokens: Tokens) -> bytes:
        """The text of tokens."""
        text: str = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        return text.encode("utf-8", "replace")

    def forget(self) -> None:
        """Begin a window."""
        self.cache, self.used = None, 0

    def read(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [n, vocabulary] after each of the next n tokens."""
        return self._read(tokens, every=True)

    def read_last(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [vocabulary] after the last of the next tokens."""
        last: NDArray[np.float32] = self._read(tokens, every=False)[-1]
        return last

    def ends(self, token: int) -> bool:
        """Whether a text ends with a token."""
        return token in self.end_tokens

    def _read(self, tokens: Tokens, *, every: bool) -> NDArray[np.float32]:
        check_room(tokens, self.used, self.length)
        with self.torch.inference_mode(), _quiet():
            found = self.model(
                input_ids=self.torch.from_numpy(tokens.astype(np.int64))[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if every else 1,
            )
        self.cache = found.past_key_values
        self.used += len(tokens)
        logits: NDArray[np.float32] = found.logits[0].float().numpy()
        return np.ascontiguousarray(logits[:, : self.words])


def _load(header: Header) -> tuple[_Model, Header]:
    """Open a folder; gives what is known of it, too."""
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
    loaded = _Model(torch, model, tokenizer, words, length, _ends(model))
    return loaded, {
        "vocabulary": words,
        "positions": count_positions(header, words, length),
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
    }


REQUESTS = requests_of(_load)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars are nobody's to read, and warnings no last words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
