"""How much memory files need to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.measure.evidence import Pair
from packlight.runtime import Engine, Limits, measure_peak_memory

_DEFAULT = Limits()


def measure_memory(
    original: Path,
    compressed: Path,
    feeds_original: Mapping[str, NDArray[Any]],
    feeds_compressed: Mapping[str, NDArray[Any]] | None = None,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
    engine: Engine = "onnxruntime",
) -> Pair:
    """Peak resident set in bytes of a fresh process for each file, which loads and runs it.

    feeds_compressed: None where both take the same.
    """
    second = feeds_original if feeds_compressed is None else feeds_compressed
    before, after = (
        measure_peak_memory(path, feeds, threads=threads, limits=limits, engine=engine)
        for path, feeds in ((original, feeds_original), (compressed, second))
    )
    return Pair(original=before, compressed=after)
