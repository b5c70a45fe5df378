"""What a file system needs to keep what was written, and who may read it."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk: renaming alone does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    """The permissions that new files do without; temporary ones are made with fewer yet."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
