"""What weights weigh: foretold, and in the file."""

from __future__ import annotations

import pytest
from graph_bench import Bench
from layer_kinds import IDS, WORDS, normal

from packlight.graph.apply import possible_choices
from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.sizes import matrix_shapes, packed_bits, stored_bytes
from packlight.recipe import CHOICES, parse_choice

GRAPHS = {
    "matmul": (
        "g (float[n,300] x) => (float[n,96] y) { y = MatMul(x, w) }",
        {"w": normal(300, 96)},
        {"x": normal(16, 300)},
    ),
    "gemm": (
        "g (float[n,128] x) => (float[n,300] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": normal(300, 128), "b": normal(300)},
        {"x": normal(16, 128)},
    ),
    "gather": (
        "g (int64[n,s] x) => (float[n,s,64] y) { y = Gather(w, x) }",
        {"w": normal(700, 64)},
        {"x": IDS},
    ),
    "conv": (
        "g (float[n,24,5,5] x) => (float[n,60,3,3] y) { y = Conv(x, w, b) }",
        {"w": normal(60, 24, 3, 3), "b": normal(60)},
        {"x": normal(4, 24, 5, 5)},
    ),
    "transposed conv": (
        "g (float[n,20,5,5] x) => (float[n,60,k,l] y) { y = ConvTranspose <group = 2> (x, w) }",
        {"w": normal(20, 30, 5, 5)},
        {"x": normal(4, 20, 5, 5)},
    ),
    "lstm": (
        """g (float[s,n,60] x) => (float[s,1,n,70] y) {
            y = LSTM <hidden_size = 70> (x, w, r) }""",
        {"w": normal(1, 280, 60), "r": normal(1, 280, 70)},
        {"x": normal(5, 2, 60)},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_bytes_foretold_are_those_of_the_file(bench: Bench, name: str) -> None:
    text, weights, feeds = GRAPHS[name]
    model = bench.model(text, opset=21, **weights)
    (layer,) = find_layers(model.ir)
    static = name in ("matmul", "gemm", "conv")
    seen = bench.observe(model, feeds) if static else None
    rest = bench.apply(model, "float32").stat().st_size - layer.bytes
    for choice in possible_choices(layer, WORDS):
        path = bench.apply(model, choice, observations=seen, rounding="nearest")
        found = path.stat().st_size - rest
        assert stored_bytes(layer, choice) == pytest.approx(found, rel=0.02, abs=300), choice


@pytest.mark.parametrize("name", GRAPHS)
def test_shapes_are_those_of_the_matrices(bench: Bench, name: str) -> None:
    text, weights, _ = GRAPHS[name]
    (layer,) = find_layers(bench.model(text, **weights).ir)
    matrices = [weight_matrix(layer, index).shape for index in range(len(layer.weights))]
    assert matrix_shapes(layer) == matrices


def test_packed_bits_are_nominal(bench: Bench) -> None:
    text, weights, _ = GRAPHS["matmul"]
    (layer,) = find_layers(bench.model(text, **weights).ir)
    count = layer.parameters
    assert packed_bits(layer, "float32") == 32 * count
    assert packed_bits(layer, "float16") == 16 * count
    assert packed_bits(layer, "int3") == packed_bits(layer, "weights-int3") == 3 * count + 32 * 96
    assert packed_bits(layer, "weights-coded0.5") == 0.5 * count
    assert packed_bits(layer, "weights-nf4") == 4.5 * count
    assert packed_bits(layer, "weights-int4-blocks") == (4 + 36 / 32) * count
    assert packed_bits(layer, "weights-shared3") == 3 * count + 32 * 8
    for word in CHOICES:
        if word not in ("float32", "float16"):
            assert packed_bits(layer, word) < 1.2 * 8 * stored_bytes(layer, word)
            assert packed_bits(layer, word) >= parse_choice(word).bits * count
