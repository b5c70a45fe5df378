"""Stacked samples to what a model is fed with.

An array with as many axes as its input is a stack of rows: they are fed in batches
if the first axis of every input is free (and all come as rows), otherwise one by one.
An array with one axis more holds a whole feed at each index. A scalar is the same for
every sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Feeds = dict[str, NDArray]


def read_ranks(model: Path) -> dict[str, tuple[int, bool]]:
    """Returns for each input of the file its number of axes, and whether the first is free."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return {
        value.name: (len(value.shape), bool(value.shape) and not isinstance(value.shape[0], int))
        for value in session.get_inputs()
    }


def count_samples(arrays: Mapping[str, NDArray]) -> int:
    """Returns the number of samples: the length of every array that is not a scalar."""
    (count,) = {len(array) for array in arrays.values() if array.ndim}
    return count


def take(arrays: Mapping[str, NDArray], part: slice) -> Feeds:
    """Returns some of the samples; scalars stay."""
    return {name: array[part] if array.ndim else array for name, array in arrays.items()}


def feeds(
    model_ranks: Mapping[str, tuple[int, bool]], arrays: Mapping[str, NDArray], *, batch: int
) -> Iterator[Feeds]:
    """Yields what the model is fed with, up to `batch` rows at a time where it allows that."""
    names = [name for name in model_ranks if name in arrays]
    rows = all(arrays[name].ndim == model_ranks[name][0] and model_ranks[name][1] for name in names)
    step = batch if rows else 1
    for start in range(0, count_samples(arrays), step):
        chosen: Feeds = {}
        for name in names:
            array, rank = arrays[name], model_ranks[name][0]
            if array.ndim == 0 or array.ndim == rank:
                part = array if array.ndim == 0 else array[start : start + step]
            else:
                part = array[start]
            chosen[name] = np.ascontiguousarray(part)
        yield chosen
