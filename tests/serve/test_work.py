"""What the child tells: sentences without paths of the state folder, fields, and progress."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packlight.serve.state import share_file
from packlight.serve.work import Telling, work


def ask(model: Path, do: str = "forecast", **more: Any) -> dict[str, Any]:
    request = {"do": do, "model": str(model), "data": None, "settings": {}, **more}
    return work({**request, "names": {str(model): "net.onnx"}}, lambda message: None)


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ({"max_drop": "lots"}, "max_drop", "--max-drop 'lots'"),
        ({"max_size": "0"}, "max_size", "--max-size '0'"),
        ({"max_latency": "-1ms"}, "max_latency", "--max-latency"),
        ({"max_download": "0"}, "max_download", "--max-download '0'"),
        ({"prune": "130%"}, "prune", "--prune"),
        ({"heal_minutes": -1.0}, "heal_minutes", "--heal-minutes -1.0"),
        ({"target": "toaster"}, "target", "There is no target 'toaster'"),
        ({"preset": "fast"}, "preset", "There is no preset 'fast' (did you mean"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_at_its_field(
    tmp_path: Path, small: bytes, settings: dict[str, Any], field: str, expected: str
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(small)
    answer = ask(model, settings=settings)
    assert answer["field"] == field
    assert answer["error"].startswith(expected)


def test_pictures_are_checked_as_they_are_to_be_prepared(tmp_path: Path, small: bytes) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(small)
    answer = ask(model, "check", data=str(tmp_path), preprocess="0..2")
    assert answer["field"] == "preprocess"
    assert answer["error"].startswith("--preprocess '0..2' is unknown")


def test_files_are_named_as_people_know_them(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x80\x05 pickled")
    answer = ask(model, "inspect")
    assert answer["field"] == "model"
    assert answer["error"].startswith("net.onnx is a Python pickle, not an ONNX model")


def test_names_of_a_model_cannot_steer_a_terminal_or_turn_text_around(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    name = "</script>\x1b[2J\u202e"
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name)],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    (layer,) = ask(tmp_path / "m.onnx", "inspect")["answer"]["layers"]
    assert layer["name"] == r"</script>\x1b[2J\u202e"


def test_steps_are_told_together_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    clock = [0.0]
    monkeypatch.setattr("packlight.serve.work.time.monotonic", lambda: clock[0])
    telling = Telling(told.append)
    telling.stage("search", 100)
    for _ in range(30):
        telling.step("int8\x07")
    clock[0] = 1.0
    telling.step("float16")
    telling.step("last", 2)
    telling.tried("int8", size_bytes=3, quality=float("nan"), kept=False)
    telling.stage("prove")
    assert told == [
        {"stage": "search", "total": 100},
        {"step": 31, "detail": "float16"},
        {"tried": {"choice": "int8", "size_bytes": 3, "quality": None, "kept": False}},
        {"step": 2, "detail": "last"},
        {"stage": "prove", "total": None},
    ]


def test_a_file_system_without_hard_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("content")
    share_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    share_file(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "content"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
