"""A folder of files that workers read, on a disk that all of them see; it goes when closed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableOutput


class SharedFolder:
    """A folder of its own within `scratch`. Raises UnusableOutput where there can be none."""

    def __init__(self, prefix: str, scratch: Path | None) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch))
        except OSError as full:
            raise cannot_share(scratch or Path(tempfile.gettempdir()), full) from full
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, suffix: str) -> Path:
        """The name of a file that nobody else gets."""
        self._files += 1
        return self.path / f"{self._files}{suffix}"

    def store(self, array: NDArray[Any]) -> Path:
        """An array in a file of its own, which is never written again. Raises UnusableOutput."""
        path = self.file(".npy")
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as full:
            raise cannot_share(self.path, full) from full
        return path

    def close(self) -> None:
        """Remove all."""
        shutil.rmtree(self.path, ignore_errors=True)


def cannot_share(folder: Path, error: OSError) -> UnusableOutput:
    """What is said of a folder that workers cannot use."""
    return UnusableOutput(
        f"{folder}: what workers share cannot be kept there ({error.strerror}): it must lie on a "
        "disk that all of them see, with room for it; put the output elsewhere, or leave --workers "
        "out"
    )
