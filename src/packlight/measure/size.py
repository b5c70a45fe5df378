"""How many bytes must be shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packlight.errors import UnusableModel


def size_of_files(paths: Sequence[Path]) -> int:
    """Bytes of all the files that make up a model: itself and its external data.

    A file named twice, also through links, counts once. Raises UnusableModel for a
    file that is not there.
    """
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        if not path.is_file():
            raise UnusableModel(f"{path} belongs to the model but is not a file that is there.")
        found = path.stat()
        sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
