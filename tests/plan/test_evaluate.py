from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from packlight.errors import RuntimeRefused, WrongUsage
from packlight.graph.model import load_model
from packlight.measure.quality import measure_quality
from packlight.plan.evaluate import (
    Evaluated,
    Evaluation,
    end_kept_child,
    evaluate_file,
    read_parts,
    try_file,
)
from packlight.plan.workers import run_tasks
from packlight.runtime import Process
from packlight.samples import batches_of, open_samples


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    end_kept_child()


def coarse(path: Path, out: Path, *, step: float) -> Path:
    """The model with its weights rounded to multiples of `step`."""
    model = onnx.load(path)
    for weight in model.graph.initializer:
        array = np.round(onnx.numpy_helper.to_array(weight) / step) * step
        weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), weight.name))
    onnx.save(model, out)
    return out


@pytest.fixture
def tasks(
    tmp_path: Path, write_mlp: Callable[..., Path], rows: NDArray[np.float32]
) -> list[Evaluation]:
    """Four candidates of a classifier that takes 32 samples a run, on 40 samples."""
    original = write_mlp(tmp_path / "model.onnx", rows="32", hidden=32)
    model = load_model(original)
    np.savez(tmp_path / "data.npz", x=rows[:40])
    samples = open_samples(tmp_path / "data.npz", model.inputs)
    batches = tuple(batches_of(samples, range(40), model.inputs))
    with Process() as process:
        session = process.load(original)
        references = tuple(
            {name: batch.trim(a) for name, a in session.run(batch.feeds).items()}
            for batch in batches
        )
    return [
        Evaluation(coarse(original, tmp_path / f"{step}.onnx", step=step), batches, references)
        for step in (1e-6, 0.05, 0.2, 0.6)
    ]


def test_a_file_is_measured_as_by_hand(tasks: list[Evaluation]) -> None:
    task = tasks[2]
    with Process() as process:
        session = process.load(task.path)
        outputs = [
            {name: batch.trim(a) for name, a in session.run(batch.feeds).items()}
            for batch in task.batches
        ]
        mine = measure_quality(task.references, outputs, rows=[32, 8])
        assert evaluate_file(task, process=process) == mine
        assert process.pid  # its owner's to close
    assert mine.samples == 40
    assert evaluate_file(task) == mine


def test_the_result_does_not_depend_on_the_workers_or_on_how_files_travel(
    tasks: list[Evaluation],
) -> None:
    shipped = [replace(task, parts=read_parts([task.path])) for task in tasks]
    for task in shipped:
        task.path.rename(task.path.with_suffix(".gone"))
    here = run_tasks(try_file, shipped)
    for task in shipped:
        task.path.with_suffix(".gone").rename(task.path)
    assert run_tasks(try_file, tasks, workers=2) == here
    noises = [one.metric.noise_db for one in here if one.metric is not None]
    assert noises == sorted(noises, reverse=True)
    assert len(set(noises)) == 4


def test_one_that_cannot_be_run_does_not_end_the_others(
    tasks: list[Evaluation], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    bad, good = replace(tasks[0], path=broken), tasks[0]
    found = run_tasks(try_file, [bad, good])
    assert found[0].metric is None
    assert "broken.onnx" in found[0].failure
    assert found[1] == Evaluated(evaluate_file(good))
    with pytest.raises(RuntimeRefused):
        evaluate_file(bad)


def test_labels_and_a_metric_from_a_file(tasks: list[Evaluation], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def first(outputs, labels):\n    return (outputs['y'][:, 0] > 0) == (labels == 0)\n"
    )
    labels = np.arange(40) % 4
    named = replace(tasks[1], labels=labels, metric=f"{tmp_path}/own.py:first")
    found = run_tasks(evaluate_file, [named, named], workers=2)
    assert found[0] == found[1]
    assert found[0].name == "first"
    assert evaluate_file(replace(tasks[1], labels=labels)).name == "top-1 accuracy"


@pytest.mark.parametrize("name", ["../up.onnx", "/abs.onnx", "..", ""])
def test_a_part_is_written_nowhere_else(tasks: list[Evaluation], name: str) -> None:
    with pytest.raises(WrongUsage, match="plain name"):
        evaluate_file(replace(tasks[0], parts=((name, b""),)))


def test_batches_and_references_must_fit(tasks: list[Evaluation]) -> None:
    changes: dict[str, Any] = {"references": tasks[0].references[:1]}
    with pytest.raises(WrongUsage, match="1 reference outputs do not fit 2"):
        replace(tasks[0], **changes)
