"""What depth pruning has found out, in two files: a killed run goes on with them.

The refitted tensors lie one behind the other in 32 bits, and beside them it is said which is where
and which blocks went, once they are whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.durable import write_whole
from packlight.errors import UnusableOutput
from packlight.llm.storage import Stored

TENSORS, SAID = "refitted.bin", "depth.json"
_MOST_BYTES = 1 << 24
_PIECE = 1 << 22


@dataclass(frozen=True)
class DepthForecast:
    """What choosing blocks takes. passes: through one block, of each of `tokens`. measured: whether
    by divergence; else by influence. seconds: rough, of a machine with two cores.
    """

    passes: int
    tokens: int
    measured: bool
    seconds: float


@dataclass(frozen=True)
class RemovedBlock:
    """A block that went. number: in the original. influence: 1 - mean cosine of the stream before
    and behind it. kl: divergence to the original in nats a token, without it and those that went
    before it. None: not measured, as where a recipe said which.
    """

    number: int
    influence: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Plan:
    """removed: in their order. tensors: by name, where those lie that stand in for their like.
    digest: of the bytes of these.
    """

    removed: tuple[RemovedBlock, ...]
    tensors: Mapping[str, Stored]
    digest: str


def write_tensors(
    folder: Path,
    removed: tuple[RemovedBlock, ...],
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
) -> Plan:
    """Write tensors as they come. Raises UnusableOutput."""
    path, shapes = folder / TENSORS, {}
    with _told_apart(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for name, tensor in tensors:
                shapes[name] = tensor.shape
                file.write(np.ascontiguousarray(tensor, "<f4").data)
            file.flush()
            os.fsync(file.fileno())
        return Plan(removed, _place(path, shapes), _digest(path))


def keep_plan(folder: Path, key: str, plan: Plan) -> None:
    """Keep a plan whose tensors are written. key: stands for all that it depends on.

    Raises UnusableOutput.
    """
    said = {
        "key": key,
        "removed": [asdict(one) for one in plan.removed],
        "shapes": {name: list(one.shape) for name, one in plan.tensors.items()},
        "digest": plan.digest,
    }
    with _told_apart(folder):
        write_whole(folder / SAID, json.dumps(said).encode())


@contextlib.contextmanager
def _told_apart(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as broken:
        raise UnusableOutput(
            f"{folder} cannot be written ({broken.strerror}): check that it may be written to and "
            "has space left, and start again."
        ) from broken


def read_plan(folder: Path, key: str) -> Plan | None:
    """The plan of an earlier run with the same key, where it is whole."""
    try:
        if (folder / SAID).stat().st_size > _MOST_BYTES:
            return None
        said: Any = json.loads((folder / SAID).read_bytes())
        if said["key"] != key or said["digest"] != _digest(folder / TENSORS):
            return None
        removed = tuple(RemovedBlock(**one) for one in said["removed"])
        return Plan(removed, _place(folder / TENSORS, said["shapes"]), said["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _place(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Stored]:
    found, offset = {}, 0
    for name, shape in shapes.items():
        found[name] = Stored(name, path, "F32", tuple(shape), offset)
        offset += 4 * prod(shape)
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
