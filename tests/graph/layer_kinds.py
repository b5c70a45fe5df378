"""One small graph for each kind of layer: text, weights, and what to feed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.recipe import CHOICES

RANDOM = np.random.default_rng(31)

_LIKE_OTHERS = {f"weights-shared{bits}" for bits in (3, 5, 6, 7)}
_LIKE_OTHERS |= {f"weights-coded{bits:g}" for bits in (0.5, 1, 1.5, 2.5, 3, 4)}

WORDS = tuple(word for word in CHOICES if word not in _LIKE_OTHERS)
"""Every choice, of the families that differ in a number only some."""

STORING = tuple(
    word for word in WORDS if word.startswith("weights-") and not word.endswith("blocks")
)
"""Those that are decoded when the file is loaded."""


def normal(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


IDS = RANDOM.integers(0, 40, (4, 3))
STORED: dict[str, tuple[str, dict[str, Any], dict[str, NDArray[Any]]]] = {
    "conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = Conv <group = 2> (x, w, b) }",
        {"w": normal(6, 2, 3, 3), "b": normal(6)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "transposed conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = ConvTranspose(x, w, b) }",
        {"w": normal(4, 6, 3, 3), "b": normal(6)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "grouped transposed conv": (
        "g (float[n,4,8,8] x) => (float[n,6,k,l] y) { y = ConvTranspose <group = 2> (x, w) }",
        {"w": normal(4, 3, 5, 5) * np.array([1, 1, 9, 9], np.float32).reshape(4, 1, 1, 1)},
        {"x": normal(4, 4, 8, 8)},
    ),
    "depthwise transposed conv": (
        "g (float[n,4,8] x) => (float[n,4,k] y) { y = ConvTranspose <group = 4> (x, w) }",
        {"w": normal(4, 1, 5)},
        {"x": normal(4, 4, 8)},
    ),
    "gemm": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <alpha = 0.25, beta = 2.0> (x, w, b) }",
        {"w": normal(24, 7), "b": normal(7)},
        {"x": normal(4, 24)},
    ),
    "gemm, transposed": (
        "g (float[n,24] x) => (float[n,7] y) { y = Gemm <transB = 1, alpha = 3.0> (x, w) }",
        {"w": normal(7, 24)},
        {"x": normal(4, 24)},
    ),
    "matmul": (
        "g (float[n,5,24] x) => (float[n,5,7] y) { y = MatMul(x, w) }",
        {"w": normal(24, 7)},
        {"x": normal(4, 5, 24)},
    ),
    "gather": (
        "g (int64[n,s] x) => (float[n,s,8] y) { y = Gather(w, x) }",
        {"w": normal(40, 8) * np.geomspace(0.01, 10, 40, dtype=np.float32)[:, None]},
        {"x": IDS},
    ),
    "lstm": (
        """g (float[s,n,6] x) => (float[s,2,n,5] y) {
            y = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r, b) }""",
        {"w": normal(2, 20, 6), "r": normal(2, 20, 5), "b": normal(2, 40)},
        {"x": normal(7, 3, 6)},
    ),
    "gru": (
        """g (float[s,n,6] x) => (float[s,1,n,5] y, float[1,n,5] h) {
            y, h = GRU <hidden_size = 5, linear_before_reset = 1> (x, w, r, b) }""",
        {"w": normal(1, 15, 6), "r": normal(1, 15, 5), "b": normal(1, 30)},
        {"x": normal(7, 3, 6)},
    ),
    "rnn": (
        "g (float[s,n,6] x) => (float[s,1,n,5] y) { y = RNN <hidden_size = 5> (x, w, r) }",
        {"w": normal(1, 5, 6), "r": normal(1, 5, 5)},
        {"x": normal(7, 3, 6)},
    ),
    "attention": (
        """g (float[n,s,8] x) => (float[n,s,8] y) {
            y = com.microsoft.Attention <num_heads = 2> (x, w, b) }""",
        {"w": normal(8, 24), "b": normal(24)},
        {"x": normal(2, 5, 8)},
    ),
}
