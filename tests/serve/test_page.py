"""The page in a real browser: what people do on it, from a dropped model to the download.

A browser and its steps live in web/tests/scenarios.mjs; here a server is given to them, and what
they saw is judged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import packlight
from packlight.errors import PacklightError

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
PAGE = ROOT / "src" / "packlight" / "serve" / "page" / "index.html"
DIGITS = ROOT / "examples" / "digits"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

Play = Callable[..., dict[str, Any]]


def find_browser() -> str | None:
    return os.environ.get("PACKLIGHT_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )


def why_not() -> str:
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))):
        return "packlight[serve] is not installed"
    if not PAGE.is_file():
        return "the page is not built: make page"
    if shutil.which("node") is None or not (WEB / "node_modules" / "playwright-core").is_dir():
        return "node or the npm packages of web/ are missing: make page"
    return "" if find_browser() else "there is no Chromium or Chrome"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Plays a scenario on a server of its own, and gives what was seen."""
    folder = tmp_path_factory.mktemp("serve")
    said = folder / "said"
    command = (sys.executable, "-m", "packlight", "serve", "--no-open", "--state", folder / "state")
    with said.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream)

    def newest_link() -> str:
        for _ in range(2400):
            links = re.findall(r"http://\S+/open/\S+", said.read_text(encoding="utf-8"))
            if links:
                return str(links[-1])
            assert server.poll() is None, said.read_text(encoding="utf-8")
            time.sleep(0.1)
        raise AssertionError("packlight serve printed no link")

    def play_scenario(name: str, **given: object) -> dict[str, Any]:
        asked = {"link": newest_link(), "browser": find_browser(), **given}
        found = subprocess.run(
            ("node", WEB / "tests" / "scenarios.mjs", name, json.dumps(asked, default=str)),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert found.returncode == 0, found.stderr[-3000:]
        seen: dict[str, Any] = json.loads(found.stdout)
        assert seen.pop("noticed") == {"errors": [], "elsewhere": [], "inaccessible": []}
        return seen

    yield play_scenario
    server.terminate()
    server.wait()


def test_from_a_dropped_model_to_the_download_and_the_comparison(
    play: Play, tmp_path: Path
) -> None:
    shots = os.environ.get("PACKLIGHT_SHOTS")  # where pictures of the screens are wished for
    seen = play(
        "wholePath",
        model=DIGITS / "digits.onnx",
        samples=DIGITS / "digits.npz",
        download=tmp_path / "got.zip",
        shots=shots,
    )
    assert "437 KB" in seen["about"] and "image" in seen["about"] and "logits" in seen["about"]
    assert seen["meaning"].startswith("At most 2 % of quality may be lost")
    # What to expect follows the slider, from nothing lost to as small as can be.
    assert all("instead of 437 KB" in text for text in seen["forecasts"])
    exact, _, smallest = (float(re.findall(r"[\d.]+", text)[0]) for text in seen["forecasts"])
    assert exact > 3 * smallest
    assert seen["focus"].startswith("<h1")
    assert "times smaller" in seen["verdict"]
    assert seen["figures"][:1] == ["Size"] and "Top-1 accuracy" in seen["figures"]
    assert seen["points"] >= 3 and seen["chosen"] == 1
    assert seen["report"] == [200, True]
    assert seen["agreement"].startswith("✓ They agree on the class. Largest difference:")
    assert seen["classes"][0] == seen["classes"][1]
    assert len(seen["ownClasses"]) == 2
    assert re.search(r"[\d.]+ ms the original, [\d.]+ ms compressed", seen["speed"])
    with zipfile.ZipFile(tmp_path / "got.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    (model,) = tmp_path.glob("*/model.onnx")
    assert model.stat().st_size < (DIGITS / "digits.onnx").stat().st_size / 2
    assert packlight.verify(model.parent, original=DIGITS / "digits.onnx").verdict == "proven"


def test_a_run_can_be_cancelled_and_started_again(play: Play) -> None:
    seen = play("cancelled", model=DIGITS / "digits.onnx", samples=DIGITS / "digits.npz")
    assert seen["heading"] == "This run was cancelled: digits.onnx"
    assert seen["focus"].startswith("<h1")
    assert seen["again"] and seen["disabled"]


def test_runs_can_be_put_side_by_side(play: Play) -> None:
    seen = play("compared", model=DIGITS / "digits.onnx", shots=os.environ.get("PACKLIGHT_SHOTS"))
    assert seen["before"]  # until two are chosen
    names = [row[0] for row in seen["rows"]]
    assert names[:3] == ["Asked for", "Verdict", "Size"] and "Peak memory" in names
    assert all(len(row) == 3 and all(row) for row in seen["rows"][:3])
    (asked, _, size) = seen["rows"][:3]
    assert "lossless" in asked[2] and "balanced" in asked[1]
    assert size[1] != size[2]


def test_what_is_wrong_is_told_where_it_was_given(play: Play, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((DIGITS / "digits.onnx").read_bytes()[:1000])
    np.savez(tmp_path / "unfitting.npz", image=np.zeros((30, 3, 5), np.float32))
    seen = play(
        "broken",
        model=DIGITS / "digits.onnx",
        broken=damaged,
        unfitting=tmp_path / "unfitting.npz",
    )
    with pytest.raises(PacklightError) as told:
        packlight.inspect(damaged)
    # The same sentence as on the command line, but for where the server keeps the file.
    assert seen["model"] == " ".join(str(told.value).replace(str(damaged), damaged.name).split())
    assert seen["tied"] == "model-problem"
    assert "/nowhere/net.onnx" in seen["path"] and seen["kept"] == "/nowhere/net.onnx"
    assert "image" in seen["samples"]
    assert "tiny" in seen["size"]
    assert seen["entered"] == ["6", "tiny"]


def test_a_reload_loses_nothing(play: Play) -> None:
    seen = play("reloaded", model=DIGITS / "digits.onnx", samples=DIGITS / "digits.npz")
    assert seen["entered"] == {"drop": "4", "size": "80%", "device": "android"}
    assert seen["running"].startswith("Compressing digits.onnx")
    assert seen["settings"]["max_drop"] == "2%" and seen["settings"]["max_size"] == "80%"
    assert seen["state"] == "done"


def write_sound(path: Path, sound: np.ndarray, rate: int) -> None:
    """A .wav file of 16 bits from numbers in -1..1, [n] or [n, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32767 * sound).astype("<i2").tobytes())


def test_weights_of_their_own_and_a_sound(play: Play, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.03, shape).astype(np.float32), name)
        for name, shape in (("w0", (800, 64)), ("w1", (64, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["waveform", "w0"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w1"], ["y"], name="second"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("waveform", 800), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "ear.onnx", save_as_external_data=True, location="ear.data")
    (tmp_path / "sounds").mkdir()
    for at in range(12):
        write_sound(tmp_path / "sounds" / f"{at}.wav", rng.uniform(-0.9, 0.9, 4000), 8000)
    # Half as many numbers a second as speech has, and half as loud on the right as on the left.
    write_sound(tmp_path / "own.wav", np.full((1600, 2), (0.6, 0.3)), 8000)
    (tmp_path / "no.wav").write_bytes(b"RIFF, and nothing more")
    seen = play(
        "heard",
        model=tmp_path / "ear.onnx",
        weights=tmp_path / "ear.data",
        samples=tmp_path / "sounds",
        sound=tmp_path / "own.wav",
        noSound=tmp_path / "no.wav",
    )
    assert "ear.data" in seen["missing"]
    assert "120 samples" in seen["described"] and "16000 Hz" in seen["described"]
    numbers = [float(word) for word in seen["values"].split() if word != "…"]
    assert numbers[3:] == pytest.approx([0.45] * len(numbers[3:]), abs=0.05)  # of both channels
    assert "no.wav holds no sound" in seen["refused"] and seen["agreement"]


def test_subfolders_of_a_dropped_folder_are_classes(play: Play, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("0", "1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(4):
            picture = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
            picture.save(tmp_path / "photos" / name / f"{at}.png")
    seen = play("folder", model=DIGITS / "digits.onnx", samples=tmp_path / "photos")
    assert "0.png, 1.png and 6 more" in seen["described"]
    assert "8 samples, with the right answers" in seen["described"]


def test_hostile_names_are_text(play: Play, tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], name
    for at, result in enumerate(("<b>hidden</b>", "</code><b>out")):
        weights.append(
            numpy_helper.from_array(rng.normal(0, 0.2, (32, 32)).astype(np.float32), f"<b>w{at}")
        )
        nodes.append(
            helper.make_node("MatMul", [last, f"<b>w{at}"], [result], name=f"<b>layer{at}")
        )
        last = result
    value = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [1, 32]) for one in (name, last)]
    model = helper.make_model(
        helper.make_graph(nodes, "<b>g", value[:1], value[1:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 10
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", **{name: rng.normal(size=(64, 32)).astype(np.float32)})
    seen = play(
        "hostile",
        model=tmp_path / "net.onnx",
        samples=tmp_path / "x.npz",
        numbers=", ".join(map(str, range(32))),
    )
    assert name in seen["shown"] and seen["input"] == name
    assert "There are 3 numbers" in seen["tooFew"] and "takes 32" in seen["tooFew"]
    assert seen["values"].startswith("0  1.00  2.00")
    assert seen["injected"] == 0
