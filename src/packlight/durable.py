"""What a file system needs to keep what was written, and who may read it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether there was no more room for what was to be written."""
    return error.errno in _FULL


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk: renaming alone does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and only its owner may read."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def current_umask() -> int:
    """The permissions that new files do without; temporary ones are made with fewer yet."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
