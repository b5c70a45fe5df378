"""Smoothing on exported transformers: exact in float, better in 8 bits where channels stand out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformer_zoo import BUILDERS, LAYERS

from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model, save_model
from packlight.graph.rewrite.smooth import find_groups, smooth
from packlight.plan.trials import Workbench
from packlight.recipe import Recipe
from packlight.samples import feeds_of
from packlight.targets import find_target

# What takes up scales at least, of LAYERS blocks: the norms before attention and feed-forward...
LEAST = {
    "bert": 1,  # each norm is read by the residual too; but for the pooler's
    "vit": 3 * LAYERS + 1,  # ...values before the output projection, the last norm
    "whisper_encoder": 3 * LAYERS,
    "whisper_decoder": 3 * LAYERS + 1,
    "whisper_past": 3 * LAYERS + 1,
    "marian_encoder": LAYERS,  # through a Relu
    "marian_decoder": LAYERS + 1,
    "gpt2": 2 * LAYERS,
    "llama": 3 * LAYERS,  # ...and what the gate is multiplied with
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_smoothed_model_gives_the_same_in_float(subject, process, tmp_path, name):
    one = subject(name)
    graph = copy_model(one.graph)
    draw = np.random.default_rng(0)
    ranges = {
        layer.name: np.exp(draw.normal(0, 2, layer.weight_shape[1 - layer.out_axis]))
        for layer in find_layers(graph)
        if layer.kind in ("MatMul", "Gemm")
    }
    groups = find_groups(graph)
    done = smooth(graph, ranges, strength=0.5)
    assert done == [group.name for group in groups] and len(done) >= LEAST[name]
    paths = tmp_path / "plain.onnx", tmp_path / "smooth.onnx"
    for model, path in zip((one.graph, graph), paths, strict=True):
        save_model(model, path)
    feeds = next(iter(feeds_of(one.samples, (0, 1, 2, 3), one.model.inputs)))
    first, second = (process.load(path).run(feeds) for path in paths)
    for key, wanted in first.items():
        np.testing.assert_allclose(second[key], wanted, atol=1e-5 * np.abs(wanted).max())
    weights = [
        [layer.weight.const_value.numpy() for layer in find_layers(model)]
        for model in (one.graph, graph)
    ]
    moved = sum(not np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    assert moved >= len({layer for group in groups for layer in group.layers})


@pytest.mark.parametrize("name", ["vit", "whisper_encoder", "llama"])
def test_smoothing_lowers_the_error_of_static_int8(subject, name):
    one = subject(name)
    layers = find_layers(one.graph)
    recipe = Recipe(layers=tuple((x.name, "int8") for x in layers if x.kind in ("MatMul", "Gemm")))
    with Workbench(one.model, one.graph, one.samples, one.split, find_target("laptop")) as bench:
        bench.calibrate([key for key, _ in recipe.layers])
        plain = bench.evaluate(recipe, "plain").noise_db
        smoothed = bench.evaluate(Recipe(layers=recipe.layers, smooth=0.5), "smooth").noise_db
    assert smoothed > plain + 2.0


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_searched_scales_lower_the_error_too_and_are_found_once(subject, name):
    one = subject(name)
    names = [x.name for x in find_layers(one.graph) if x.kind in ("MatMul", "Gemm")]
    plain = Recipe(layers=tuple((key, "int8") for key in names))
    searched = replace(plain, smooth="searched")
    with Workbench(one.model, one.graph, one.samples, one.split, find_target("laptop")) as bench:
        bench.calibrate(names)
        assert bench.differs(plain, searched)
        # One layer more or less in float is the same graph again; all of them need no scales.
        assert not bench.differs(searched, searched.with_choice(names[:1], "float32"))
        assert not bench.differs(plain, searched.with_choice(names, "float32"))
        assert bench.differs(searched, searched.with_choice(names, "weights-int4-blocks"))
        without = bench.evaluate(plain, "plain").noise_db
        assert bench.evaluate(searched, "searched").noise_db > without + 3.0
