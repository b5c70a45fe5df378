"""Which checkpoints can become an ONNX decoder, and for how many positions."""

from __future__ import annotations

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import Checkpoint

ARCHITECTURES = ("llama", "phi3", "qwen2", "qwen3")
"""llama.cpp's names: llama is Mistral and SmolLM too."""

_MULTIPLE = 16
"""Sizes of heads that onnxruntime's attention turns by their positions divide by this."""


def check_decoder(checkpoint: Checkpoint) -> None:
    """Raise UnusableModel for a checkpoint that cannot be written for onnxruntime here."""
    config = checkpoint.config
    if not config.known or config.architecture not in ARCHITECTURES or config.experts:
        raise UnusableModel(
            f"{checkpoint.path} is a model of the type {config.model_type!r}, which cannot be "
            "written for onnxruntime here (Llama, Mistral, SmolLM, Qwen 2 and 3 and Phi-3 can, "
            "without experts): use --target llama.cpp."
        )
    for what, size in (("heads", config.head_width), ("turned parts of heads", config.rope_width)):
        if size % _MULTIPLE:
            raise UnusableModel(
                f"{checkpoint.path} has {what} of {size} numbers, and onnxruntime's attention "
                f"wants a multiple of {_MULTIPLE}: use --target llama.cpp."
            )


def context_of(checkpoint: Checkpoint) -> int:
    """Positions that the decoder knows; with longrope those of its short factors."""
    config = checkpoint.config
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        return min(config.context, scaling.original_context)
    return config.context
