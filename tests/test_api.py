"""The whole path, on the demo model and on models of a few rows."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import packlight
from packlight.errors import (
    RuntimeCrashed,
    UnsupportedOperator,
    UnusableModel,
    UnusableOutput,
    UnusableRecipe,
    UnusableSamples,
    WrongUsage,
)
from packlight.graph.layers import find_layers
from packlight.measure.evidence import Budget, LatencyEvidence
from packlight.plan import judge, mixed, search, trials
from packlight.plan.budget import limits_of
from packlight.plan.solve import Limits
from packlight.recipe import CHOICES, Recipe, read_recipe
from packlight.transport import packed_size

Array = NDArray[Any]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def packed(demo: Path) -> packlight.Result:
    """The demo, once for all tests."""
    found = packlight.compress(demo / "digits.onnx", data=demo / "digits.npz")
    assert isinstance(found, packlight.Result)
    return found


@pytest.fixture(scope="module")
def folder(packed: packlight.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's output folder."""
    return packed.save(tmp_path_factory.mktemp("demo") / "packed")


@pytest.fixture
def mlp(tmp_path: Path, write_mlp: Write) -> Path:
    return write_mlp(tmp_path / "net.onnx")


def compress(model: Path, **options: Any) -> packlight.Result:
    found = packlight.compress(model, **options)
    assert isinstance(found, packlight.Result)
    return found


# The demo ----------------------------------------------------------------------------------------


def test_the_demo_meets_its_budget(packed: packlight.Result) -> None:
    found = packed.evidence
    assert (packed.verdict, packed.exit_status) == ("met", 0)
    assert found.metric is not None
    assert found.metric.name == "top-1 accuracy"
    assert found.metric.samples == 450
    assert found.metric.original > 0.97
    assert found.metric.drop <= 0.01
    assert found.metric.noise_db is not None and found.metric.noise_db > 30
    assert found.size_bytes.compressed < 0.35 * found.size_bytes.original
    assert [trial.chosen for trial in found.trials].count(True) == 1
    assert len(found.trials) > 4


def test_the_result_prints_its_table(packed: packlight.Result) -> None:
    text = str(packed)
    assert text.startswith("Budget met.")
    assert "Top-1 accuracy" in text
    assert "Latency, 1 thread" in text
    assert packed._repr_html_().startswith("<pre>Budget met.")


def test_the_folder_holds_its_files_and_a_model_that_runs(
    packed: packlight.Result, folder: Path, demo: Path
) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "golden.npz",
        "manifest.json",
        "model.onnx",
        "recipe.yaml",
        "report.html",
        "report.json",
        "verify.html",
    }
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    size = (folder / "model.onnx").stat().st_size
    assert size == packed.evidence.size_bytes.compressed
    assert packed.evidence.size_bytes.original == (demo / "digits.onnx").stat().st_size
    original, compressed = (
        packlight.load(demo / "digits.onnx"),
        packlight.load(folder / "model.onnx"),
    )
    assert compressed.inputs == original.inputs
    assert [spec.name for spec in compressed.outputs] == [spec.name for spec in original.outputs]
    assert "Budget met" in (folder / "report.html").read_text()


def test_the_folder_is_proven_by_what_it_holds(folder: Path, demo: Path) -> None:
    found = packlight.verify(folder, original=demo / "digits.onnx")
    assert [(one.name, one.status) for one in found.checks[:4]] == [
        ("manifest", "passed"),
        ("files", "passed"),
        ("answers", "passed"),
        ("original", "passed"),
    ]
    assert "golden.npz in this folder holds 8 of your samples" in (
        folder / "report.json"
    ).read_text(encoding="utf-8")


