"""A checkpoint some of whose tensors are scaled: a view that everything takes for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from packlight.llm.checkpoint.model import Checkpoint
from packlight.llm.checkpoint.parts import Scales


def scale_tensors(checkpoint: Checkpoint, scales: Mapping[str, Scales], note: str) -> Checkpoint:
    """Give the checkpoint with tensors multiplied by something, by their names.

    note: what a user should know. Raises ValueError for scales of another shape.
    """
    parts = dict(checkpoint.parts)
    said = hashlib.sha256(checkpoint.fingerprint.encode())
    for name, one in scales.items():
        part = parts[name]
        for by, size in ((one.inputs, part.shape[-1]), (one.outputs, part.rows)):
            if by is not None and by.shape != (size,):
                shape = list(part.shape)
                raise ValueError(f"{name} of shape {shape} cannot be scaled by {by.shape}")
            said.update(f" {name}".encode() + (b"" if by is None else by.astype("<f4").tobytes()))
        parts[name] = replace(part, scales=one)
    notes = (*checkpoint.notes, note)
    return replace(checkpoint, parts=parts, fingerprint=said.hexdigest(), notes=notes)
