"""Presets, the choices that are worth weighing for them, and which of those a target runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packlight.errors import WrongUsage
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.plan.goal import (
    BALANCED,
    PRESETS,
    average_bits,
    candidate_words,
    find_goal,
    runs_on,
)
from packlight.recipe import Recipe, is_choice
from packlight.targets import TARGETS, find_target


@pytest.fixture(scope="module")
def layers(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]
) -> dict[str, Layer]:
    draw = np.random.default_rng(0).standard_normal
    path = write_model(
        tmp_path_factory.mktemp("goal") / "net.onnx",
        """net (float[n, 3, 6, 6] x, float[n, 64] z) => (float[n, 8, 4, 4] a, float[n, 8] b) {
            a = Conv(x, w)
            b = MatMul(z, v)
        }""",
        w=draw((8, 3, 3, 3)).astype(np.float32),
        v=draw((64, 8)).astype(np.float32),
    )
    return {layer.kind: layer for layer in find_layers(load_model(path).ir)}


def test_presets_are_found_by_name() -> None:
    names = [goal.name for goal in PRESETS]
    assert names == ["balanced", "fastest", "smallest", "lossless"]
    assert [find_goal(name).name for name in names] == names
    assert find_goal("balanced") is BALANCED
    assert (find_goal("smallest").wish, find_goal("smallest").drop) == ("download", 0.01)
    assert find_goal("lossless").drop == 0.0


@pytest.mark.parametrize(("name", "near"), [("smalest", "smallest"), ("loss-less", "lossless")])
def test_a_wrong_preset_gets_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(WrongUsage, match=f"no preset '{name}' .did you mean '{near}'") as refusal:
        find_goal(name)
    assert all(goal.name in str(refusal.value) for goal in PRESETS)
    with pytest.raises(WrongUsage, match="choose one of"):
        find_goal("xyzzy")


@pytest.mark.parametrize("wish", ["latency", "size", "download", "nothing"])
def test_all_words_are_choices_and_one_of_them_is_exact(wish: str) -> None:
    words = candidate_words(wish)  # type: ignore[arg-type]
    assert all(is_choice(word) for word in words) and len(set(words)) == len(words)
    assert words[0] == "float32"


def test_a_download_weighs_few_bits_and_lossless_nothing() -> None:
    assert {"int2", "weights-int3", "weights-coded0.5"} <= set(candidate_words("download"))
    assert candidate_words("nothing") == ("float32",)


def test_what_a_target_runs(layers: dict[str, Layer]) -> None:
    conv, product = layers["Conv"], layers["MatMul"]
    for target in TARGETS:
        for layer in (conv, product):
            assert runs_on(layer, "float32", target) and runs_on(layer, "weights-int4", target)
            assert runs_on(layer, "int8", target) == (layer.kind in target.static)
            assert runs_on(layer, "int8-dynamic", target) == (layer.kind in target.dynamic)
            assert runs_on(layer, "float16", target) == bool(target.float16)
        blocks = "MatMul" in target.blocks and 4 in target.block_bits
        assert runs_on(product, "weights-int4-blocks", target) == blocks
        assert not runs_on(conv, "weights-int4-blocks", target)
    laptop = find_target("laptop")
    assert runs_on(conv, "int8", laptop) and not runs_on(conv, "int8-dynamic", laptop)


def test_average_bits_count_weights(layers: dict[str, Layer]) -> None:
    both = tuple(layers.values())
    conv, product = both
    recipe = Recipe(layers=((conv.name, "int8"),))
    whole = conv.parameters + product.parameters
    expected = (8 * conv.parameters + 32 * product.parameters) / whole
    assert average_bits(recipe, both) == pytest.approx(expected)
    assert average_bits(recipe, ()) is None
