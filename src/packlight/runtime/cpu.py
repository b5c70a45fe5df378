"""What this machine's processor can do, as far as it decides which kernels are fast."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class CpuFeatures:
    """A processor.

    model: its name. cores: physical cores this process may use.
    vnni: x86 int8 dot products (AVX512-VNNI or AVX-VNNI); without them U8 x S8 saturates.
    amx: int8 tiles. avx2, avx512: vector widths. arm_dot: ARM's int8 dot product.
    """

    model: str
    cores: int
    vnni: bool = False
    amx: bool = False
    avx2: bool = False
    avx512: bool = False
    arm_dot: bool = False


def cpu_features(root: Path = Path("/")) -> CpuFeatures:
    """What the processor under this process can do.

    root: where the file system starts (another folder in tests).
    """
    usable = _usable_processors()
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        name = platform.processor() or platform.machine() or "unknown"
        # All of Apple's 64-bit ARM processors have the dot product.
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        found = CpuFeatures(model=name, cores=len(usable), arm_dot=apple)
    else:
        found = parse_cpuinfo(text, usable)
        if found.model == "unknown":
            found = replace(found, model=platform.machine() or "unknown")
    return replace(found, cores=max(1, min(found.cores, _quota(root))))


def parse_cpuinfo(text: str, usable: Collection[int] | None = None) -> CpuFeatures:
    """The features in the text of /proc/cpuinfo (x86 or ARM).

    usable: numbers of the processors that count; None: all.
    """
    model = "unknown"
    flags: set[str] = set()
    cores: set[tuple[str, str]] = set()
    for block in text.split("\n\n"):
        fields = {
            key.strip().lower(): value.strip()
            for key, colon, value in (line.partition(":") for line in block.splitlines())
            if colon
        }
        model = _name_of(fields) if model == "unknown" else model
        flags |= set((fields.get("flags", "") + " " + fields.get("features", "")).split())
        number = fields.get("processor", "")
        if number.isdigit() and (usable is None or int(number) in usable):
            # Hyperthreads of one core share both ids; where there are none, each is a core.
            own = f"processor {number}"
            cores.add((fields.get("physical id", ""), fields.get("core id", own)))
    return CpuFeatures(
        model=model,
        cores=max(1, len(cores)),
        vnni=bool(flags & {"avx512_vnni", "avx_vnni"}),
        amx="amx_int8" in flags,
        avx2="avx2" in flags,
        avx512="avx512f" in flags,
        arm_dot="asimddp" in flags,
    )


def _name_of(fields: dict[str, str]) -> str:
    # On ARM boards only the last block, "Hardware" or "Model", names anything.
    for key in ("model name", "hardware", "model"):
        value = fields.get(key, "")
        if value and not value.isdigit():
            return value
    return "unknown"


def _usable_processors() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _quota(root: Path) -> int:
    """Processors that the container's quota amounts to, rounded up."""
    try:
        allowed, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(allowed) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return os.cpu_count() or 1
