"""Checkpoints as one thing: a Hugging Face folder or a GGUF file, checked, tensor by tensor."""

from packlight.llm.checkpoint.config import ModelConfig, RopeScaling
from packlight.llm.checkpoint.model import Checkpoint, TensorInfo
from packlight.llm.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "ModelConfig", "RopeScaling", "TensorInfo", "open_checkpoint"]
