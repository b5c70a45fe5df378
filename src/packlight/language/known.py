"""Whether something is a language model: asked of every model, so nothing else is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard


def is_language_model(model: object) -> TypeGuard[str | Path]:
    """Whether something is a path to a Hugging Face folder or a GGUF file."""
    if not isinstance(model, str | Path):
        return False
    path = Path(model)
    if path.is_dir():
        return (path / "config.json").exists() or any(path.glob("*.safetensors"))
    return path.suffix.lower() == ".gguf"
