"""Where healing stands, as a file of plain arrays: an interrupted run goes on from there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.durable import write_whole

Arrays = dict[str, NDArray[Any]]


class Trained(Protocol):
    """Whatever has parameters by name."""

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters, in a fixed order."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """step: those done, of `planned`. best: parameters of least held-out loss.
    now: parameters as they are. moments: the optimizer's, by number of the parameter and name.
    """

    step: int
    planned: int
    best_loss: float
    history: tuple[tuple[int, float], ...]
    best: Arrays
    now: Arrays
    moments: Arrays

    @classmethod
    def of(
        cls,
        step: int,
        planned: int,
        best_loss: float,
        history: tuple[tuple[int, float], ...],
        best: Mapping[str, torch.Tensor],
        module: Trained,
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
        return cls(step, planned, best_loss, history, kept, now, moments)

    def restore(self, module: Trained, optimizer: torch.optim.Optimizer) -> None:
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
        "planned": found.planned,
        "best_loss": found.best_loss,
        "history": [list(pair) for pair in found.history],
    }
    arrays = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    for part in ("best", "now", "moments"):
        arrays |= {f"{part}:{name}": array for name, array in getattr(found, part).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


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
    step, planned, best_loss = int(head["step"]), int(head["planned"]), float(head["best_loss"])
    return Checkpoint(step, planned, best_loss, history, **parts)


def _array(value: Any) -> NDArray[Any]:
    return torch.as_tensor(value).detach().cpu().numpy().copy()
