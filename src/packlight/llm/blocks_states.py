"""Hidden states of all windows between two blocks: in memory, or in a file above a limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from packlight.errors import UnusableOutput
from packlight.llm.blocks import Tensor, run_block
from packlight.llm.blocks_wiring import Wiring


@dataclass(frozen=True)
class StatesFile:
    """Where states lie, for another process. shape: [windows, length, width]."""

    path: Path
    shape: tuple[int, int, int]

    def read(self, rows: slice) -> Any:
        """Give the states of some windows, a tensor [n, length, width] of its own."""
        return torch.from_numpy(np.array(self._map("r")[rows]))

    def write(self, rows: slice, states: Any) -> None:
        """Replace the states of some windows."""
        array = self._map("r+")
        array[rows] = states.detach().numpy()
        array.flush()

    def _map(self, mode: Any) -> Any:
        return np.memmap(self.path, np.float32, mode, shape=self.shape)


class States:
    """Hidden states, float32 [windows, length, width], read and written a few windows at a time.

    Above `limit_bytes` they lie in a file in `scratch`, removed at the end, and the system decides
    what of it stays in memory.
    """

    def __init__(
        self,
        windows: int,
        length: int,
        width: int,
        *,
        scratch: Path | None = None,
        limit_bytes: int = 2 << 30,
    ) -> None:
        self.shape = (windows, length, width)
        self._scratch = scratch
        size = windows * length * width * 4
        self._path: Path | None = None
        if scratch is None or size <= limit_bytes:
            self._array: Any = np.zeros(self.shape, np.float32)
            return
        number = 0
        while (path := scratch / f"states-{number}.tmp").exists():
            number += 1
        try:
            with path.open("xb") as file:  # writing beyond a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            self._array = np.memmap(path, np.float32, "r+", shape=self.shape)
        except OSError as full:
            path.unlink(missing_ok=True)
            raise UnusableOutput(
                f"{scratch}: {size:,} bytes of hidden states cannot be kept there "
                f"({full.strerror}): make room, or take fewer or shorter windows"
            ) from full
        self._path = path

    @property
    def spilled(self) -> bool:
        """Whether they lie in a file."""
        return self._path is not None

    @property
    def file(self) -> StatesFile:
        """That file, with all that was written."""
        if self._path is None:
            raise ValueError("these states lie in memory")
        self._array.flush()
        return StatesFile(self._path.resolve(), self.shape)

    def begin_next(self) -> States:
        """States of the same shape in a file of their own, beside these."""
        return States(*self.shape, scratch=self._scratch, limit_bytes=0)

    def replace(self, other: States) -> None:
        """Become the others, which are nobody's any more."""
        self.close()
        self._array, self._path = other._array, other._path
        other._array = other._path = None

    def read(self, rows: slice) -> Any:
        """Give the states of some windows, a tensor [n, length, width] of its own."""
        return torch.from_numpy(np.array(self._array[rows]))

    def write(self, rows: slice, states: Any) -> None:
        """Replace the states of some windows."""
        self._array[rows] = states.detach().numpy()

    def batches(self, tokens: int = 4096) -> Iterator[slice]:
        """Slices of windows with about so many tokens together."""
        windows, length, _ = self.shape
        size = max(tokens // length, 1)
        return (slice(at, min(at + size, windows)) for at in range(0, windows, size))

    def close(self) -> None:
        """Give the memory back, and remove the file."""
        self._array = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> States:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pass_states(
    weights: Mapping[str, Tensor],
    wiring: Wiring,
    layer: int,
    states: States,
    batch_tokens: int = 4096,
) -> None:
    """Replace states by what a block makes of them."""
    with torch.no_grad():
        for rows in states.batches(batch_tokens):
            states.write(rows, run_block(weights, wiring, layer, states.read(rows)))
