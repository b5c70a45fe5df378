from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.errors import RuntimeCrashed, RuntimeOutOfMemory, RuntimeRefused
from packlight.graph.model import Model, load_model
from packlight.measure.outputs import equal_outputs
from packlight.plan import trials
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.recipe import Recipe
from packlight.samples import open_samples, split_samples
from packlight.targets import find_target

FLOAT16 = Recipe(layers=(("h", "float16"), ("g", "float16"), ("y", "float16")))
INT8 = Recipe(layers=(("g", "weights-int8"),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, write_mlp: Callable[..., Path]) -> Model:
    return load_model(write_mlp(tmp_path_factory.mktemp("trials") / "net.onnx", hidden=64))


@pytest.fixture
def bench(model: Model, rows: NDArray[np.float32]) -> Iterator[Workbench]:
    samples = open_samples(rows, model.inputs)
    with Workbench(
        model, model.ir, samples, split_samples(samples), find_target("laptop"), max_drop=0.01
    ) as found:
        yield found


def test_a_recipe_is_made_into_a_file_once(bench: Workbench, model: Model) -> None:
    first = bench.evaluate(FLOAT16, "half")
    assert first.path.is_file()
    assert first.size_bytes == first.path.stat().st_size < 0.7 * model.size_bytes
    assert first.metric is not None
    assert first.noise_db > 50
    assert first.drop <= 0.02
    assert bench.evaluate(FLOAT16, "another label") is first
    assert bench.tried == [first]


def test_figures_come_from_the_search_samples(bench: Workbench) -> None:
    found = bench.evaluate(FLOAT16, "half")
    assert bench.search_indices() == bench.split.search
    assert set(bench.search_indices()).isdisjoint(bench.split.proof)
    assert found.metric is not None and found.metric.samples == 50


def test_a_trial_on_some_samples_is_not_kept(bench: Workbench) -> None:
    some = bench.evaluate(INT8, "alone", indices=bench.search_indices()[:10])
    assert some.metric is not None and some.metric.samples == 10
    assert bench.tried == []
    assert not some.path.parent.exists()
    whole = bench.evaluate(INT8, "whole")
    again = bench.evaluate(INT8, "alone", indices=bench.search_indices()[:10])
    assert whole.path.is_file()
    assert again.metric == some.metric
    assert bench.tried == [whole]


@pytest.mark.parametrize("error", [RuntimeRefused, RuntimeCrashed, RuntimeOutOfMemory])
def test_a_file_that_cannot_be_run_is_a_failed_trial(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    before = bench.process
    with monkeypatch.context() as patch:

        def fail(*args: object, **options: object) -> None:
            raise error("It would not.")

        patch.setattr(bench, "quality", fail)
        found = bench.evaluate(FLOAT16, "half")
    assert found.failure == "It would not."
    assert (found.drop, found.noise_db) == (float("inf"), float("-inf"))
    assert bench.tried == [found]
    # After anything but a plain refusal the process is not trusted any more.
    assert (bench.process is before) == (error is RuntimeRefused)
    assert bench.evaluate(INT8, "next").metric is not None


def test_candidates_are_timed_against_the_original(bench: Workbench) -> None:
    made = [bench.evaluate(FLOAT16, "half"), bench.evaluate(INT8, "whole")]
    timed = bench.rank(made, seconds=0.2)
    assert [one.label for one in timed] == ["half", "whole"]
    for one in timed:
        assert one.latency_ms is not None and one.latency_ms > 0
        assert one.latency_ratio is not None and one.latency_interval_95 is not None
        assert one.latency_interval_95[0] <= one.latency_ratio <= one.latency_interval_95[1]
    assert bench.tried == timed


def test_one_candidate_that_cannot_be_timed_does_not_take_the_others_along(
    bench: Workbench,
) -> None:
    made = [bench.evaluate(FLOAT16, "half"), bench.evaluate(INT8, "whole")]
    made[0].path.write_bytes(b"broken")
    half, whole = bench.rank(made, seconds=0.2)
    assert half.failure and half.latency_ratio is None
    assert not whole.failure and whole.latency_ratio is not None
    assert bench.tried == [half, whole]


def test_nothing_is_left_when_the_bench_is_closed(
    model: Model, rows: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = open_samples(rows, model.inputs)
    arguments: tuple[Any, ...] = (model, model.ir, samples, split_samples(samples))
    with Workbench(*arguments, find_target("laptop")) as bench:
        bench.make(FLOAT16, "half")
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
    broken = replace(model, source=tmp_path / "gone.onnx")
    with pytest.raises(RuntimeRefused), Workbench(broken, *arguments[1:], find_target("laptop")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_do_not_fit_into_the_cache_are_computed_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.quality(bench.model.source, bench.split.proof)
    monkeypatch.setattr(trials, "CACHE_BYTES", 10)
    again = bench.quality(bench.model.source, bench.split.proof[::-1])
    assert first.drop == again.drop == 0
    assert first.samples == again.samples == len(bench.split.proof)


def test_a_trial_that_was_not_run_has_no_figures() -> None:
    empty = Tried("label", Recipe(), Path("x"), (), 1)
    assert (empty.drop, empty.noise_db) == (float("inf"), float("-inf"))


FLOATS = np.linspace(-2, 2, 100, dtype=np.float32).reshape(4, 25)


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        ({"y": FLOATS}, True),
        ({"y": FLOATS * np.float32(1.0005)}, True),
        ({"y": FLOATS + np.float32(0.0005)}, True),
        ({"y": FLOATS + np.float32(0.01)}, False),
        ({"y": FLOATS.astype(np.float64)}, False),
        ({"y": FLOATS.T}, False),
        ({"z": FLOATS}, False),
        ({"y": FLOATS, "z": FLOATS}, False),
        ({"y": np.where(FLOATS > 1.9, np.float32(np.nan), FLOATS)}, False),
    ],
)
def test_outputs_are_equal_within_the_tolerance_of_floats(
    other: dict[str, NDArray[Any]], equal: bool
) -> None:
    assert equal_outputs({"y": FLOATS}, other) is equal


def test_whole_numbers_and_nan_must_be_the_same() -> None:
    whole = np.arange(5)
    assert equal_outputs({"y": whole}, {"y": whole.copy()})
    assert not equal_outputs({"y": whole}, {"y": whole + (whole == 4)})
    gaps = np.array([1, np.nan, np.inf])
    assert equal_outputs({"y": gaps}, {"y": gaps.copy()})
    assert not equal_outputs({"y": gaps}, {"y": np.array([1, np.nan, -np.inf])})


def test_two_workers_find_what_one_finds(
    model: Model, rows: NDArray[np.float32], bench: Workbench
) -> None:
    words = ("float16", "weights-int8", "weights-int4", "weights-int2")
    recipes = [
        (Recipe(layers=(("h", word), ("g", word), ("y", "float16"))), word) for word in words
    ]
    alone = bench.evaluate_many(recipes)
    samples = open_samples(rows, model.inputs)
    arguments: tuple[Any, ...] = (model, model.ir, samples, split_samples(samples))
    with Workbench(*arguments, find_target("laptop"), max_drop=0.01, workers=2) as other:
        together = other.evaluate_many(recipes)
        assert other.tried == together
    for one, two in zip(alone, together, strict=True):
        assert (one.label, one.recipe, one.size_bytes) == (two.label, two.recipe, two.size_bytes)
        assert one.drop == two.drop and not two.failure
        assert one.noise_db == pytest.approx(two.noise_db, abs=0.01)
