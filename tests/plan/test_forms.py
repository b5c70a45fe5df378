"""Forms of a graph: each is observed once, and again only when something else is observed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.graph.model import Model, load_model
from packlight.plan import forms as room
from packlight.plan.forms import KEPT, Forms
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import open_samples

PLAIN = Recipe(layers=(("h", "weights-int4"), ("g", "weights-int4")))
SEQUENTIAL = replace(PLAIN, sequential=True)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as one:
        yield one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, write_mlp: Callable[..., Path]) -> Model:
    return load_model(write_mlp(tmp_path_factory.mktemp("forms") / "net.onnx", hidden=24))


@pytest.fixture
def forms(model: Model, rows: NDArray[np.float32], tmp_path: Path) -> Forms:
    samples = open_samples(rows[:40], model.inputs)
    return Forms(model.ir, samples, range(40), model.inputs, tmp_path, accuracy_level=4, seed=0)


def test_a_form_is_observed_once(
    forms: Forms, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    observe = room.observe

    def count(*args: object, **options: object) -> object:
        calls.append(args)
        return observe(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "observe", count)
    forms.calibrate(("h", "g", "y"), process)
    first = forms.of(PLAIN, process)
    assert forms.of(PLAIN, process) is first and len(calls) == 1
    assert sorted(first.observations.moments) == ["g", "h", "y"]
    # Of the same graph the weights rounded so far serve all recipes.
    assert forms.of(replace(PLAIN, rounding="nearest"), process).weights is first.weights


def test_where_nothing_can_be_changed_it_is_the_form_without(
    forms: Forms, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms.calibrate(("h", "g"), process)
    monkeypatch.setattr(room, "equalize", lambda graph: [])
    assert forms.of(replace(PLAIN, equalize=True), process) is forms.of(PLAIN, process)


def test_sequential_recipes_have_forms_of_their_own(forms: Forms, process: Process) -> None:
    forms.calibrate(("h", "g"), process)
    plain, refitted = forms.of(PLAIN, process), forms.of(SEQUENTIAL, process)
    assert refitted is not plain and refitted.graph is not plain.graph
    assert forms.of(SEQUENTIAL, process) is refitted
    assert refitted.weights.packed and refitted.observations.moments.keys() == {"h", "g"}
    # Only the last are held: each is a graph.
    for seed in range(1, KEPT + 1):
        forms.of(replace(SEQUENTIAL, seed=seed), process)
    assert forms.of(SEQUENTIAL, process) is not refitted


def test_without_samples_nothing_is_refitted(forms: Forms, process: Process) -> None:
    assert forms.of(SEQUENTIAL, process) is forms.of(PLAIN, process)


def test_another_calibration_forgets_what_was_made_of_the_first(
    forms: Forms, process: Process
) -> None:
    forms.calibrate(("h",), process)
    first = forms.of(SEQUENTIAL, process)
    forms.calibrate(("h", "g"), process)
    second = forms.of(SEQUENTIAL, process)
    assert second is not first
    assert set(second.observations.moments) == {"h", "g"}
