"""Where healing stands, as a file of plain arrays: an interrupted run goes on from there."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.durable import sync_folder

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """step: those done. best: parameters of least held-out loss. now: parameters as they are.
    moments: the optimizer's, by number of the parameter and name.
    """

    step: int
    best_loss: float
    history: tuple[tuple[int, float], ...]
    best: Arrays
    now: Arrays
    moments: Arrays

    @classmethod
    def of(
        cls,
        step: int,
        best_loss: float,
        history: tuple[tuple[int, float], ...],
        best: Mapping[str, torch.Tensor],
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> Checkpoint:
        """The state of a training."""
        moments = {
            f"{number}.{name}": _array(value)
            for number, held in optimizer.state_dict()["state"].items()
            for name, value in held.items()
        }
        now = {name: _array(value) for name, value in module.named_parameters()}
        kept = {name: _array(value) for name, value in best.items()}
        return cls(step, best_loss, history, kept, now, moments)

    def restore(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Bring a module and an optimizer of the same parameters to this state."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(self.now[name]))
        content = optimizer.state_dict()
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in self.moments.items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = torch.from_numpy(array)
        optimizer.load_state_dict({**content, "state": state})


def write_checkpoint(path: Path, key: str, found: Checkpoint) -> None:
    """Write a checkpoint; the file appears whole or not at all. key: what it belongs to."""
    head = {
        "key": key,
        "step": found.step,
        "best_loss": found.best_loss,
        "history": [list(pair) for pair in found.history],
    }
    arrays = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    for part in ("best", "now", "moments"):
        arrays |= {f"{part}:{name}": array for name, array in getattr(found, part).items()}
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def read_checkpoint(path: Path, key: str) -> Checkpoint | None:
    """The checkpoint of that key; None where there is none, or it is another's or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            head = json.loads(archive["head"].tobytes())
            if head["key"] != key:
                return None
            parts: dict[str, Arrays] = {"best": {}, "now": {}, "moments": {}}
            for name in archive.files:
                part, colon, rest = name.partition(":")
                if colon:
                    parts[part][rest] = archive[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    history = tuple((int(step), float(loss)) for step, loss in head["history"])
    return Checkpoint(int(head["step"]), float(head["best_loss"]), history, **parts)


def _array(value: Any) -> NDArray[Any]:
    return torch.as_tensor(value).detach().cpu().numpy().copy()