def test_the_report_keeps_its_contract(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    number, text, pair = (int, float), str, {"original": int, "compressed": int}
    contract: dict[str, Any] = {
        "schema": int,
        "verdict": text,
        "reason": text,
        "budget": {"max_drop": number, "max_size_bytes": None, "max_latency_ms": None},
        "metric": {
            "name": text,
            "samples": int,
            "original": number,
            "compressed": number,
            "drop": number,
            "drop_interval_95": [number, number],
            "proven": bool,
        },
        "size_bytes": pair,
        "latency_ms": {
            "runtime": text,
            "original": number,
            "compressed": number,
            "ratio_interval_95": [number, number],
        },
        "peak_memory_bytes": pair,
        "environment": {"packlight": text, "runtime": text},
        "seed": int,
        "seconds": number,
    }
    check(report, contract, "report")
    assert report["schema"] == 1
    assert report["verdict"] in ("met", "best-effort", "not-worth-it")
    assert report["latency_ms"]["runtime"].startswith("onnxruntime ")
    assert report["latency_ms"]["runtime"].endswith(" CPU, 1 thread")
    assert report["seconds"] > 0
    for layer in report["layers"]:
        check(layer, {"name": text, "op": text, "choice": text, "reason": text}, "layer")
        assert layer["choice"] in CHOICES
        assert layer["error_db"] is None or isinstance(layer["error_db"], float)
    for skipped in report["not_compressed"]:
        check(skipped, {"name": text, "reason": text}, "not_compressed")


def check(found: Any, wanted: Any, place: str) -> None:
    """Whether a value has the keys and types of a contract; keys may be added."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), place
        for key, inner in wanted.items():
            assert key in found, f"{place} lacks {key}"
            check(found[key], inner, f"{place}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), place
        for one, inner in zip(found, wanted, strict=True):
            check(one, inner, place)
    elif wanted is None:
        assert found is None, place
    else:
        assert isinstance(found, wanted), f"{place} is {found!r}"
        assert isinstance(found, bool) == (wanted is bool), place


def test_compressed_and_kept_and_skipped_are_all_layers(
    packed: packlight.Result, demo: Path
) -> None:
    found = packed.evidence
    model = packlight.load(demo / "digits.onnx")
    assert [layer.name for layer in found.layers] == [layer.name for layer in find_layers(model.ir)]
    compressed = {layer.name for layer in found.layers if layer.choice != "float32"}
    left = {skipped.name for skipped in found.not_compressed}
    assert compressed and compressed.isdisjoint(left)
    assert compressed | left >= {layer.name for layer in found.layers}
    assert all(skipped.reason for skipped in found.not_compressed)
    assert all(layer.reason for layer in found.layers if layer.choice == "float32")
    assert dict(packed.recipe.layers) == {layer.name: layer.choice for layer in found.layers}
    for layer in found.layers:
        assert layer.bytes_original > 0
        assert (layer.bytes_compressed < layer.bytes_original) == (layer.choice != "float32")
        assert layer.ms_original is not None


def test_the_recipe_gives_the_same_bytes_again(
    packed: packlight.Result, folder: Path, demo: Path, tmp_path: Path
) -> None:
    assert read_recipe(folder / "recipe.yaml") == packed.recipe
    again = compress(
        demo / "digits.onnx", data=demo / "digits.npz", recipe=folder / "recipe.yaml"
    ).save(tmp_path / "again")
    for name in ("model.onnx", "recipe.yaml"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_an_output_folder_is_replaced_only_when_forced(
    packed: packlight.Result, tmp_path: Path
) -> None:
    out = packed.save(tmp_path / "out")
    (out / "mine.txt").write_text("kept?")
    with pytest.raises(UnusableOutput, match="--force"):
        packed.save(out)
    assert (out / "mine.txt").exists()
    packed.save(out, force=True)
    assert len(list(out.iterdir())) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Determinism -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    first = compress(mlp, data=rows, seed=7).save(tmp_path / "a")
    second = compress(mlp, data=rows, seed=7).save(tmp_path / "b")
    for name in ("model.onnx", "recipe.yaml", "golden.npz", "verify.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_recipe_brings_its_seed(mlp: Path, rows: Array, tmp_path: Path) -> None:
    recipe = Recipe(layers=(("h", "int8"), ("g", "int8"), ("y", "int8")), seed=7)
    first = compress(mlp, data=rows, recipe=recipe).save(tmp_path / "a")
    again = compress(mlp, data=rows, recipe=first / "recipe.yaml").save(tmp_path / "b")
    other = compress(mlp, data=rows, recipe=replace(recipe, seed=0)).save(tmp_path / "c")
    for name in ("model.onnx", "recipe.yaml"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
        assert (first / name).read_bytes() != (other / name).read_bytes(), name


# Without samples ---------------------------------------------------------------------------------


def test_without_samples_accuracy_is_not_claimed(mlp: Path, tmp_path: Path) -> None:
    found = compress(mlp)
    assert found.verdict in ("best-effort", "not-worth-it")
    assert found.evidence.metric is None
    if found.verdict == "best-effort":
        assert found.evidence.reason.startswith("accuracy could not be measured")
    assert "could not be measured" in str(found).splitlines()[0]
    assert all(trial.drop is None for trial in found.evidence.trials)
    assert not {choice for _, choice in found.recipe.layers} & {"int8", "int8-wide"}
    out = found.save(tmp_path / "out")
    assert json.loads((out / "report.json").read_text())["metric"] is None


# Never a success that is none --------------------------------------------------------------------


def slow_figure(*paths: Path, threads: int, **options: object) -> LatencyEvidence:
    return LatencyEvidence("onnxruntime", threads, 1.0, 1.5, 1.5, (1.4, 1.6))


def test_a_slower_file_is_not_worth_it(
    mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "measure_latency", slow_figure_of)
    found = compress(mlp, data=rows, max_drop=0.5)
    assert (found.verdict, found.exit_status) == ("not-worth-it", 4)
    assert "slower" in found.evidence.reason
    assert str(found).startswith("Not worth it")


def slow_figure_of(original: Path, compressed: Path, feeds: object, **options: Any) -> Any:
    return slow_figure(threads=options["threads"])


def test_a_file_that_cannot_shrink_is_not_worth_it(tmp_path: Path, write_model: Write) -> None:
    model = write_model(tmp_path / "net.onnx", "net (float[n, 4] x) => (float[n, 4] y) {y=Relu(x)}")
    found = compress(model, data=np.ones((8, 4), np.float32))
    assert found.verdict == "not-worth-it"
    assert "not smaller" in found.evidence.reason
    assert found.evidence.layers == ()


def test_a_file_that_got_worse_does_not_meet_the_budget(
    steady: None, mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is on the file that is handed over, whatever the search believed of it."""
    quality = trials.Workbench.quality

    def wrong(self: Any, path: Path, indices: Any, **options: Any) -> Any:
        found = quality(self, path, indices, **options)
        if "on_note" in options:  # the proof
            found = replace(found, compressed=0.5, drop=0.5, drop_interval_95=(0.4, 0.6))
        return replace(found, proven="on_note" not in options)

    monkeypatch.setattr(trials.Workbench, "quality", wrong)
    found = compress(mlp, data=rows)
    assert found.verdict != "met"


def test_the_search_looks_for_nothing_slower_or_larger_than_the_original() -> None:
    for budget, size, latency in (
        (Budget(), 999, 1.0),
        (Budget(0.01, 400, 5.0), 400, 0.25),
        (Budget(0.01, 4000, 50.0), 999, 1.0),
    ):
        assert limits_of(budget, 1000, 20.0) == Limits(budget.max_drop, size, latency)


# Budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"max_size": "100B"}, "size is"),
        ({"max_latency": "0.01%"}, "latency is"),
        ({"max_drop": 0, "max_size": "3%"}, "size is"),
    ],
)
def test_a_budget_out_of_reach_is_best_effort(
    steady: None, mlp: Path, rows: Array, budget: dict[str, Any], words: str
) -> None:
    found = compress(mlp, data=rows, **budget)
    assert (found.verdict, found.exit_status) == ("best-effort", 3)
    assert re.search(words, found.evidence.reason)


