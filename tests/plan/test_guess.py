"""What a loss of quality would buy is guessed from the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.model import Model, load_model
from packlight.graph.rewrite.packing import pack_weight, unpack
from packlight.plan.forecast import forecast
from packlight.plan.goal import PRESETS, find_goal
from packlight.plan.guess import ACTIVATIONS, guess_size, weigh_noise
from packlight.recipe import parse_choice
from packlight.targets import find_target

LAPTOP = find_target("laptop")
DROPS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


@pytest.fixture
def model(tmp_path: Path, write_mlp: Callable[..., Path]) -> Model:
    return load_model(write_mlp(tmp_path / "net.onnx"))


@pytest.fixture
def layers(model: Model) -> tuple[Layer, ...]:
    return find_layers(model.ir)


@pytest.mark.parametrize(
    ("word", "least"),
    [
        ("weights-int8", 0.9),
        ("weights-int4", 0.6),  # its ranges are searched
        ("weights-int8-blocks", 0.5),  # asymmetric: steps are shorter
        ("weights-coded3", 0.9),
    ],
)
def test_the_noise_is_that_of_nearest_codes(
    layers: tuple[Layer, ...], word: str, least: float
) -> None:
    large = max(layers, key=lambda layer: layer.parameters)
    matrix = weight_matrix(large)
    choice = parse_choice(word)
    rounded = unpack(pack_weight(large, choice, None, rounding="nearest"))
    measured = np.square(rounded - matrix).sum() / np.square(matrix).sum()
    assert least < measured / weigh_noise(large, [word])[word] < 1.1


def test_inputs_in_8_bits_add_noise(layers: tuple[Layer, ...]) -> None:
    found = weigh_noise(layers[0], ["float32", "weights-int8", "int8"])
    assert found["float32"] == 0
    assert found["int8"] - found["weights-int8"] == pytest.approx(ACTIVATIONS)


@pytest.mark.parametrize("preset", [goal.name for goal in PRESETS])
def test_a_larger_loss_never_costs_bytes(model: Model, preset: str) -> None:
    guesses = [
        forecast(model, LAPTOP, find_goal(preset), has_data=True, max_drop=drop).guessed_bytes
        for drop in DROPS
    ]
    assert guesses == sorted(guesses, reverse=True)
    assert guesses[0] == pytest.approx(model.size_bytes, rel=0.01)
    factor = {"smallest": 8, "lossless": 1}.get(preset, 3.5)
    assert guesses[-1] * factor < 1.01 * model.size_bytes


def test_without_samples_no_ranges_are_counted_on(layers: tuple[Layer, ...]) -> None:
    fast, rest = find_goal("smallest"), 1000
    sizes = {
        known: guess_size(layers, LAPTOP, fast, 0.02, rest=rest, has_data=known)
        for known in (True, False)
    }
    assert rest < sizes[True] <= sizes[False]


def test_the_forecast_says_that_it_guesses(model: Model) -> None:
    plain = forecast(model, LAPTOP, has_data=True)
    assert plain.guessed_bytes is None and not any("guessed" in line for line in plain.lines)
    found = forecast(model, LAPTOP, find_goal("smallest"), has_data=True, max_drop=0.01)
    (line,) = (line for line in found.lines if "guessed" in line)
    assert line.startswith("With a loss of at most 1 %: about ") and "KB packed" in line
    assert found.to_json()["guessed_bytes"] == found.guessed_bytes
