"""One layer as two thinner ones: the same outputs where the rank suffices, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import normal
from numpy.typing import NDArray

from packlight.errors import UnusableRecipe
from packlight.graph.layers import find_layers
from packlight.graph.model import load_model
from packlight.graph.rewrite.factorize import (
    Rank,
    factorize,
    largest_rank,
    why_not_factorized,
)

CONV = "g (float[n,12,9,10] x) => (float[n,16,k,l] y) {{ y = Conv <{attributes}> (x, w, b) }}"
MATMUL = "g (float[n,4,24] x) => (float[n,4,20] y) { y = MatMul(x, w) }"
GEMM = "g (float[n,24] x) => (float[n,20] y) {{ y = Gemm <{attributes}> (x, w, b) }}"


def channel_kernel(rank: int) -> NDArray[np.float32]:
    return (normal(16, rank, size=1.0) @ normal(rank, 108)).reshape(16, 12, 3, 3)


def spatial_kernel(rank: int) -> NDArray[np.float32]:
    down, across = normal(rank, 12, 3), normal(16, rank, 3, size=1.0)
    return np.einsum("orb,ria->oiab", across, down).astype(np.float32)


@pytest.mark.parametrize(
    "attributes",
    [
        "pads = [1, 1, 1, 1]",
        "pads = [0, 2, 1, 0], strides = [1, 2]",
        "strides = [2, 1], dilations = [2, 3], pads = [2, 3, 2, 3]",
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
        'auto_pad = "SAME_LOWER"',
        'auto_pad = "VALID"',
    ],
)
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_a_conv_that_has_the_rank_gives_what_it_gave(
    bench: Bench, kind: Any, attributes: str
) -> None:
    weight = channel_kernel(4) if kind == "channel" else spatial_kernel(4)
    model = bench.model(CONV.format(attributes=attributes), w=weight, b=normal(16))
    (layer,) = find_layers(model.ir)
    data = {"x": normal(64, 12, 9, 10, size=1.0)}
    seen = bench.observe(model, data).moments
    for moments in ({}, seen):
        path = bench.save(factorize(model.ir, {layer.name: Rank(kind, 4)}, moments))
        want, got = bench.run(model, data)[0], bench.run(path, data)[0]
        assert snr_db(want, got) > 60
    parts = find_layers(factorize(model.ir, {layer.name: Rank(kind, 4)}, seen))
    assert [part.name for part in parts] == [f"{layer.name}_a", f"{layer.name}_b"]
    assert sum(part.parameters for part in parts) < layer.parameters
    assert len(find_layers(model.ir)) == 1


@pytest.mark.parametrize(
    "attributes", ["beta = 1.0", "transB = 1", "alpha = 0.5, beta = 3.0, transB = 1"]
)
def test_matrices_too(bench: Bench, attributes: str) -> None:
    weight = normal(24, 3, size=1.0) @ normal(3, 20)
    plain = bench.model(MATMUL, w=weight)
    turned = weight.T.copy() if "transB" in attributes else weight
    gemm = bench.model(GEMM.format(attributes=attributes), w=turned, b=normal(20))
    for model, data in ((plain, {"x": normal(40, 4, 24)}), (gemm, {"x": normal(200, 24)})):
        (layer,) = find_layers(model.ir)
        seen = bench.observe(model, data).moments
        for moments in ({}, seen):
            path = bench.save(factorize(model.ir, {layer.name: Rank("matrix", 3)}, moments))
            assert snr_db(bench.run(model, data)[0], bench.run(path, data)[0]) > 60


@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_what_was_observed_helps_and_the_mean_stays(bench: Bench, kind: Any) -> None:
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((12, 12)) * np.linspace(0.1, 2, 12)

    def inputs() -> NDArray[np.float32]:
        plain = rng.standard_normal((64, 9, 10, 12)) @ mix + 1
        return np.maximum(plain, 0).transpose(0, 3, 1, 2).astype(np.float32)

    model = bench.model(CONV.format(attributes="group = 1"), w=normal(16, 12, 3, 3), b=normal(16))
    (layer,) = find_layers(model.ir)
    moments = bench.observe(model, {"x": inputs()}).moments
    data = {"x": inputs()}
    want = bench.run(model, data)[0]
    found = []
    for seen in ({}, moments):
        path = bench.save(factorize(model.ir, {layer.name: Rank(kind, 8)}, seen))
        found.append(bench.run(path, data)[0])
    assert snr_db(want, found[1]) > snr_db(want, found[0]) + 3
    off = (found[1] - want).mean(axis=(0, 2, 3))
    assert np.abs(off).max() < 0.1 * np.sqrt(np.square(found[1] - want).mean())


def test_both_parts_can_be_quantized(bench: Bench) -> None:
    model = bench.model(
        CONV.format(attributes="pads = [1, 1, 1, 1]"), w=spatial_kernel(4), b=normal(16)
    )
    (layer,) = find_layers(model.ir)
    data = {"x": normal(32, 12, 9, 10, size=1.0)}
    thin = factorize(model.ir, {layer.name: Rank("spatial", 4)}, {})
    path = bench.save(thin)
    packed = bench.apply(load_model(path), "int8", data)
    assert snr_db(bench.run(model, data)[0], bench.run(packed, data)[0]) > 25
    assert bench.operators(packed).count("QLinearConv") == 2


def test_only_what_spares_something_is_done(bench: Bench) -> None:
    model = bench.model(CONV.format(attributes="group = 1"), w=normal(16, 12, 3, 3), b=normal(16))
    (layer,) = find_layers(model.ir)
    # 16 * 108 weights; a rank takes 108 + 16, or 36 + 48.
    assert largest_rank(layer, "channel") == 13 and largest_rank(layer, "spatial") == 20
    wide = bench.model(
        CONV.format(attributes="strides = [1, 2]"), w=normal(16, 12, 3, 3), b=normal(16)
    )
    # The first part gives twice as many columns as the layer did.
    assert largest_rank(find_layers(wide.ir)[0], "spatial") == 14
    name = layer.name
    with pytest.raises(UnusableRecipe, match="with rank 14: ranks from 1 to 13 take fewer"):
        factorize(model.ir, {name: Rank("channel", 14)}, {})
    with pytest.raises(UnusableRecipe, match="with rank 0"):
        factorize(model.ir, {name: Rank("spatial", 0)}, {})
    with pytest.raises(UnusableRecipe, match="which the model does not have"):
        factorize(model.ir, {name + "x": Rank("channel", 3)}, {})
    with pytest.raises(UnusableRecipe, match="are channel or spatial ones"):
        factorize(model.ir, {name: Rank("matrix", 3)}, {})


def test_reasons(bench: Bench) -> None:
    text = "g (float[n,4,8,8] x) => (float[n,8,k,l] y) { y = Conv <group = 2> (x, w) }"
    (grouped,) = find_layers(bench.model(text, w=normal(8, 2, 3, 3)).ir)
    assert "groups" in why_not_factorized(grouped, "channel")
    text = "g (float[n,4,8,8] x) => (float[n,8,k,l] y) { y = Conv (x, w) }"
    (flat,) = find_layers(bench.model(text, w=normal(8, 4, 1, 1)).ir)
    assert "not 1 x 1" in why_not_factorized(flat, "spatial")
    assert why_not_factorized(flat, "channel") == ""
    (matrix,) = find_layers(bench.model(MATMUL, w=normal(24, 20)).ir)
    assert "a matrix" in why_not_factorized(matrix, "spatial")
    text = "g (float[n,24] x) => (float[n,24] y) { h = MatMul(x, w)\n y = MatMul(h, w) }"
    for layer in find_layers(bench.model(text, w=normal(24, 24)).ir):
        assert "another layer" in why_not_factorized(layer, "matrix")
