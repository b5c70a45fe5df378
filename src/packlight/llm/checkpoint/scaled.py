"""A checkpoint some of whose tensors are scaled: a view that everything takes for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from packlight.llm.checkpoint.model import Checkpoint


def scale_inputs(
    checkpoint: Checkpoint, factors: Mapping[str, NDArray[np.float32]], note: str
) -> Checkpoint:
    """Give the checkpoint with what each input of a tensor is multiplied by.

    factors: by name, [in], the last axis of the tensor. note: what a user should know.
    """
    parts = dict(checkpoint.parts)
    said = hashlib.sha256(checkpoint.fingerprint.encode())
    for name, by in factors.items():
        if by.shape != checkpoint.tensors[name].shape[-1:]:
            shape = checkpoint.tensors[name].shape
            raise ValueError(f"{name} of shape {list(shape)} cannot be scaled by {list(by.shape)}")
        parts[name] = replace(parts[name], factors=by.astype(np.float32))
        said.update(f" {name}".encode() + by.astype("<f4").tobytes())
    notes = (*checkpoint.notes, note)
    return replace(checkpoint, parts=parts, fingerprint=said.hexdigest(), notes=notes)
