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
    """Give other samples like these: pictures mirrored and shifted.

    Pictures are float arrays [n, 1 or 3, height, width], or [n, height, width, 1 or 3].

    A student that imitates its teacher needs no labels, so that any input on which the teacher
    has an answer will do. Mixing samples (Beyer et al. 2022) was tried and left out: with little
    time to train it made resnet20 worse. Other arrays are the samples as they are.
    """
    return {name: _varied(array, generator) for name, array in feeds.items()}


def _varied(array: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    if array.ndim != 4 or array.dtype.kind != "f":
        return array
    if array.shape[1] in (1, 3):
        return _move(array, generator)
    if array.shape[3] in (1, 3):
        moved = _move(array.transpose(0, 3, 1, 2), generator)
        return np.ascontiguousarray(moved.transpose(0, 2, 3, 1))
    return array


def _move(pictures: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Mirror half of the pictures [n, channels, height, width], and shift all; edges repeat."""
    pictures = np.array(pictures)
    count, _, height, width = pictures.shape
    down, along = (size // MOST_SHIFT for size in (height, width))
    mirrored = generator.random(count) < 0.5
    pictures[mirrored] = pictures[mirrored, :, :, ::-1]
    padded = np.pad(pictures, ((0, 0), (0, 0), (down, down), (along, along)), mode="edge")
    tops = generator.integers(0, 2 * down + 1, count)
    lefts = generator.integers(0, 2 * along + 1, count)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(count), :, tops, lefts])