@pytest.mark.parametrize("limit", [0.45, 0.6])
def test_a_size_within_reach_is_kept(steady: None, mlp: Path, rows: Array, limit: float) -> None:
    found = compress(mlp, data=rows, max_drop=0.9, max_size=f"{limit:%}")
    assert found.evidence.size_bytes.compressed <= limit * found.evidence.size_bytes.original
    assert found.verdict == "met"


def test_no_drop_allowed_is_kept_on_the_search_samples(
    steady: None, mlp: Path, rows: Array
) -> None:
    found = compress(mlp, data=rows, max_drop=0)
    (chosen,) = (trial for trial in found.evidence.trials if trial.chosen)
    assert chosen.drop is not None and chosen.drop <= 0
    assert found.evidence.budget.max_drop == 0


@pytest.mark.parametrize(
    "budget", [{"max_drop": "5MB"}, {"max_size": "0"}, {"max_latency": "fast"}, {"max_drop": 3}]
)
def test_a_budget_that_makes_no_sense_is_told_before_the_model_is_read(
    tmp_path: Path, budget: dict[str, Any]
) -> None:
    with pytest.raises(WrongUsage, match=next(iter(budget)).replace("_", "-")):
        packlight.compress(tmp_path / "absent.onnx", **budget)


# What people have as samples ---------------------------------------------------------------------


def labels_of(model: Path, rows: Array) -> Array:
    """What the model itself says, with every tenth answer wrong."""
    from packlight.runtime import Process

    with Process() as process:
        labels = process.load(model).run({"x": rows})["y"].argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 4
    return labels


