"""What is uploaded: names, limits, external data, samples; nothing lands where it should not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from packlight.serve.work import work

HOSTILE = [
    "../../../../tmp/evil.onnx",
    "..\\..\\evil.onnx",
    "/etc/passwd.onnx",
    "a\x00b.onnx",
    "\x1b[2J\u202egnp.onnx",
    "<img src=x onerror=alert(1)>.onnx",
    "x" * 5000 + ".onnx",
    "CON.onnx",
    "~/.ssh/id_rsa.onnx",
    "$(touch evil).onnx",
    "🦊 modèle.onnx",
]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def give(browser: Any, content: bytes, name: str = "net.onnx") -> str:
    answer = browser.upload("/api/models", content, name=name)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_shown_and_never_a_path(
    browser: Any, no_child: Any, tmp_path: Path, name: str
) -> None:
    before = files_in(tmp_path)
    answer = browser.upload("/api/models", b"content", name=name)
    assert answer.status_code == 200
    model = answer.json()
    assert model["name"].isprintable()
    assert len(model["name"]) <= 300
    assert "/" not in model["name"]
    sample = browser.upload(
        f"/api/models/{model['id']}/samples", b"x", name=name.replace(".onnx", ".png"), label=name
    )
    known = {200} if len(name.encode()) <= 60 else {422}
    assert sample.status_code in known
    made = files_in(tmp_path) - before
    assert all(one.startswith("state/") for one in made)
    names = {Path(one).name for one in made if one.startswith("state/models/")}
    assert names <= {"model.onnx", "000001.png"}


def test_identifiers_are_not_paths(browser: Any, no_child: Any) -> None:
    for text in ("..", "..%2f..", "%2e%2e", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "%0a"):
        assert browser.get(f"/api/models/{text}").status_code == 404
        assert browser.get(f"/api/jobs/{text}/report").status_code == 404
        answer = browser.post("/api/forecast", {"model": text, "settings": {}})
        assert answer.status_code == 404
    assert not no_child


def test_a_file_above_the_limit_leaves_nothing(
    open_browser: Callable[..., Any], state: Path, no_child: Any
) -> None:
    browser = open_browser(upload_limit=1000)
    before = files_in(state)
    answer = browser.upload("/api/models", b"x" * 1001, name="net.onnx")
    assert answer.status_code == 413
    assert answer.json()["field"] == "model"
    assert "--max-upload" in answer.json()["error"]

    def pieces() -> Any:  # without a length that could be looked at first
        for _ in range(20):
            yield b"x" * 100

    answer = browser.upload("/api/models", pieces(), name="net.onnx")
    assert answer.status_code == 413
    assert files_in(state) == before
    assert browser.upload("/api/models", b"x" * 1000, name="net.onnx").status_code == 200


def test_samples_together_keep_the_limit(
    open_browser: Callable[..., Any], state: Path, no_child: Any
) -> None:
    browser = open_browser(upload_limit=1000)
    path = f"/api/models/{give(browser, b'x')}/samples"
    assert browser.upload(path, b"x" * 600, name="a.png").status_code == 200
    assert browser.upload(path, b"x" * 600, name="b.png").status_code == 413
    assert browser.upload(path, b"x" * 400, name="c.png").json()["count"] == 2
    assert [name for name in files_in(state) if name.endswith("part")] == []


def test_an_empty_file_is_refused(browser: Any, state: Path, no_child: Any) -> None:
    answer = browser.upload("/api/models", b"", name="net.onnx")
    assert answer.status_code == 422
    assert "empty" in answer.json()["error"]
    assert not list((state / "models").iterdir())


def test_json_is_bounded_and_strict(browser: Any, no_child: Any) -> None:
    def send(content: bytes) -> Any:
        headers = {"content-type": "application/json"}
        return browser.client.post("/api/forecast", content=content, headers=headers)

    assert send(b"[" * 70_000).status_code == 413
    broken = (b"{", b"[]", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff", b"[" * 30_000)
    for content in (*broken, b'{"model": "\\ud800"}'):
        answer = send(content)
        assert answer.status_code == 400, content[:20]
        assert answer.json()["error"]
    model = give(browser, b"x")
    for settings in ({"seed": 1}, {"max_drop": 1}, {"golden": "no"}, {"heal_minutes": "1"}, []):
        answer = browser.post("/api/forecast", {"model": model, "settings": settings})
        assert answer.status_code == 422, settings
    assert browser.post("/api/forecast", {"model": {}, "settings": {}}).status_code == 404


def test_only_models_and_samples_of_known_kinds_are_taken(browser: Any, no_child: Any) -> None:
    answer = browser.upload("/api/models", b"x", name="net.pt")
    assert answer.status_code == 422
    assert "net.pt is no .onnx file" in answer.json()["error"]
    path = f"/api/models/{give(browser, b'x')}/samples"
    answer = browser.upload(path, b"x", name="run.sh")
    assert answer.status_code == 422
    assert answer.json()["field"] == "samples"
    assert "run.sh" in answer.json()["error"]
    assert browser.upload(path, b"x").status_code == 422


def test_samples_are_counted_removed_and_classes_keep_their_order(
    browser: Any, state: Path, no_child: Any
) -> None:
    model = give(browser, b"x")
    path = f"/api/models/{model}/samples"
    for label in ("10", "9", "cat", "ant"):
        assert browser.upload(path, b"x", name="a.png", label=label).status_code == 200
    found = browser.get(f"/api/models/{model}").json()["samples"]
    assert found == {"count": 4, "bytes": 4, "files": ["a.png"] * 4, "path": None}
    folder = next((state / "models" / model / "samples").iterdir())
    classes = sorted(entry.name for entry in folder.iterdir())
    order = [next((folder / name).iterdir()).name for name in classes]
    # 9, 10, ant, cat, by when they came.
    assert order == ["000002.png", "000001.png", "000004.png", "000003.png"]
    assert browser.delete(path).json()["count"] == 0
    assert not folder.exists()


def test_an_array_comes_alone(browser: Any, no_child: Any) -> None:
    model = give(browser, b"x")
    path = f"/api/models/{model}/samples"
    browser.upload(path, b"x", name="a.npz")
    browser.upload(path, b"x", name="a.png")
    answer = browser.post(f"{path}/check")
    assert answer.status_code == 422
    assert answer.json()["field"] == "samples"
    assert "alone" in answer.json()["error"]


def test_a_model_is_described_and_its_samples_are_checked(browser: Any, small: bytes) -> None:
    answer = browser.upload("/api/models", small, name="small.onnx")
    model = answer.json()
    assert answer.status_code == 200, model
    assert model["inputs"] == [{"name": "x", "shape": ["n", 16], "dtype": "float32"}]
    assert [layer["operator"] for layer in model["layers"]] == ["Gemm", "Gemm", "MatMul"]
    assert all(layer["macs"] > 0 for layer in model["layers"])
    assert model["milliseconds"] > 0
    assert sum(one["share"] for one in model["operators"] if one["share"]) == pytest.approx(1)
    path = f"/api/models/{model['id']}/samples"
    file = io.BytesIO()
    np.savez(file, x=np.zeros((12, 16), np.float32))
    browser.upload(path, file.getvalue(), name="mine.npz")
    found = browser.post(f"{path}/check").json()
    assert found["samples"] == 12
    assert found["described"] == "12 samples from mine.npz, fed as they are"
    browser.delete(path)
    browser.upload(path, b"no archive", name="mine.npz")
    answer = browser.post(f"{path}/check")
    assert answer.status_code == 422
    assert answer.json()["field"] == "samples"
    assert "mine.npz" in answer.json()["error"]
    assert "state" not in answer.json()["error"]


def test_a_broken_model_is_told_as_on_the_command_line(browser: Any, state: Path) -> None:
    answer = browser.upload("/api/models", b"<html>404</html>", name="net.onnx")
    assert answer.status_code == 422
    assert answer.json()["field"] == "model"
    assert answer.json()["error"].startswith("net.onnx is a web page (HTML), not an ONNX model")
    assert not list((state / "models").iterdir())


def test_external_data_is_asked_for_by_name(browser: Any, small: bytes, tmp_path: Path) -> None:
    save = {"save_as_external_data": True, "location": "small.data", "size_threshold": 0}
    onnx.save(onnx.load_from_string(small), tmp_path / "small.onnx", **save)
    answer = browser.upload("/api/models", (tmp_path / "small.onnx").read_bytes(), name="s.onnx")
    found = answer.json()
    assert answer.status_code == 422
    assert found["missing"] == ["small.data"]
    assert found["field"] == "model"
    path = f"/api/models/{found['id']}"
    assert browser.post("/api/forecast", {"model": found["id"]}).status_code == 409
    answer = browser.upload(f"{path}/files", b"x", name="../other.data")
    assert answer.status_code == 422
    assert "it needs small.data" in answer.json()["error"]
    data = (tmp_path / "small.data").read_bytes()
    answer = browser.upload(f"{path}/files", data, name="small.data")
    assert answer.status_code == 200, answer.text
    assert answer.json()["layers"]
    # The same from its path: copied, so that what becomes of the file is no matter.
    answer = browser.post("/api/models/path", {"path": str(tmp_path / "small.onnx")})
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == "small.onnx"
    assert answer.json()["layers"] == [
        {**layer, "ms": pytest.approx(layer["ms"], abs=1e9)} for layer in answer.json()["layers"]
    ]


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/b.data", ".hidden\n", "model.onnx", ""]
)
def test_external_data_elsewhere_is_refused(small: bytes, tmp_path: Path, location: str) -> None:
    model = onnx.load_from_string(small)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path, other = tmp_path / "one" / "model.onnx", tmp_path / "other"
    path.parent.mkdir()
    other.mkdir()
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_text("secret")
    for request in (
        {"do": "inspect", "model": str(path)},
        {"do": "adopt", "path": str(path), "folder": str(other), "limit": 1 << 30},
    ):
        answer = work(request, lambda message: None)
        assert answer["field"] == "model"
        assert "cannot be taken" in answer["error"]
    assert not list(other.iterdir())


def test_paths_are_typed_whole_and_on_this_machine_only(
    open_browser: Callable[..., Any], no_child: Any, tmp_path: Path
) -> None:
    browser = open_browser()
    for path in ("net.onnx", "", 3, None, "/a\0b", "/" + "x" * 4000, "x" * 5000, "~nobody-x/a"):
        answer = browser.post("/api/models/path", {"path": path})
        assert answer.status_code == 422, path
    model = give(browser, b"x")
    answer = browser.post(f"/api/models/{model}/samples/path", {"path": str(tmp_path / "none")})
    assert answer.status_code == 422
    assert answer.json()["error"] == f"There is no {tmp_path / 'none'}: check the path."
    answer = browser.post(f"/api/models/{model}/samples/path", {"path": str(tmp_path)})
    assert answer.json()["path"] == str(tmp_path)
    browser = open_browser(paths=False)
    model = give(browser, b"x")
    for path in ("/api/models/path", f"/api/models/{model}/samples/path"):
        answer = browser.post(path, {"path": str(tmp_path)})
        assert answer.status_code == 403
        assert "other machines" in answer.json()["error"]
