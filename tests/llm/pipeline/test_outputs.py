from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from packlight.errors import UnusableOutput
from packlight.llm.calibrate_outputs import SlopeStore, round_in_parts
from packlight.llm.formats import decode, quantize

Floats = NDArray[np.float32]


def correlated(size: int, seed: int, fall: float = 0.05) -> NDArray[np.float64]:
    draw = np.random.default_rng(seed).standard_normal
    rows = draw((400, size)) * np.geomspace(1, fall, size) @ draw((size, size))
    return rows.T @ rows / 400


def loss(slopes: NDArray[np.float64], gap: Floats, moments: NDArray[np.float64]) -> float:
    return float(np.trace(slopes @ gap @ moments @ gap.T))


def whole(rows: Floats) -> NDArray[np.uint8]:
    """A grid that everything can be read off: whole numbers, in a byte."""
    return (np.round(rows) + 128).astype(np.uint8)


def back(data: NDArray[np.uint8]) -> Floats:
    return data.astype(np.float32) - 128


@given(rows=st.integers(1, 40), parts=st.integers(1, 20), seed=st.integers(0, 99))
def test_rows_are_rounded_at_what_is_best_after_those_before(rows: int, parts: int, seed: int):
    """Slow reference: free rows are solved for by least squares, one part at a time."""
    draw = np.random.default_rng(seed)
    weight = (draw.standard_normal((rows, 6)) * 5).astype(np.float32)
    slopes = correlated(rows, seed)
    mean = np.trace(slopes) / rows
    damped = slopes + 0.1 * mean * np.eye(rows)
    data = round_in_parts(weight, slopes.astype(np.float32), whole, back, parts=parts, damping=0.1)
    fixed: list[int] = []
    near = back(data)
    for part in range(min(parts, rows)):
        own = np.arange(part, rows, parts)
        target = weight.astype(np.float64)
        if fixed:
            free = [i for i in range(rows) if i not in fixed]
            error = weight[fixed] - near[fixed]
            # The free rows' best errors, given those that are there, are taken off their weights.
            best = -np.linalg.solve(damped[np.ix_(free, free)], damped[np.ix_(free, fixed)] @ error)
            target[free] = weight[free] - best
        np.testing.assert_array_less(np.abs(target[own] - near[own]), 0.5 + 1e-2)
        fixed += list(own)


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_counts_downstream_is_less_than_row_by_row(kind: str, seed: int):
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((96, 256)).astype(np.float32)
    moments, slopes = correlated(256, seed), correlated(96, seed + 10)

    def encode(rows: Floats) -> NDArray[np.uint8]:
        return quantize(kind, rows, moments)

    plain = weight - decode(kind, encode(weight))
    data = round_in_parts(weight, slopes.astype(np.float32), encode, lambda d: decode(kind, d))
    together = weight - decode(kind, data)
    assert loss(slopes, together, moments) < 0.85 * loss(slopes, plain, moments)


def test_without_gradients_rows_stay_for_themselves():
    weight = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32) * 4
    for slopes in (np.zeros((24, 24)), np.diag(np.arange(1.0, 25.0))):
        data = round_in_parts(weight, slopes.astype(np.float32), whole, back)
        assert np.array_equal(data, whole(weight))


def test_slopes_are_kept_in_files_that_go(tmp_path: Path):
    store = SlopeStore(tmp_path, ".m.slopes-")
    store.add("a", np.eye(3, dtype=np.float32))
    path = store.path("a")
    assert path is not None
    assert np.array_equal(np.load(path), np.eye(3))
    assert store.path("b") is None
    again = SlopeStore(tmp_path, ".m.slopes-")  # what a killed run has left
    assert again.path("a") is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnusableOutput, match="cannot be written"):
        SlopeStore(tmp_path / "none", "x").add("a", np.eye(2, dtype=np.float32))
