"""How much memory files need to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.measure.evidence import Pair
from packlight.runtime import Limits, measure_peak_memory

_DEFAULT = Limits()


def measure_memory(
    original: Path,
    compressed: Path,
    feeds_original: Mapping[str, NDArray[Any]],
    feeds_compressed: Mapping[str, NDArray[Any]] | None = None,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
) -> Pair:
    """Peak resident set in bytes of a fresh process for each file, which loads and runs it.

    feeds_compressed: None where both take the same.
    """
    second = feeds_original if feeds_compressed is None else feeds_compressed
    return Pair(
        original=measure_peak_memory(original, feeds_original, threads=threads, limits=limits),
        compressed=measure_peak_memory(compressed, second, threads=threads, limits=limits),
    )
