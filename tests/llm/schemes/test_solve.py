"""What the solvers leave of a layer's output, against nearest rounding and published pruning."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.llm.schemes.rows import RowFormat
from packlight.llm.schemes.solve import global_scale_of, sparsify
from packlight.llm.schemes.table import SCHEMES

WHOLE = global_scale_of(0.25)
CODED = [one.name for one in SCHEMES.values() if one.format]


def draw() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A weight [24, 128], and second moments of inputs that depend on each other."""
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.05, (24, 128)).astype(np.float32)
    mixing = random.normal(0, 1, (128, 128)) * np.exp(random.normal(0, 1, 128))
    inputs = random.normal(0, 1, (600, 40)) @ mixing[:40] + 0.3 * random.normal(0, 1, (600, 128))
    return weight, (inputs.T @ inputs / 600).astype(np.float32)


def lost(weight: NDArray[np.float32], near: NDArray[np.float32], h: NDArray[np.float32]) -> float:
    gap = (weight - near).astype(np.float64)
    return float(np.vdot(gap @ h.astype(np.float64), gap))


@pytest.mark.parametrize("name", CODED)
def test_compensation_beats_rounding_to_nearest(name: str) -> None:
    weight, h = draw()
    rows = RowFormat(SCHEMES[name], 128, "BF16", WHOLE)
    nearest = rows.decode(rows.encode(weight, None))
    found = rows.decode(rows.encode(weight, h))
    assert lost(weight, found, h) < 0.5 * lost(weight, nearest, h)
    assert np.square(weight - nearest).mean() < 0.02 * np.square(weight).mean()


@pytest.mark.parametrize("name", CODED)
def test_scales_are_those_of_the_file(name: str) -> None:
    """What rows stand for while they are rounded is what their tensors stand for."""
    from packlight.llm.schemes.layouts import decode_parts

    weight, h = draw()
    rows = RowFormat(SCHEMES[name], 128, "F16", WHOLE)
    data = rows.encode(weight, h)
    again = decode_parts(SCHEMES[name], rows.parts(data), "F16")
    np.testing.assert_array_equal(rows.decode(data), again)


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_zeros_are_where_the_pattern_says(pattern: str) -> None:
    weight, h = draw()
    errors = []
    for name in (pattern, f"{pattern}-sparsegpt", f"{pattern}-wanda"):
        found = sparsify(SCHEMES[name], weight, h)
        zeros = found == 0
        if pattern == "2:4":
            assert (zeros.reshape(24, 32, 4).sum(axis=2) == 2).all()
        else:
            assert (zeros.sum(axis=1) == 64).all()
        errors.append(lost(weight, found, h))
    assert errors[0] <= errors[1] * 1.001 < errors[2]


@pytest.mark.parametrize("name", ["w4a16", "fp8", "nvfp4", "50%"])
def test_odd_weights_go_through(name: str) -> None:
    weight, h = draw()
    weight[3] = 0
    weight[4, :64] = 0
    h[7], h[:, 7] = 0, 0
    rows = RowFormat(SCHEMES[name], 128, "BF16", WHOLE)
    for moments in (None, h):
        found = rows.decode(rows.encode(weight, moments))
        assert np.isfinite(found).all() and (found[3] == 0).all()
    weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        rows.encode(weight, None)
