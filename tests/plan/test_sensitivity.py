from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from packlight.errors import RuntimeRefused
from packlight.measure.evidence import MetricEvidence
from packlight.plan import sensitivity
from packlight.plan.sensitivity import SAMPLES, measure_sensitivity
from packlight.plan.tried import Tried
from packlight.recipe import Recipe

RECIPE = Recipe(
    layers=(("a", "int8"), ("b", "weights-int4-blocks"), ("c", "int8")), ranges="percentile", seed=5
)


@dataclass
class Bench:
    """Remembers what it was asked for; noise: by layer, None where it cannot be run."""

    noise: dict[str, float | None]
    asked: list[Recipe] = field(default_factory=list)

    def search_indices(self) -> tuple[int, ...]:
        return tuple(range(100, 200))

    def evaluate(self, recipe: Recipe, label: str, *, indices: Sequence[int]) -> Tried:
        assert tuple(indices) == tuple(range(100, 100 + SAMPLES))
        self.asked.append(recipe)
        ((name, _),) = recipe.layers
        if name not in self.noise:
            raise RuntimeRefused("no")
        made = Tried(label, recipe, Path("x"), (), 1)
        db = self.noise[name]
        if db is None:
            return made
        metric = MetricEvidence("m", 32, 1, 1, 0, (0, 0), proven=False, noise_db=db)
        return Tried(label, recipe, Path("x"), (), 1, metric=metric)


def test_each_layer_is_measured_alone_with_its_own_choice_and_the_recipes_settings() -> None:
    bench = Bench({"a": 30.0, "b": 10.0, "c": 40.0})
    found = measure_sensitivity(bench, RECIPE, ["c", "a", "b"])  # type: ignore[arg-type]
    assert found == {"a": 30.0, "b": 10.0, "c": 40.0}
    assert [recipe.layers for recipe in bench.asked] == [
        (("c", "int8"),),
        (("a", "int8"),),
        (("b", "weights-int4-blocks"),),
    ]
    assert all((one.ranges, one.seed) == ("percentile", 5) for one in bench.asked)


def test_a_layer_that_cannot_be_run_is_left_out() -> None:
    found = measure_sensitivity(Bench({"b": None, "c": 1.0}), RECIPE, ["a", "b", "c"])  # type: ignore[arg-type]
    assert found == {"c": 1.0}


def test_when_time_is_up_the_rest_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(sensitivity.time, "monotonic", lambda: float(next(clock)))
    bench = Bench({"a": 1.0, "b": 2.0, "c": 3.0})
    found = measure_sensitivity(bench, RECIPE, ["a", "b", "c"], seconds=25)  # type: ignore[arg-type]
    assert found == {"a": 1.0, "b": 2.0}
