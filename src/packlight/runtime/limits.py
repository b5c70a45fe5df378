"""How much memory and time a request to the runtime may take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from packlight.errors import WrongUsage

# What the operating system, this process and its page cache keep for themselves.
SHARE_OF_MACHINE = 0.75


@dataclass(frozen=True)
class Limits:
    """What one child process may take before it is stopped.

    memory_bytes: private memory of the child; None: three quarters of the machine's
        (or of the container's) memory.
    seconds: wall-clock time of a single request; `math.inf` for no limit.
    Raises WrongUsage if either is not positive.
    """

    memory_bytes: int | None = None
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise WrongUsage(f"A memory limit must be positive, not {self.memory_bytes} bytes.")
        if math.isnan(self.seconds) or self.seconds <= 0:
            raise WrongUsage(f"A time limit must be positive, not {self.seconds} seconds.")


def memory_limit_bytes(limits: Limits) -> int:
    """The memory limit in bytes, filled in from the machine where none was given."""
    if limits.memory_bytes is not None:
        return limits.memory_bytes
    return int(SHARE_OF_MACHINE * machine_memory_bytes())


def machine_memory_bytes(root: Path = Path("/")) -> int:
    """Memory this process can hope for in bytes: the machine's, or its container's if smaller.

    root: where the file system starts (another folder in tests).
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / "sys/fs/cgroup" / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        # "max" means no limit, and so do the astronomic numbers of older kernels.
        if text.isdigit() and int(text) > 0:
            total = min(total, int(text))
    return total
