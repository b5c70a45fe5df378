"""Weights as codes: golden numbers, never worse where more is known, packed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_bench import Bench
from layer_kinds import STORED, STORING, normal
from numpy.typing import NDArray

from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.patches import kernel_order
from packlight.graph.rewrite.packing import BLOCK, pack_layers, pack_weight, unpack
from packlight.maths.grids import (
    IntegerGrid,
    block_counts,
    dequantize,
    scale_and_zero_point,
)
from packlight.maths.grouped import output_error_of_groups
from packlight.maths.moments import Moments
from packlight.maths.ranges import range_squared_error_of_array
from packlight.maths.rounding import output_error, round_to_nearest
from packlight.recipe import parse_choice

BLOCKS = ("weights-int2-blocks", "weights-int4-blocks", "weights-int8-blocks")
TEXT = "g (float[n,{k}] x) => (float[n,{n}] y) {{ y = MatMul(x, w) }}"


def product(bench: Bench, w: NDArray[np.float32]) -> Layer:
    text = TEXT.format(k=w.shape[0], n=w.shape[1])
    (layer,) = find_layers(bench.model(text, w=w).ir)
    return layer


def correlated(inputs: int, *, rows: int = 1000) -> Moments:
    x = (normal(rows, 6, size=1.0) @ normal(6, inputs) + normal(rows, inputs, size=0.1)).astype(
        np.float64
    )
    return Moments(x.T @ x, x.sum(axis=0), x.sum(axis=0), rows)


def test_golden_codes(bench: Bench) -> None:
    w = np.array([[-0.8, -0.3, 0.0, 0.1, 0.45, 0.7]], np.float32)
    layer = product(bench, np.concatenate([w, -2 * w]).T)
    found = {
        word: pack_weight(layer, parse_choice(word), None)
        for word in ("weights-int8", "weights-int4", "weights-int2", "weights-ternary")
    }
    int8 = found["weights-int8"]
    np.testing.assert_array_equal(int8.codes[0], [-127, -48, 0, 16, 71, 111])
    assert int8.scale is not None
    np.testing.assert_allclose(int8.scale[:, 0], [0.8 / 127, 1.6 / 127], rtol=1e-6)
    np.testing.assert_array_equal(found["weights-int2"].codes[0], [-2, -1, 0, 0, 1, 1])
    np.testing.assert_array_equal(found["weights-ternary"].codes[1], [1, 0, 0, 0, -1, -1])
    np.testing.assert_array_equal(found["weights-int4"].codes[0], [-7, -3, 0, 1, 4, 6])
    table = pack_weight(layer, parse_choice("weights-nf4"), None)
    assert table.levels is not None and len(table.levels) == 16 and table.block == (1, 64)
    assert table.codes[0, 2] == 7 and table.levels[7] == 0
    nibbles = pack_weight(product(bench, normal(40, 3)), parse_choice("weights-int4-blocks"), None)
    assert nibbles.scale is not None and nibbles.zero is not None
    assert nibbles.scale.shape == nibbles.zero.shape == (3, 2)


@pytest.mark.parametrize("word", [*STORING, *BLOCKS])
def test_what_is_packed_fits_what_it_says(bench: Bench, word: str) -> None:
    layer = product(bench, normal(100, 12))
    for moments in (None, correlated(100)):
        packed = pack_weight(layer, parse_choice(word), moments)
        assert packed.codes.shape == (12, 100)
        if packed.levels is not None or packed.zero is not None:
            assert packed.codes.dtype == np.uint8 and packed.codes.max() < 2**packed.width
        else:
            half = 1 << (packed.width - 1)
            assert -half <= packed.codes.min() and packed.codes.max() < half
        if packed.levels is not None:
            assert packed.codes.max() < len(packed.levels) <= 2**packed.width
        for part in (packed.scale, packed.zero):
            assert part is None or part.shape in (
                block_counts((12, 100), packed.block),
                (12, 1),
            )
        assert packed.scale is None or (packed.scale > 0).all()
        matrix, second = weight_matrix(layer), np.eye(100) if moments is None else moments.second
        nothing = output_error(matrix, 0 * matrix, second)
        assert output_error(matrix, unpack(packed), second) < 0.95 * nothing


@pytest.mark.parametrize("word", [*STORING, *BLOCKS])
def test_known_inputs_make_the_output_better(bench: Bench, word: str) -> None:
    layer, moments = product(bench, normal(64, 16)), correlated(64)
    matrix, choice = weight_matrix(layer), parse_choice(word)
    blind, known, descent = (
        output_error(matrix, unpack(pack_weight(layer, choice, seen, rounding=how)), moments.second)
        for seen, how in ((None, "nearest"), (moments, "compensated"), (moments, "descent"))
    )
    assert known < 0.8 * blind
    assert descent < 1.02 * known


def test_moments_in_kernel_order_meet_the_columns_they_belong_to(bench: Bench) -> None:
    """A Conv's inputs stand in another order than its columns: only the right one compensates."""
    text = "g (float[n,5,8,8] x) => (float[n,8,6,6] y) { y = Conv(x, w) }"
    (layer,) = find_layers(bench.model(text, w=normal(8, 5, 3, 3)).ir)
    plain, order = correlated(45), kernel_order(layer)
    assert not np.array_equal(order, np.arange(45))
    moved = Moments(
        plain.products[np.ix_(order, order)], plain.left[order], plain.right[order], plain.count
    )
    for word in ("weights-int4", "weights-nf4", "weights-fp4"):
        choice, matrix = parse_choice(word), weight_matrix(layer)
        right, wrong = (
            output_error(matrix, unpack(pack_weight(layer, choice, one)), plain.second)
            for one in (moved, plain)
        )
        assert right < 0.5 * wrong


