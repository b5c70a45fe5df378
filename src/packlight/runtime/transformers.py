"""A Hugging Face folder run by transformers, in a child process of its own.

compressed-tensors decompresses the weights there, and activations are rounded as the scheme says:
the predictions are those of the folder, the speed and the memory are not those of vLLM.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from packlight.errors import MissingExtra, RuntimeRefused
from packlight.runtime.text import TextRunner, TextRuntime

_NEEDED = ("torch", "transformers", "compressed_tensors")


class Transformers(TextRunner):
    """transformers with one folder loaded, computing in 32 bits; see `TextRunner`.

    No code of the folder is run, no pickle read and nothing downloaded.
    Raises MissingExtra where transformers, PyTorch or compressed-tensors is not installed.
    """

    engine = "transformers"

    @classmethod
    def find_weights(cls, path: Path) -> Iterable[Path]:
        """The shards of a folder."""
        check_transformers()
        if not (path / "config.json").is_file():
            raise RuntimeRefused(f"There is no folder {path} with a config.json to load.")
        return path.glob("*.safetensors")


def has_transformers() -> bool:
    """Whether all that runs a folder is installed here; nothing of it is imported."""
    return all(importlib.util.find_spec(name) is not None for name in _NEEDED)


def check_transformers() -> None:
    """Raises MissingExtra where transformers, PyTorch or compressed-tensors is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{' and '.join(missing)} is not installed here, so a folder for vLLM cannot be run "
            "and measured: run `pip install packlight[vllm]`."
        )


def transformers_name() -> str:
    """The runtime with its version, for reports; nothing of it is imported."""
    return f"transformers {importlib.metadata.version('transformers')} CPU, 32-bit arithmetic"


TRANSFORMERS = TextRuntime(Transformers, transformers_name, check_transformers)
