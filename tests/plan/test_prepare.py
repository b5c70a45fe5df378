from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from packlight.errors import RuntimeRefused, UnusableModel, UnusableSamples, WrongUsage
from packlight.graph.model import load_model
from packlight.plan import prepare
from packlight.plan.prepare import common_inputs, prepare_samples, simplify_checked

Write = Callable[..., Path]


def test_samples_are_split_and_one_is_run(
    tmp_path: Path, write_mlp: Write, rows: NDArray[np.float32]
) -> None:
    model = load_model(write_mlp(tmp_path / "net.onnx", hidden=8))
    found = prepare_samples(model, rows)
    parts = (found.split.calibration, found.split.search, found.split.proof)
    assert [len(part) for part in parts] == [50, 50, 100]
    assert len({index for part in parts for index in part}) == 200
    assert not found.samples.generated
    with pytest.raises(UnusableSamples, match="x: float32"):
        prepare_samples(model, rows[:, :8])


def test_samples_are_made_up_where_there_are_none(tmp_path: Path, write_mlp: Write) -> None:
    found = prepare_samples(load_model(write_mlp(tmp_path / "net.onnx", hidden=8)), None)
    assert found.samples.generated
    assert found.samples.labels is None
    assert found.samples.read([0])["x"].shape[-1] == 16


def test_lengths_are_tried_until_the_model_takes_one(tmp_path: Path, write_model: Write) -> None:
    text = """net (float[1, time] x) => (float[a, b] y) {
        shape = Constant <value_ints = [-1, 512]> ()
        y = Reshape(x, shape)
    }"""
    found = prepare_samples(load_model(write_model(tmp_path / "net.onnx", text)), None)
    assert found.samples.read([0])["x"].shape[-1] % 512 == 0


def test_a_model_that_takes_nothing_asks_for_samples(tmp_path: Path, write_model: Write) -> None:
    text = """net (float[1, time] x) => (float[a, b] y) {
        shape = Constant <value_ints = [-1, 99991]> ()
        y = Reshape(x, shape)
    }"""
    model = load_model(write_model(tmp_path / "net.onnx", text))
    with pytest.raises(UnusableModel, match=r"refused every made-up input.*--data"):
        prepare_samples(model, None)


def test_the_preparation_of_pictures_is_found_by_the_labels(
    tmp_path: Path, write_model: Write
) -> None:
    """A model that answers "bright" above 0.5: right for 0..1 alone of all preparations."""
    for name, level in (("bright", 130), ("dark", 105)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            colour = (level + number,) * 3
            Image.new("RGB", (8, 8), colour).save(tmp_path / "photos" / name / f"{number}.png")
    text = """net (float[n, 3, 8, 8] x) => (float[n, 2] y) {
        axes = Constant <value_ints = [1, 2, 3]> ()
        mean = ReduceMean <keepdims = 0> (x, axes)
        column = Reshape(mean, shape)
        scaled = Mul(column, w)
        y = Add(scaled, b)
    }"""
    model = load_model(
        write_model(
            tmp_path / "net.onnx",
            text,
            opset=18,
            shape=np.array([-1, 1]),
            w=np.array([[1, -1]], np.float32),
            b=np.array([[0, 1]], np.float32),
        )
    )
    found = prepare_samples(model, tmp_path / "photos")
    (note,) = (note for note in found.notes if "was chosen" in note)
    assert note.startswith("--preprocess 0..1 was chosen")
    assert "0..1 100.0%" in note
    assert found.samples.read([0])["x"].max() <= 1
    named = prepare_samples(model, tmp_path / "photos", preprocess="-1..1")
    assert not any("was chosen" in note for note in named.notes)


def refuse(*arguments: object) -> bool:
    raise RuntimeRefused("it was refused")


def test_a_simplified_graph_is_run_against_the_original(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's BatchNormalization is folded, unless that changed what comes out."""
    model = load_model(demo / "digits.onnx")
    prepared = prepare_samples(model, np.zeros((8, 1, 8, 8), np.float32))
    before = [node.op_type for node in model.ir.graph]

    def run() -> tuple[list[str], list[str]]:
        graph, steps = simplify_checked(
            model, prepared.samples, prepared.split.calibration, tmp_path
        )
        undone = [step.reason for step in steps if not step.kept]
        return [node.op_type for node in graph.graph], undone

    simple, undone = run()
    assert "BatchNormalization" in before
    assert "BatchNormalization" not in simple
    assert undone == []
    monkeypatch.setattr(prepare, "equal_outputs", lambda one, other: False)
    assert run() == (before, ["the outputs changed"] * len(run()[1]))
    monkeypatch.setattr(prepare, "equal_outputs", refuse)
    assert run() == (before, ["it was refused"] * len(run()[1]))
    assert run()[1]


TEXT = "net ({} x) => (float[n, 4] y) {{ y = MatMul(x, w) }}"


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        ("float[n, 16]", "float[batch, 16]", ("n", 16)),
        ("float[n, 16]", "float[1, 16]", (1, 16)),
        ("float[3, 16]", "float[n, m]", (3, 16)),
        ("float[2, 16]", "float[3, 16]", None),
        ("float[n, 16]", "float[n, n, 16]", None),
        ("float[n, 16]", "float16[n, 16]", None),
    ],
)
def test_two_models_are_fed_with_what_both_take(
    tmp_path: Path,
    write_model: Write,
    one: str,
    other: str,
    shape: tuple[int | str, ...] | None,
) -> None:
    models = [
        load_model(
            write_model(
                tmp_path / f"{number}.onnx", TEXT.format(kind), w=np.ones((16, 4), np.float32)
            )
        )
        for number, kind in enumerate((one, other))
    ]
    if shape is None:
        with pytest.raises(WrongUsage, match="different inputs"):
            common_inputs(*models)
    else:
        (spec,) = common_inputs(*models)
        assert spec.shape == shape
