"""Weights in GGUF's formats: their errors, and that nothing but the input decides the bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.llm.formats import (
    FORMATS,
    decode,
    has_codebooks,
    quantize,
    quantize_with_info,
    row_bytes,
)
from packlight.llm.formats.codebooks import LAYOUTS as WORDS
from packlight.llm.formats.onebit import LAYOUTS as ONE_BIT

LAYOUTS = {**WORDS, **ONE_BIT}

BLOCKED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in LAYOUTS and not has_codebooks(),
            reason="codebooks are read from the gguf package",
        ),
    )
    for name, entry in FORMATS.items()
    if entry.layout is not None
]

# Largest relative squared error of normal weights, near what each reaches.
NORMAL = {
    "Q2_K": 0.095,
    "Q3_K": 0.025,
    "Q4_K": 0.0057,
    "Q5_K": 0.0015,
    "Q6_K": 0.0005,
    "Q8_0": 0.00004,
    "Q4_0": 0.0085,
    "Q4_1": 0.006,
    "Q5_0": 0.0021,
    "Q5_1": 0.0015,
    "IQ4_NL": 0.0062,
    "IQ4_XS": 0.0062,
    "IQ1_S": 0.22,
    "IQ1_M": 0.19,
    "IQ2_XXS": 0.125,
    "IQ2_XS": 0.095,
    "IQ2_S": 0.066,
    "IQ3_XXS": 0.034,
    "IQ3_S": 0.0185,
}


def problem(outputs: int = 12, inputs: int = 512, seed: int = 0) -> tuple[Any, Any]:
    """A weight and second moments of correlated inputs of very different size."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32) * 0.05
    mixing = rng.standard_normal((inputs // 4, inputs)) * np.exp(rng.standard_normal(inputs))
    x = rng.standard_normal((2 * inputs, inputs // 4)) @ mixing
    x += 0.3 * rng.standard_normal(x.shape) * x.std(axis=0)
    return weight, x.T @ x / len(x)


def error(name: str, weight: Any, data: Any, second: Any = None) -> float:
    off = weight.astype(np.float64) - decode(name, data)
    if second is None:
        return float((off**2).sum() / (weight.astype(np.float64) ** 2).sum())
    return float((off @ second * off).sum() / (weight @ second * weight).sum())


@pytest.mark.parametrize("name", BLOCKED)
def test_errors_of_normal_weights(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 1024)).astype(np.float32)
    data = quantize(name, weight)
    assert data.shape == (32, row_bytes(name, 1024)) and data.dtype == np.uint8
    assert error(name, weight, data) < NORMAL[name]


@pytest.mark.parametrize(
    "name",
    [
        *("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q4_0", "Q5_1", "IQ4_XS"),
        *(one for one in BLOCKED if one.values[0] in LAYOUTS),
    ],
)
def test_more_knowledge_is_a_smaller_error(name: str) -> None:
    weight, second = problem()
    free = error(name, weight, quantize(name, weight), second)
    diagonal = error(name, weight, quantize(name, weight, np.diagonal(second)), second)
    found = quantize_with_info(name, weight, second, sweeps=1)
    full = error(name, weight, found.data, second)
    assert diagonal < free
    assert full < 0.5 * diagonal
    assert found.info is not None
    assert found.info.relative_error == pytest.approx(full, rel=1e-3)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "IQ4_XS", "Q5_1"])
def test_a_weight_on_the_grid_comes_back(name: str) -> None:
    """Bytes -> weight -> bytes -> weight: what a format holds it finds again, or nearly."""
    weight = decode(name, quantize(name, problem()[0]))
    assert error(name, weight, quantize(name, weight)) < 0.03 * NORMAL[name]


def test_threads_decide_nothing() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 1024)).astype(np.float32)
    one, two = (quantize("Q4_K", weight, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[:100], quantize("Q4_K", weight[:100]))


@pytest.mark.parametrize("name", BLOCKED)
def test_zeros_constants_and_extremes_are_survived(name: str) -> None:
    weight = np.zeros((6, 512), np.float32)
    weight[1] = 0.25
    weight[2, ::7] = 1e-30
    weight[3] = np.linspace(-1e30, 1e30, 512)  # beyond half precision: the largest it holds
    weight[4] = -3.0
    weight[5, 300] = 1e-3
    for second in (None, np.eye(512)):
        values = decode(name, quantize(name, weight, second))
        assert np.isfinite(values).all()
        assert (values[0] == 0).all()
        np.testing.assert_allclose(values[1], 0.25, rtol=0.02)
        np.testing.assert_allclose(values[4], -3.0, rtol=0.02)


def test_bad_input_is_refused_in_a_sentence() -> None:
    weight = np.ones((4, 256), np.float32)
    with pytest.raises(WrongUsage, match=r"a matrix \[out, in\], not of shape \[256\]"):
        quantize("Q4_K", weight[0])
    with pytest.raises(WrongUsage, match="use Q5_0"):
        quantize("Q4_K", weight[:, :96])
    bad = weight.copy()
    bad[2, 5] = np.nan
    with pytest.raises(UnusableModel, match="NaN or infinity in row 2"):
        quantize("Q4_K", bad)
    with pytest.raises(UnusableSamples, match=r"\[3, 3\] do not fit a layer of 256 inputs"):
        quantize("Q4_K", weight, np.eye(3))
    with pytest.raises(UnusableSamples, match="not finite"):
        quantize("Q4_K", weight, np.full(256, np.inf))
    with pytest.raises(UnusableSamples, match="negative"):
        quantize("Q4_K", weight, -np.ones(256))
