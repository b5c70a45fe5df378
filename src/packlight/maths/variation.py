"""How much tensors vary from sample to sample: what an error in them is to be held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 8
"""Samples below which the mean of a position says little of it."""

LEAST = 1e-3
"""Share of the variance about one mean that counts at the least: what hardly ever changes is no
reason to keep all else."""


def variations_of(runs: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """Mean square of each float tensor about its mean over the samples, position by position.

        v = mean over k of E[(y_k - E[y_k])^2],    k: the positions of one sample

    runs: tensors by name, [samples, ...]. The scores of a detector's thousands of boxes are
    nearly always [1, 0]: about one mean for all of them they vary a hundred times as much as
    about their own, and a face more or less would not count. About one mean where samples are
    fewer than FEWEST or differ in shape, and at least LEAST of that; never 0.
    """
    sums: dict[str, NDArray[np.float64] | None] = {}
    counts: dict[str, int] = {}
    totals: dict[str, NDArray[np.float64]] = {}  # elements, their sum, sum of squares
    for run in runs:
        for name, array in run.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            wide = np.atleast_1d(array).astype(np.float64)
            found = np.array([wide.size, wide.sum(), np.square(wide).sum()])
            totals[name] = totals.get(name, np.zeros(3)) + found
            counts[name] = counts.get(name, 0) + len(wide)
            added = wide.sum(axis=0)
            held = sums.setdefault(name, np.zeros_like(added))
            same = held is not None and held.shape == added.shape
            sums[name] = held + added if same and held is not None else None
    variations = {}
    for name, (elements, total, squares) in totals.items():
        about_one = squares / elements - (total / elements) ** 2
        held, count = sums[name], counts[name]
        varied = about_one
        if held is not None and count >= FEWEST:
            varied = (squares - float(np.square(held).sum()) / count) / elements
        variations[name] = max(varied, LEAST * about_one, 1e-12)
    return variations
