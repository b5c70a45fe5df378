"""Rotations on exported transformers: exact in float, better where values stand out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from transformer_zoo import BUILDERS, HEADS, HIDDEN, LAYERS

from packlight.graph.layers import find_layers
from packlight.graph.model import copy_model, save_model
from packlight.graph.rewrite.rotate import find_pairs, rotate_pairs
from packlight.plan.trials import Workbench
from packlight.recipe import Recipe
from packlight.samples import feeds_of
from packlight.targets import find_target

# Decoders attend to what they wrote, and to what the encoder gave...
TWICE = ("marian_decoder", "whisper_decoder")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_rotated_model_gives_the_same_in_float(subject, process, tmp_path, name):
    one = subject(name)
    graph = copy_model(one.graph)
    pairs = find_pairs(graph)
    # ...and a cache of values is an output of the model: those stay as they are.
    assert len(pairs) == LAYERS * (2 if name in TWICE else 1)
    assert {pair.size for pair in pairs} == {HIDDEN // HEADS}
    assert rotate_pairs(graph, seed=1) == [pair.name for pair in pairs]
    paths = tmp_path / "plain.onnx", tmp_path / "rotated.onnx"
    for model, path in zip((one.graph, graph), paths, strict=True):
        save_model(model, path)
    feeds = next(iter(feeds_of(one.samples, (0, 1, 2, 3), one.model.inputs)))
    first, second = (process.load(path).run(feeds) for path in paths)
    for key, wanted in first.items():
        np.testing.assert_allclose(second[key], wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_rotation_lowers_the_error_where_some_values_reach_far(subject, name):
    one = subject(name)
    graph = copy_model(one.graph)
    layers = {layer.name: layer for layer in find_layers(graph)}
    pairs = find_pairs(graph)
    for pair in pairs:
        _stand_out(layers[pair.source], [layers[key] for key in pair.layers], pair.size)
    names = [key for key in layers if key in {x for p in pairs for x in (p.source, *p.layers)}]
    recipe = Recipe(layers=tuple((key, "int8") for key in names))
    turned = replace(recipe, rotate=True)
    with Workbench(one.model, graph, one.samples, one.split, find_target("laptop")) as bench:
        bench.calibrate(names)
        assert bench.differs(recipe, turned) and not bench.differs(turned, turned)
        plain = bench.evaluate(recipe, "plain").noise_db
        better = bench.evaluate(turned, "rotated").noise_db
    assert better > plain + 2.0


def _stand_out(first, others, size):
    """Let one channel of every head reach 30 times as far; what reads it makes up for it."""
    _scale(first, first.out_axis, size, 30.0)
    for layer in others:
        _scale(layer, 1 - layer.out_axis, size, 1 / 30)


def _scale(layer, axis, size, factor):
    array = np.moveaxis(layer.weight.const_value.numpy().copy(), axis, -1)
    array[..., 5::size] *= factor
    array = np.ascontiguousarray(np.moveaxis(array, -1, axis))
    layer.weight.const_value = ir.Tensor(array, name=layer.weight.name)