def test_labels_make_accuracy_the_metric(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", x=rows, labels=labels_of(mlp, rows))
    found = compress(mlp, data=tmp_path / "s.npz", max_drop=0.2).evidence.metric
    assert found is not None
    assert found.name == "top-1 accuracy"
    assert found.original == pytest.approx(0.9, abs=0.06)


class Tensor:
    """As much of a PyTorch tensor as packlight may ask for."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = array.shape
        self.requires_grad = True

    def detach(self) -> Tensor:
        found = Tensor(self.array)
        found.requires_grad = False
        return found

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> Array:
        assert not self.requires_grad
        return self.array


class Loader:
    """Batches of (pictures, labels), as a PyTorch DataLoader gives them."""

    def __init__(self, rows: Array, labels: Array) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return -(-len(self.rows) // 32)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.rows), 32):
            part = slice(start, start + 32)
            yield Tensor(self.rows[part]), Tensor(self.labels[part])


def test_a_data_loader_and_an_iterable_will_do(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    labels = labels_of(mlp, rows)
    recipe = Recipe(layers=(("h", "weights-int8"),))
    loaded = compress(mlp, data=Loader(rows, labels), recipe=recipe).evidence
    dictionaries = compress(mlp, data=({"x": row} for row in rows), recipe=recipe).evidence
    assert loaded.metric is not None and dictionaries.metric is not None
    assert (loaded.metric.name, loaded.metric.samples) == ("top-1 accuracy", 100)
    assert (dictionaries.metric.name, dictionaries.metric.samples) == ("top-1 agreement", 100)


def test_a_metric_of_ones_own(steady: None, mlp: Path, rows: Array, tmp_path: Path) -> None:
    def closeness(outputs: dict[str, Array], labels: Array | None) -> Array:
        return 10 - np.abs(outputs["y"]).mean(axis=1)

    recipe = Recipe(layers=(("h", "int8"), ("y", "float16")))
    found = compress(mlp, data=rows, metric=closeness, max_drop=2, recipe=recipe).evidence
    assert found.metric is not None
    assert found.metric.name == "closeness"
    assert found.budget.max_drop == 2
    code = (
        "import numpy as np\ndef score(outputs, labels):\n    return np.ones(len(outputs['y']))\n"
    )
    (tmp_path / "own.py").write_text(code)
    own = compress(mlp, data=rows, metric=f"{tmp_path}/own.py:score", recipe=recipe).evidence
    assert own.metric is not None
    assert (own.metric.name, own.metric.drop) == ("score", 0)


def test_a_batch_fixed_at_one(steady: None, tmp_path: Path, write_mlp: Write, rows: Array) -> None:
    model = write_mlp(tmp_path / "net.onnx", rows="1")
    found = compress(model, data=rows, max_drop=0.2)
    assert found.verdict in ("met", "best-effort")
    assert found.evidence.metric is not None and found.evidence.metric.samples == 100
    assert packlight.load(found.model).inputs[0].shape == (1, 16)


def test_several_inputs(steady: None, tmp_path: Path, write_model: Write) -> None:
    draw = np.random.default_rng(0).standard_normal
    model = write_model(
        tmp_path / "net.onnx",
        """net (float[n, 8] left, float[n, 8] right, bool[n, 1] flag) => (float[n, 32] y) {
            both = Concat <axis = 1> (left, right)
            h = MatMul(both, w)
            zero = Constant <value = float {0}> ()
            y = Where(flag, h, zero)
        }""",
        w=draw((16, 32)).astype(np.float32),
    )
    data = {
        "left": draw((40, 8)).astype(np.float32),
        "right": draw((40, 8)).astype(np.float32),
        "flag": np.arange(40)[:, None] % 3 > 0,
    }
    found = compress(model, data=data, max_drop=0.1)
    assert found.evidence.metric is not None
    assert found.evidence.metric.compressed > 0.9
    assert len(found.evidence.inputs) == 3
    del data["right"]
    with pytest.raises(UnusableSamples, match="right"):
        packlight.compress(model, data=data)


def test_recurrent_states_are_begun_at_zero(
    steady: None, tmp_path: Path, write_model: Write
) -> None:
    draw = np.random.default_rng(0).standard_normal
    model = write_model(
        tmp_path / "net.onnx",
        """net (float[5, 1, 8] x, float[1, 1, 16] h0, float[1, 1, 16] c0)
            => (float[5, 1, 1, 16] y, float[1, 1, 16] hn, float[1, 1, 16] cn) {
            y, hn, cn = LSTM <hidden_size = 16> (x, w, r, , , h0, c0)
        }""",
        w=0.3 * draw((1, 64, 8)).astype(np.float32),
        r=0.3 * draw((1, 64, 16)).astype(np.float32),
    )
    found = compress(model, data={"x": draw((20, 5, 1, 8)).astype(np.float32)}, max_drop=0.2)
    assert found.evidence.metric is not None
    assert any("h0" in note for note in found.evidence.notes)
    assert packlight.load(found.model).inputs == packlight.load(model).inputs


# What goes wrong in the middle -------------------------------------------------------------------


def test_a_candidate_whose_file_is_broken_does_not_end_the_run(
    steady: None, mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = trials.save_model
    made: list[Path] = []

    def broken(model: Any, path: Path, **options: Any) -> tuple[Path, ...]:
        files = save(model, path, **options)
        made.append(path)
        if len(made) == 2:
            path.write_bytes(path.read_bytes()[:-200])
        return files

    monkeypatch.setattr(trials, "save_model", broken)
    found = compress(mlp, data=rows, max_drop=0.5)
    assert found.verdict in ("met", "best-effort")
    failed = [trial for trial in found.evidence.trials if trial.note]
    assert len(failed) == 1
    assert failed[0].drop is None and not failed[0].chosen


def test_a_crash_of_the_runtime_does_not_end_the_run(
    steady: None, mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, victims = trials.Process.load, []

    def crash(self: Any, path: Path, **options: Any) -> Any:
        session = load(self, path, **options)
        if path.parent.name == "1" and not victims:
            victims.append(path)
            self._channel._process.kill()
        return session

    monkeypatch.setattr(trials.Process, "load", crash)
    found = compress(mlp, data=rows, max_drop=0.5)
    assert victims
    assert found.verdict in ("met", "best-effort")
    assert sum(bool(trial.note) for trial in found.evidence.trials) == 1


def test_a_recipe_whose_file_does_not_run_is_told(
    mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object, **options: object) -> None:
        raise RuntimeCrashed("The runtime's process died.")

    monkeypatch.setattr(trials.Workbench, "quality", crash)
    with pytest.raises(WrongUsage, match=r"does not run.*process died"):
        packlight.compress(mlp, data=rows, recipe=Recipe(layers=(("h", "int8"),)))


def test_an_error_leaves_no_folder_behind(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(UnusableSamples):
        packlight.compress(mlp, data=np.ones((3, 5), np.float32))
    with pytest.raises(UnusableRecipe):
        packlight.compress(
            mlp, data=np.ones((3, 16), np.float32), recipe=Recipe(layers=(("nope", "int8"),))
        )
    assert list(scratch.iterdir()) == []


def test_a_result_takes_its_folder_along(
    steady: None, mlp: Path, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    found = compress(mlp, data=rows, recipe=Recipe(layers=(("h", "float16"),)))
    assert found.model.is_file()
    assert list(scratch.iterdir()) == [found.model.parents[1]]
    del found
    assert list(scratch.iterdir()) == []


# Recipes and targets -----------------------------------------------------------------------------


def test_a_recipe_is_done_and_not_searched(steady: None, mlp: Path, rows: Array) -> None:
    recipe = Recipe(layers=(("h", "int8"), ("g", "int8"), ("y", "weights-int8")))
    found = compress(mlp, data=rows, recipe=recipe)
    assert found.recipe == recipe
    assert [layer.choice for layer in found.evidence.layers] == ["int8", "int8", "weights-int8"]
    assert [trial.label for trial in found.evidence.trials] == ["the given recipe"]


def test_a_layer_that_a_recipe_does_not_name_is_accounted_for(
    steady: None, mlp: Path, rows: Array
) -> None:
    found = compress(mlp, data=rows, recipe=Recipe(layers=(("h", "int8"),))).evidence
    assert [layer.choice for layer in found.layers] == ["int8", "float32", "float32"]
    assert [skipped.name for skipped in found.not_compressed] == ["g", "y"]
    assert all("recipe" in skipped.reason for skipped in found.not_compressed)


def test_a_choice_that_a_layer_cannot_have_is_refused(tmp_path: Path, write_model: Write) -> None:
    """What was asked for and cannot be is an error: nothing is left out silently."""
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    text = "net (float[n, 3, 8, 8] x) => (float[n, 16, 6, 6] y) { y = Conv(x, w) }"
    model = write_model(tmp_path / "net.onnx", text, w=weight)
    data = np.ones((8, 3, 8, 8), np.float32)
    for choice in ("weights-int4-blocks", "int8-dynamic"):
        with pytest.raises((UnusableRecipe, WrongUsage), match=f"'y'.*{choice}|{choice}.*'y'"):
            packlight.compress(model, data=data, recipe=Recipe(layers=(("y", choice),)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "lapton"}, WrongUsage, "did you mean 'laptop'"),
        ({"metric": "top7"}, WrongUsage, "top5"),
        ({"recipe": Recipe(layers=(("hh", "int8"),))}, UnusableRecipe, "'hh'.*did you mean"),
        ({"recipe": "absent.yaml"}, UnusableRecipe, "absent.yaml"),
        ({"preprocess": "imgnet"}, WrongUsage, "imagenet"),
        ({"metric": "top1"}, WrongUsage, "labels"),
    ],
)
def test_options_that_make_no_sense(
    mlp: Path, rows: Array, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        packlight.compress(mlp, data=rows, **options)


def test_a_dry_run_only_says_what_would_happen(mlp: Path, rows: Array) -> None:
    found = packlight.compress(mlp, data=rows, max_size="1B", dry_run=True)
    assert isinstance(found, packlight.Forecast)
    assert found.layers == {"Gemm": 2, "MatMul": 1}
    assert any("best-effort" in note for note in found.notes)


# Two files side by side, and one from inside -----------------------------------------------------


def test_compare_reads_both_files(mlp: Path, rows: Array, tmp_path: Path) -> None:
    packed = compress(mlp, data=rows, recipe=Recipe(layers=(("h", "int8"), ("y", "int8"))))
    found = packlight.compare(mlp, packed.model, data=rows)
    metric, size = found.figures.metric, found.figures.size
    assert metric is not None and metric.samples == 200
    assert metric.compressed > 0.9
    assert (size.original, size.compressed) == (
        mlp.stat().st_size,
        packed.model.stat().st_size,
    )
    assert found.figures.latency.threads == 1
    assert "top-1 agreement (200 samples)" in str(found)
    plain = found.evidence_json()
    assert json.loads(json.dumps(plain, allow_nan=False))["metric"]["samples"] == 200
    same = packlight.compare(mlp, mlp, data=rows).figures.metric
    assert same is not None and same.drop == 0


def swapped(write_model: Write, path: Path, text: str) -> Path:
    shape = (16, 4)
    return write_model(path, text, w=np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("net (float[n, 16] z) => (float[n, 4] y) { y = MatMul(z, w) }", "different inputs"),
        ("net (float[n, 8, 16] x) => (float[n, 8, 4] y) { y = MatMul(x, w) }", "different inputs"),
        (
            "net (double[n, 16] x) => (float[n, 4] y) { f = Cast<to=1>(x)\n y = MatMul(f, w) }",
            "different inputs",
        ),
        ("net (float[n, 16] x) => (float[n, 4] q) { q = MatMul(x, w) }", "outputs"),
    ],
)
def test_models_that_do_not_belong_together_are_not_compared(
    mlp: Path, rows: Array, tmp_path: Path, write_model: Write, text: str, words: str
) -> None:
    other = swapped(write_model, tmp_path / "other.onnx", text)
    with pytest.raises(WrongUsage, match=words):
        packlight.compare(mlp, other, data=rows)


def test_inspect_says_where_bytes_and_milliseconds_are(mlp: Path) -> None:
    found = packlight.inspect(mlp)
    assert [(layer.op, layer.bytes, layer.macs) for layer in found.layers] == [
        ("Gemm", 4 * 4096, 4096),
        ("Gemm", 4 * 65536, 65536),
        ("MatMul", 4 * 1024, 1024),
    ]
    assert found.size_bytes == mlp.stat().st_size
    # The nodes of this file have no names, and are timed all the same.
    assert all(layer.ms is not None and layer.ms > 0 for layer in found.layers)


def test_load_gives_the_model(mlp: Path) -> None:
    found = packlight.load(mlp)
    assert str(found.inputs[0]) == "x: float32[n, 16]"
    with pytest.raises(UnusableModel):
        packlight.load(mlp.parent / "absent.onnx")


def test_progress_is_told(steady: None, mlp: Path, rows: Array) -> None:
    class Heard:
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.steps = 0
            self.points: list[tuple[str, int, float | None, bool]] = []

        def stage(self, name: str, total: int | None = None) -> None:
            self.stages.append(name)

        def step(self, detail: str = "", advance: int = 1) -> None:
            self.steps += 1

        def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
            self.points.append((choice, size_bytes, quality, kept))

    heard = Heard()
    recipe = Recipe(layers=(("h", "int8"),))
    result = compress(mlp, data=rows, progress=heard, recipe=recipe)
    (trial,) = result.evidence.trials
    (point,) = heard.points
    assert point[:2] == (trial.label, trial.size_bytes)
    assert point[2] == pytest.approx(1 - trial.drop)
    assert point[3] is (trial.drop <= 0.01)
    # Of made-up samples nobody knows what the quality is.
    unknown = Heard()
    compress(mlp, progress=unknown, recipe=recipe)
    assert unknown.points == [(trial.label, trial.size_bytes, None, True)]
    assert heard.stages[0] == "reading the model and the samples"
    assert heard.stages[-1] == "measuring latency and memory"
    assert heard.steps > 3


# Presets, downloads, rules -----------------------------------------------------------------------


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a few choices, and two rounds."""
    words = ("float32", "int8", "int4", "weights-int3")
    monkeypatch.setattr(search, "candidate_words", lambda wish: words)
    monkeypatch.setattr(mixed, "ROUNDS", 2)


@pytest.fixture
def zipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials packed in no time, a little larger."""

    def size(files: tuple[Path, ...], **options: object) -> int:
        return sum(len(zlib.compress(file.read_bytes(), 9)) for file in files)

    monkeypatch.setattr(trials, "packed_size", size)


def test_smallest_packs_the_demo_smaller_and_keeps_the_drop(
    steady: None, few_words: None, zipped: None, packed: packlight.Result, demo: Path
) -> None:
    found = compress(demo / "digits.onnx", data=demo / "digits.npz", preset="smallest").evidence
    assert found.metric is not None and found.metric.drop <= 0.01
    assert found.verdict == "met"
    assert found.packed_bytes is not None
    assert found.packed_bytes < 0.7 * packed_size([packed.model])


def test_a_download_is_limited(
    steady: None, few_words: None, zipped: None, mlp: Path, rows: Array
) -> None:
    found = compress(mlp, data=rows, max_download="16%", max_drop=0.2)
    assert found.evidence.budget.max_download_bytes == round(0.16 * mlp.stat().st_size)
    assert found.evidence.packed_bytes is not None
    assert found.evidence.packed_bytes <= 0.16 * mlp.stat().st_size
    folder = found.save(mlp.parent / "out")
    packlight.pack(folder, folder.parent / "net.pl")
    written = (folder.parent / "net.pl").stat().st_size
    assert 0.8 * found.evidence.packed_bytes < written < found.evidence.packed_bytes


def test_a_budget_beyond_reach_ends_best_effort(
    steady: None, few_words: None, zipped: None, mlp: Path, rows: Array
) -> None:
    """What comes nearest is given: smaller than 8 bits make it."""
    found = compress(mlp, data=rows, max_size="5%")
    assert (found.verdict, found.exit_status) == ("best-effort", 3)
    size = found.evidence.size_bytes
    assert size.compressed < 0.2 * size.original
    assert size.compressed == min(
        trial.size_bytes for trial in found.evidence.trials if trial.drop is not None
    )


def test_lossless_gives_the_same_outputs(steady: None, mlp: Path, rows: Array) -> None:
    found = compress(mlp, data=rows, preset="lossless")
    assert {layer.choice for layer in found.evidence.layers} == {"float32"}
    assert found.evidence.metric is not None and found.evidence.metric.drop == 0


def test_pins_and_forbidden_choices_reach_the_result(steady: None, mlp: Path, rows: Array) -> None:
    found = compress(
        mlp, data=rows, max_drop=0.5, pin={"g": "float16"}, forbid=("int8", "weights-int8")
    )
    words = dict(found.recipe.layers)
    assert words["g"] == "float16"
    assert {"int8", "weights-int8"}.isdisjoint(words.values())


def test_a_recipe_in_sequence_gives_the_same_bytes_twice(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    layers = "layers: {h: weights-int4, g: int4, y: weights-int3}"
    made = []
    for sequential in ("true", "true", "false"):
        recipe.write_text(f"sequential: {sequential}\n{layers}\n")
        found = compress(mlp, data=rows, recipe=recipe)
        made.append(found.model.read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers:\n  h: int8\n  gg: int8\n", r"line 3: .*'gg'.*did you mean 'g'"),
        ("layers:\n  h: int8\npins:\n  gg: int8\n", r"line 4: .*'gg'.*did you mean 'g'"),
        ("layers:\n  hh: int8\npins:\n  g: int8\n", r"line 2: .*'hh'.*did you mean 'h'"),
    ],
)
def test_a_recipe_for_another_model_is_told_by_its_line(
    mlp: Path, rows: Array, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UnusableRecipe, match=words):
        packlight.compress(mlp, data=rows, recipe=path)


# Fewer channels ----------------------------------------------------------------------------------


def test_pruning_is_in_the_recipe_and_the_report_and_done_again(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    found = compress(mlp, data=rows, prune="30%", max_drop=0.5)
    thinning = found.evidence.thinning
    assert thinning is not None
    assert 0.28 < 1 - thinning.macs_left / thinning.macs_original < 0.5
    assert (found.recipe.channels or found.recipe.ranks) and found.recipe.heal_steps == 0
    folder = found.save(tmp_path / "first")
    total = sum(layer.parameters for layer in find_layers(packlight.load(found.model).ir))
    whole = sum(layer.parameters for layer in find_layers(packlight.load(mlp).ir))
    assert total < 0.8 * whole
    again = compress(mlp, data=rows, recipe=folder / "recipe.yaml", max_drop=0.5)
    assert again.model.read_bytes() == found.model.read_bytes()
    assert again.recipe.channels == found.recipe.channels
    assert again.recipe.ranks == found.recipe.ranks
    before = sum(layer.bytes_original for layer in found.evidence.layers)
    assert before == sum(layer.bytes for layer in find_layers(packlight.load(mlp).ir))


def test_ranks_of_a_recipe_are_done_again(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    """Alone, with a choice for a part, and in the report, where the bytes add up."""
    (name, shape), *_ = [
        (one.name, one.weight_shape) for one in find_layers(packlight.load(mlp).ir)
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"layers: {{{name}_b: int8}}\nranks: {{{name}: matrix 4}}\n")
    found = compress(mlp, data=rows, recipe=path, max_drop=0.5)
    names = {layer.name: layer for layer in found.evidence.layers}
    assert names[f"{name}_b"].choice == "int8" and names[f"{name}_a"].choice == "float32"
    assert 0 < names[f"{name}_a"].bytes_original < 4 * shape[0] * shape[1]
    before = sum(layer.bytes_original for layer in found.evidence.layers)
    assert before == sum(layer.bytes for layer in find_layers(packlight.load(mlp).ir))
    assert found.evidence.thinning is not None
    assert [one.name for one in found.evidence.thinning.ranks] == [name]
    folder = found.save(tmp_path / "first")
    again = compress(mlp, data=rows, recipe=folder / "recipe.yaml", max_drop=0.5)
    assert again.model.read_bytes() == found.model.read_bytes()
    assert again.recipe == found.recipe


def test_healing_is_done_again_by_its_steps(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    found = compress(mlp, data=rows, prune=0.3, heal_minutes=0.02, max_drop=0.5)
    thinning = found.evidence.thinning
    assert thinning is not None and thinning.heal_steps == found.recipe.heal_steps > 0
    assert thinning.loss_after is not None and thinning.loss_before is not None
    assert thinning.loss_after <= thinning.loss_before
    folder = found.save(tmp_path / "first")
    again = compress(mlp, data=rows, recipe=folder / "recipe.yaml", max_drop=0.5)
    assert again.model.read_bytes() == found.model.read_bytes()


def test_channels_of_a_recipe_that_is_searched_are_kept_to(
    steady: None, mlp: Path, rows: Array
) -> None:
    done = compress(mlp, data=rows, prune="30%", max_drop=0.5).recipe
    wish = replace(done, forbid=("float16",))
    found = compress(mlp, data=rows, recipe=wish, max_drop=0.5)
    assert found.recipe.ranks == done.ranks
    assert found.recipe.channels == done.channels and found.evidence.thinning is not None


# Training with rounding in the loop --------------------------------------------------------------


def of_few_bits(mlp: Path, word: str) -> Recipe:
    layers = find_layers(packlight.load(mlp).ir)
    return Recipe(layers=tuple((layer.name, word) for layer in layers))


def test_a_recipe_of_few_bits_is_tuned_and_done_again(
    steady: None, mlp: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    rows = np.random.default_rng(3).standard_normal((1600, 16)).astype(np.float32)
    few = of_few_bits(mlp, "int2")
    plain = compress(mlp, data=rows, recipe=few, max_drop=0.5)
    found = compress(mlp, data=rows, recipe=few, heal_minutes=0.05, max_drop=0.5)
    tuning = found.evidence.tuning
    assert plain.evidence.tuning is None and plain.recipe.tune_steps == 0
    assert tuning is not None and tuning.steps == found.recipe.tune_steps > 0
    assert tuning.loss_before is not None and tuning.loss_after is not None
    assert tuning.kept and tuning.loss_after < tuning.loss_before
    assert [trial.label for trial in found.evidence.trials if trial.chosen] == [
        "the given recipe, tuned"
    ]
    assert "rounding in the loop" in str(found)
    folder = found.save(tmp_path / "first")
    assert "tune_steps" in (folder / "recipe.yaml").read_text()
    again = compress(mlp, data=rows, recipe=folder / "recipe.yaml", max_drop=0.5)
    assert again.model.read_bytes() == found.model.read_bytes()
    with pytest.raises(WrongUsage, match="tune_steps contradict"):
        compress(mlp, data=rows, recipe=folder / "recipe.yaml", heal_minutes=1)


def test_an_interrupted_call_goes_on(
    steady: None, mlp: Path, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from packlight.graph.torch import distill

    kept = tmp_path / "net.packed.healing"
    options = {"data": rows, "max_size": "30%", "heal_minutes": 0.1, "checkpoints": kept}
    step, counted = distill._Training.step, [0]

    def interrupted(self: Any, number: int, share: float) -> float:
        if share > 0.5:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(distill._Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress(mlp, **options)
    assert {file.name for file in kept.iterdir()} == {"chosen.json", "tuned.npz"}

    def counting(self: Any, number: int, share: float) -> float:
        counted[0] += 1
        assert share > 0.4  # what was done is not done again
        return step(self, number, share)

    monkeypatch.setattr(distill._Training, "step", counting)
    found = compress(mlp, **options)
    tuning = found.evidence.tuning
    assert tuning is not None and counted[0] < 0.7 * tuning.steps
    assert any("went on from step" in note for note in tuning.notes)
    assert found.evidence.trials[0].label == "chosen before the interruption"
    assert kept.is_dir()
    found.save(tmp_path / "net.packed")
    assert not kept.exists()


def test_what_another_call_left_is_not_used(
    steady: None, mlp: Path, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    kept = tmp_path / "left"
    options = {"max_size": "30%", "checkpoints": kept, "heal_minutes": 0.02}
    compress(mlp, data=rows, **options)
    assert (kept / "chosen.json").is_file()
    others = rows.copy()
    others[0, 0] += 1
    found = compress(mlp, data=others, **options)
    tuning = found.evidence.tuning
    assert tuning is not None and not any("went on" in note for note in tuning.notes)
    assert found.evidence.trials[0].label != "chosen before the interruption"
    (kept / "chosen.json").write_text("{")
    found = compress(mlp, data=others, **options)
    assert found.evidence.trials[0].label != "chosen before the interruption"


def test_tuning_without_samples_says_that_they_were_made_up(steady: None, mlp: Path) -> None:
    pytest.importorskip("torch")
    found = compress(mlp, recipe=of_few_bits(mlp, "weights-int2"), heal_minutes=0.03)
    tuning = found.evidence.tuning
    assert tuning is not None and tuning.loss_before is not None
    assert any("made-up samples" in note for note in tuning.notes)


def test_minutes_are_shared_with_what_pruning_leaves(
    steady: None, mlp: Path, rows: Array, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    found = compress(mlp, data=rows, prune="30%", heal_minutes=0.06, max_size="15%")
    assert found.recipe.heal_steps > 0 and found.recipe.tune_steps > 0
    thinning, tuning = found.evidence.thinning, found.evidence.tuning
    assert thinning is not None and thinning.heal_steps > 0 and tuning is not None
    folder = found.save(tmp_path / "first")
    again = compress(mlp, data=rows, recipe=folder / "recipe.yaml", max_size="15%")
    assert again.model.read_bytes() == found.model.read_bytes()


def test_an_operator_that_cannot_be_trained_is_named_and_the_file_stays(
    steady: None, mlp: Path, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from packlight.graph.torch import fake_quantized

    def refuse(*args: Any, **options: Any) -> None:
        raise UnsupportedOperator("Node 'r' (Relu): the model cannot be healed.")

    monkeypatch.setattr(fake_quantized, "to_torch", refuse)
    found = compress(mlp, data=rows, max_size="30%", heal_minutes=0.02)
    tuning = found.evidence.tuning
    assert tuning is not None and not tuning.kept and tuning.steps == 0
    assert any("Relu" in note for note in tuning.notes)