@pytest.mark.parametrize("word", ["weights-int4", "weights-nf4", "weights-int4-blocks"])
def test_singular_moments_are_noted(bench: Bench, word: str) -> None:
    layer = product(bench, normal(64, 8))
    few = correlated(64, rows=10)
    dead = correlated(64)
    dead.products[:, 7] = dead.products[7, :] = 0
    notes = [
        pack_weight(layer, parse_choice(word), moments).note
        for moments in (few, dead, correlated(64))
    ]
    assert "only 10 rows were seen for its 64 inputs" in notes[0]
    assert "1 of its 64 inputs were always 0" in notes[1]
    assert notes[2] == ""


def test_layers_that_share_a_weight_are_packed_for_the_inputs_of_all(bench: Bench) -> None:
    text = """g (float[n,32] x) => (float[n,32] y) {
        [one] a = MatMul(x, w) r = Relu(a) [two] y = MatMul(r, w) }"""
    model = bench.model(text, w=normal(32, 32))
    layers = find_layers(model.ir)
    moments: dict[str, Any] = {layer.name: correlated(32) for layer in layers}
    choice = parse_choice("weights-int3")
    found = []
    for chosen in (layers, layers[:1], layers[1:]):
        cache: dict[tuple[str, int], Any] = {}
        pack_layers(
            model.ir,
            [(one, choice) for one in chosen],
            moments,
            {choice.word: cache},
            rounding="compensated",
        )
        assert set(cache) == {("one", 0), ("two", 0)}
        found.append(cache["one", 0].codes)
        assert cache["one", 0] is cache["two", 0]
    assert all(np.array_equal(found[0], one) for one in found)


@pytest.mark.parametrize("name", ["lstm", "gather", "grouped transposed conv"])
def test_all_weights_of_a_layer_are_packed(bench: Bench, name: str) -> None:
    text, weights, _ = STORED[name]
    (layer,) = find_layers(bench.model(text, **weights).ir)
    for index in range(len(layer.weights)):
        packed = pack_weight(layer, parse_choice("weights-int6"), None, index=index)
        matrix = weight_matrix(layer, index)
        noise = np.square(unpack(packed) - matrix).sum() / np.square(matrix).sum()
        assert noise < 2e-3


