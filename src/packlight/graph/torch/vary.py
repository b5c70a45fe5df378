"""Variations of unlabelled samples: the original model says what is right for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

MOST_SHIFT = 8
"""Pictures are shifted by at most an eighth of their width."""


def vary(feeds: Mapping[str, NDArray[Any]], generator: np.random.Generator) -> Feeds:
    """Give other samples like these: pictures mirrored and shifted, numbers mixed.

    A student that imitates its teacher needs no labels, so that any input on which the teacher
    has an answer will do (Beyer et al. 2022, "A good teacher is patient and consistent"). Of
    every batch one half is mixed in pairs, x' = r x + (1 - r) x_other, with r between 0 and 1.
    feeds: float arrays [n, ...] of each input; those of other types are the samples as they are,
    and with any of them nothing is mixed, since what belongs together would be torn apart.
    """
    varied = {name: np.array(array) for name, array in feeds.items()}
    for name, array in varied.items():
        if array.ndim == 4 and array.dtype.kind == "f" and array.shape[1] in (1, 3):
            varied[name] = _move(array, generator)
    floats = all(array.dtype.kind == "f" and array.ndim > 0 for array in varied.values())
    counts = {len(array) for array in varied.values()} if floats else set()
    if len(counts) == 1 and (count := counts.pop()) >= 4:
        half = count // 2
        ratio = generator.uniform(0.0, 1.0, half)
        partner = generator.permutation(count)[:half]
        for name, array in varied.items():
            weight = ratio.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
            mixed = weight * array[:half] + (1 - weight) * array[partner]
            varied[name] = np.concatenate([mixed, array[half:]])
    return varied


def _move(pictures: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Mirror half of the pictures [n, channels, height, width], and shift all; edges repeat."""
    count, _, height, width = pictures.shape
    down, along = (max(size // MOST_SHIFT, 0) for size in (height, width))
    mirrored = generator.random(count) < 0.5
    pictures[mirrored] = pictures[mirrored, :, :, ::-1]
    padded = np.pad(pictures, ((0, 0), (0, 0), (down, down), (along, along)), mode="edge")
    tops = generator.integers(0, 2 * down + 1, count)
    lefts = generator.integers(0, 2 * along + 1, count)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(count), :, tops, lefts])
