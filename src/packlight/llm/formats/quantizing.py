"""A weight in a format of GGUF: data-free, by each input's importance, or in full."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.llm.blas import one_blas_thread
from packlight.llm.formats.bits import Bytes, Numbers
from packlight.llm.formats.table import encode, encode_plain, format_of, row_bytes
from packlight.maths.superblock_layer import SuperBlockInfo, solve_super_blocks
from packlight.maths.superblock_search import search_super_blocks

CHUNK = 1 << 17
"""Weights that are searched at a time: half a megabyte an array stays in the cache."""

THREADS = 4
"""At most; memory traffic leaves little for more."""


@dataclass(frozen=True)
class Quantized:
    """Bytes [out, row_bytes], and how the solver did, if it had full second moments."""

    data: Bytes
    info: SuperBlockInfo | None = None


def quantize(
    name: str,
    weight: NDArray[np.float32],
    second_moments: Numbers | None = None,
    *,
    damping: float = 0.01,
    threads: int | None = None,
) -> Bytes:
    """Give the bytes [out, row_bytes] of a weight [out, in] in a format.

    second_moments: None, and the squared error of the weight is minimised, which is fast; [in]
    or [in, in], as in `quantize_with_info`. The bytes depend on no number of threads.
    """
    return quantize_with_info(name, weight, second_moments, damping=damping, threads=threads).data


def quantize_with_info(
    name: str,
    weight: NDArray[np.float32],
    second_moments: Numbers | None = None,
    *,
    damping: float = 0.01,
    sweeps: int = 6,
    starts: int = 1,
    threads: int | None = None,
) -> Quantized:
    """Give the bytes of a weight [out, in], and how it went.

    second_moments: E[x x^T] [in, in] of what reaches the layer: tr((W - V) H (W - V)^T) is
    minimised by compensation and descent (`solve_super_blocks`). Or its diagonal [in]: each
    input's squared error has that weight. Plain formats (F32, F16, BF16) have no use for them.
    damping: share of H's mean diagonal that compensation adds, raised where it must be, which
    the info says. sweeps, starts: as there; a second start takes as long again for an error
    2 to 4 % lower.
    Raises WrongUsage for a weight of another rank or a width the format does not fit,
    UnusableModel for a weight that is not finite, UnusableSamples for second moments that do not
    fit it.
    """
    chosen = format_of(name)
    if weight.ndim != 2:
        raise WrongUsage(f"a weight is a matrix [out, in], not of shape {list(weight.shape)}")
    outputs, inputs = weight.shape
    width = row_bytes(name, inputs)
    if chosen.layout is None:
        return Quantized(encode_plain(name, weight))
    _check_finite(weight)
    if second_moments is not None:
        _check_moments(second_moments, inputs)
    grid = chosen.layout.grid
    threads = threads or min(os.cpu_count() or 1, THREADS)
    if second_moments is not None and second_moments.ndim == 2:
        with one_blas_thread():
            blocks, info = solve_super_blocks(
                weight,
                second_moments,
                grid,
                damping=damping,
                sweeps=sweeps,
                starts=starts,
                threads=threads,
            )
        return Quantized(encode(name, blocks), info)
    data = np.empty((outputs, width), np.uint8)
    rows = max(CHUNK // inputs, 1)

    def work(start: int) -> None:
        some = slice(start, start + rows)
        found = search_super_blocks(weight[some], second_moments, grid)
        data[some] = encode(name, found)

    starts_of_rows = range(0, outputs, rows)
    if threads == 1:
        for start in starts_of_rows:
            work(start)
        return Quantized(data)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, starts_of_rows):
            pass
    return Quantized(data)


def _check_finite(weight: NDArray[np.float32]) -> None:
    for start in range(0, len(weight), 256):
        if not np.isfinite(weight[start : start + 256]).all():
            row = start + int(np.argmin(np.isfinite(weight[start : start + 256]).all(axis=1)))
            raise UnusableModel(
                f"the weight has NaN or infinity in row {row}: no block format can hold them; "
                "convert the model again from its source"
            )


def _check_moments(second_moments: Numbers, inputs: int) -> None:
    if second_moments.shape not in ((inputs,), (inputs, inputs)):
        raise UnusableSamples(
            f"second moments of shape {list(second_moments.shape)} do not fit a layer of "
            f"{inputs} inputs: give [{inputs}] or [{inputs}, {inputs}]"
        )
    for start in range(0, len(second_moments), 256):
        if not np.isfinite(second_moments[start : start + 256]).all():
            raise UnusableSamples(
                "the second moments are not finite: look for NaN in what the calibration text "
                "made of the layer's inputs"
            )
    diagonal = second_moments if second_moments.ndim == 1 else np.diagonal(second_moments)
    if (diagonal < 0).any():
        raise UnusableSamples(
            "the second moments of some inputs are negative, which no average of squares is"
        )