def test_learned_rounding_is_another_and_no_worse(bench: Bench) -> None:
    layer, moments = product(bench, normal(32, 8)), correlated(32)
    matrix, choice = weight_matrix(layer), parse_choice("weights-int3")
    packed = {
        how: pack_weight(layer, choice, moments, rounding=how)
        for how in ("nearest", "compensated", "learned")
    }
    errors = {how: output_error(matrix, unpack(one), moments.second) for how, one in packed.items()}
    assert errors["learned"] <= errors["compensated"] < errors["nearest"]
    assert not np.array_equal(packed["learned"].codes, packed["nearest"].codes)


def test_blocks_have_their_size(bench: Bench) -> None:
    assert BLOCK == 32
    layer = product(bench, normal(70, 4))
    for word in BLOCKS:
        assert pack_weight(layer, parse_choice(word), None).block == (1, 32)


GROUPS = {"depthwise": (8, 1, 3, 3), "pairs": (12, 2, 3, 3), "large": (8, 32, 3, 3)}


def grouped_layer(bench: Bench, name: str) -> tuple[Layer, Moments]:
    """A Conv whose channels are in groups, and correlated moments in kernel order."""
    shape = GROUPS[name]
    groups = {"depthwise": 8, "pairs": 4, "large": 2}[name]
    text = f"""g (float[n,{shape[1] * groups},8,8] x) => (float[n,{shape[0]},6,6] y) {{
        y = Conv <group = {groups}> (x, w) }}"""
    (layer,) = find_layers(bench.model(text, w=normal(*shape)).ir)
    each = [correlated(shape[1] * 9) for _ in range(groups)]
    left = np.stack([one.left for one in each])
    return layer, Moments(np.stack([one.products for one in each]), left, left, each[0].count)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(
    "word", ["weights-int6", "weights-int3", "weights-fp4", "weights-nf4", "weights-shared3"]
)
def test_each_group_is_rounded_for_its_own_inputs(bench: Bench, name: str, word: str) -> None:
    layer, moments = grouped_layer(bench, name)
    matrix, order = weight_matrix(layer)[:, kernel_order(layer)], kernel_order(layer)
    choice = parse_choice(word)

    def error(packed: Any) -> float:
        return output_error_of_groups(matrix, unpack(packed)[:, order], moments.second)

    blind, known = (error(pack_weight(layer, choice, seen)) for seen in (None, moments))
    several_blocks = word == "weights-nf4" and name == "large"  # left to the nearest
    assert known == blind if several_blocks else known < 0.7 * blind
    assert error(pack_weight(layer, choice, moments, rounding="nearest")) == blind
    # Coded weights have one scale for all groups and stay as they are.
    coded = [
        pack_weight(layer, parse_choice("weights-coded2"), seen).codes for seen in (None, moments)
    ]
    np.testing.assert_array_equal(*coded)


def test_blocks_of_unknown_inputs_have_the_better_of_two_ranges(bench: Bench) -> None:
    """Squared error below the search's at 4 bits; at 2 bits the search's own."""
    layer = product(bench, normal(96, 24))
    matrix = weight_matrix(layer).astype(np.float64)
    for bits, least in ((4, 0.995), (2, 1.0)):
        grid = IntegerGrid(bits=bits, signed=False, symmetric=False)
        ends = range_squared_error_of_array(matrix, grid, block_shape=(1, BLOCK), shrinks=8)
        scale, zero = scale_and_zero_point(*ends, grid)
        codes = round_to_nearest(matrix, scale, zero, grid, group_size=BLOCK)
        plain = dequantize(codes, scale, zero, block_shape=(1, BLOCK))
        found = unpack(pack_weight(layer, parse_choice(f"weights-int{bits}-blocks"), None))
        ours, theirs = (np.square(matrix - one).sum() for one in (found, plain))
        assert 0.9 * theirs < ours <= least * theirs * (1 + 1e-6)
        blocks = (np.square(matrix - one).reshape(24, 3, 32).sum(axis=2) for one in (found, plain))
        better, worse = blocks
        assert (better <= worse * (1 + 1e-6)).all()
