"""Models in a headless browser: with a real one where it is installed, and with stand-ins."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from packlight.errors import (
    MissingExtra,
    RuntimeCrashed,
    RuntimeOutOfMemory,
    RuntimeRefused,
    RuntimeTimedOut,
    WrongUsage,
)
from packlight.runtime import Limits, Process, browser
from packlight.runtime.browser import run_in_browser, time_in_browser, why_no_browser
from packlight.runtime.page_server import PageServer

Write = Callable[..., Path]
StandIn = Callable[[str], None]

needs_browser = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())

NEG = "g (float[N] x) => (float[N] y) { y = Neg (x) }"
FEEDS = {"x": np.array([1, -2, 3], np.float32)}

# A browser of a few lines: ends with its file, which sees `ask` and the page's address.
SCRIPT = """#!{python} -I
import base64, json, os, pathlib, sys, time, urllib.parse, http.client
address = urllib.parse.urlsplit(sys.argv[-1])
folder = address.path.rsplit("/", 1)[0]
def ask(name, body=None, **headers):
    link = http.client.HTTPConnection(address.netloc)
    if body is not None:
        headers["Content-Type"] = "application/json"
        headers["Origin"] = f"http://{{address.netloc}}"
    link.request("POST" if body is not None else "GET", folder + "/" + name, body, headers)
    answer = link.getresponse()
    return answer if name == "alive" else answer.read()
{body}
"""

ANSWERS = """
job = json.loads(ask("job.json"))
def reply(model):
    x, = (f for f in model["feeds"] if f["name"] == "x")
    sent = ask(x["file"])
    assert ask(model["file"]), "an empty model"
    data = base64.b64encode(sent).decode()
    return {"y": {"dtype": x["dtype"], "shape": x["shape"], "data": data}}
times = [[1.0 + n] * min(job["rounds"], 7) for n, _ in enumerate(job["models"])]
outputs = [reply(model) if job["outputs"] else {} for model in job["models"]]
ask("answer", json.dumps({"milliseconds": times, "outputs": outputs, "browser": "Chrome/156.0"}))
time.sleep(60)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a graph in ONNX's text form to a file."""

    def make(graph: str, name: str = "model.onnx") -> Path:
        text = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "somewhere": 1]>\n'
        onnx.save(parser.parse_model(text + graph), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts a program of a few lines in the place of the browser, and of the package."""
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    for name in browser._PACKAGE_FILES:
        (package / "dist" / name).write_bytes(b"//" + name.encode())
    (package / "package.json").write_text('{"version": "1.99.0"}')
    monkeypatch.setenv(browser.PACKAGE_VARIABLE, str(package))

    def make(body: str) -> None:
        program = tmp_path / "browser"
        program.write_text(SCRIPT.format(python=sys.executable, body=body))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(browser.BROWSER_VARIABLE, str(program))

    return make


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a browser or its profile behind."""
    before = _profiles()
    yield
    assert _profiles() == before
    assert _browsers() == []


def _profiles() -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob(f"packlight-browser-{os.getpid()}-*"))


def _browsers() -> list[str]:
    """What still runs with a profile of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if f"packlight-browser-{os.getpid()}-" in command:
                found.append(command)
    return found


@needs_browser
def test_a_real_browser_computes_what_the_processor_computes(write: Write) -> None:
    text = (
        "g (float[N, 3] x, int64[2] s, bool[1] b) => (float[a, c] y, int64[2] t, bool[1] n) "
        "{ r = Exp (x) y = Reshape (r, s) t = Add (s, s) n = Not (b) }"
    )
    small = write("g (float16[N] x) => (float16[N] y) { y = Neg (x) }", "half.onnx")
    feeds = [
        {
            "x": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
            "s": np.array([3, -1]),
            "b": np.array([True]),
        },
        {"x": np.array([1.5, -2], np.float16)},
    ]
    paths = [write(text), small]
    found = run_in_browser(paths, feeds, rounds=9, seconds=1, with_outputs=True)
    assert found.milliseconds.shape == (2, 9)
    assert (found.milliseconds >= 0).all() and (found.milliseconds > 0).any()
    assert found.runtime.startswith("onnxruntime-web 1.") and "Chromium" in found.runtime
    with Process() as process:
        for path, given, outputs in zip(paths, feeds, found.outputs, strict=True):
            expected = process.load(path).run(given)
            assert sorted(outputs) == sorted(expected)
            for name, array in expected.items():
                assert outputs[name].dtype == array.dtype
                np.testing.assert_allclose(outputs[name], array, rtol=1e-5)


@needs_browser
def test_a_real_browser_refuses_with_a_sentence(write: Write) -> None:
    unknown = write("g (float[N] x) => (float[N] y) { y = somewhere.Foo (x) }")
    with pytest.raises(RuntimeRefused, match=r"loading model\.onnx in a browser: .*'?Foo"):
        time_in_browser([unknown], FEEDS, rounds=6, limits=Limits(seconds=60))
    with pytest.raises(RuntimeRefused, match=r"running model\.onnx in a browser: .*x.*missing"):
        time_in_browser([write(NEG)], {}, rounds=6, limits=Limits(seconds=60))


def test_what_the_page_answers_is_what_comes_back(write: Write, stand_in: StandIn) -> None:
    stand_in(ANSWERS)
    paths = [write(NEG, "a.onnx"), write(NEG, "b.onnx")]
    table = time_in_browser(paths, FEEDS, rounds=20, seconds=1)
    np.testing.assert_array_equal(table, np.array([[1.0], [2.0]]) * np.ones((2, 7)))
    run = run_in_browser(
        paths, [FEEDS, {"x": np.array([7], np.int64)}], rounds=3, with_outputs=True
    )
    assert run.milliseconds.shape == (2, 3)
    assert run.runtime == "onnxruntime-web 1.99.0 WASM, Chromium 156"
    np.testing.assert_array_equal(run.outputs[0]["y"], FEEDS["x"])
    assert (run.outputs[1]["y"].dtype, run.outputs[1]["y"].tolist()) == (np.int64, [7])


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        ("Can't create a session. ERROR_CODE: 9, ERROR_MESSAGE: Could not find an implementation "
         "for Foo(1)", RuntimeRefused, r"loading model\.onnx in a browser: Could not find an imp"),
        ("failed to allocate a buffer of size 5", RuntimeOutOfMemory, r"loading model\.onnx"),
    ],
)  # fmt: skip
def test_what_the_page_could_not_do_is_a_typed_error(
    write: Write, stand_in: StandIn, error: str, kind: type[Exception], sentence: str
) -> None:
    answer = json.dumps({"error": error, "doing": "loading", "file": 0})
    stand_in(f"ask('answer', {answer!r})")
    with pytest.raises(kind, match=sentence):
        time_in_browser([write(NEG)], FEEDS, rounds=6)


@pytest.mark.parametrize(
    "answer",
    [
        "hello",
        "[" * 50_000,
        "[]",
        "{}",
        '{"error": "x", "doing": "loading", "file": 7}',
        '{"milliseconds": [[1]], "outputs": []}',
        '{"milliseconds": [[1], [2]], "outputs": [{}]}',
        '{"milliseconds": [[]], "outputs": [{}]}',
        '{"milliseconds": [[NaN]], "outputs": [{}]}',
        '{"milliseconds": [[1, 1, 1, 1, 1, 1, 1]], "outputs": [{}]}',
        '{"milliseconds": [[1]], "outputs": [{"y": 1}]}',
        '{"milliseconds": [[1]], "outputs": [{"y": {"dtype": "text", "shape": [1], "data": ""}}]}',
        '{"milliseconds": [[1]], "outputs": [{"y": {"dtype": "int8", "shape": [9], "data": ""}}]}',
        '{"milliseconds": [[1]], "outputs": [{"y": {"dtype": "int8", "shape": [-1], "data": ""}}]}',
        '{"milliseconds": [[1]], "outputs": [{"y": {"dtype": "int8", "shape": [1], "data": "%"}}]}',
    ],
)
def test_an_answer_that_makes_no_sense_is_a_crash(answer: str) -> None:
    with pytest.raises(RuntimeCrashed, match=r"m\.onnx makes no sense"):
        browser._read_answer(answer.encode(), ["m.onnx"], 6)


def test_outputs_are_decoded_bit_by_bit() -> None:
    data = base64.b64encode(np.array([[1.5, -0.0]], np.float16).tobytes()).decode()
    entry = {"y": {"dtype": "float16", "shape": [1, 2], "data": data}}
    content = json.dumps({"milliseconds": [[1]], "outputs": [entry]})
    found = browser._read_answer(content.encode(), ["m.onnx"], 6)["outputs"][0]["y"]
    assert (found.dtype, found.shape) == (np.float16, (1, 2))
    assert found.tobytes() == np.array([1.5, -0.0], np.float16).tobytes()


def test_a_browser_that_ends_is_a_crash_with_its_last_words(
    write: Write, stand_in: StandIn
) -> None:
    stand_in("sys.exit('No usable sandbox')")
    with pytest.raises(RuntimeCrashed, match=r"running model\.onnx\. .*No usable sandbox"):
        time_in_browser([write(NEG)], FEEDS, rounds=6)


def test_a_page_that_ends_is_a_crash_at_once(write: Write, stand_in: StandIn) -> None:
    stand_in("ask('alive').close()\ntime.sleep(60)")
    began = time.monotonic()
    with pytest.raises(RuntimeCrashed, match="died while running"):
        time_in_browser([write(NEG)], FEEDS, rounds=6)
    assert time.monotonic() - began < 30


def test_a_browser_that_hangs_is_stopped_with_all_its_processes(
    write: Write, stand_in: StandIn, tmp_path: Path
) -> None:
    # Its child leaves the group and loses its parent, as helpers of browsers do.
    stand_in(
        "kept = ask('alive')\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork():\n        os._exit(0)\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    with pytest.raises(RuntimeTimedOut, match=r"longer than 1 s for running model\.onnx"):
        time_in_browser([write(NEG)], FEEDS, rounds=6, limits=Limits(seconds=1.0))
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()


OWNER = """
import sys
from pathlib import Path
import numpy as np
from packlight.runtime.browser import time_in_browser
time_in_browser([Path(sys.argv[1])], {"x": np.ones(3, np.float32)}, rounds=6)
"""


def test_the_browser_dies_with_its_owner(write: Write, stand_in: StandIn, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    stand_in(
        "kept = ask('alive')\n"
        f"pathlib.Path({str(told)!r}).write_text(str(os.getpid()) + ' ')\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(write(NEG))], env=environment)
    try:
        _until(lambda: told.exists() and told.read_text().endswith(" "))
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    pid = int(told.read_text())
    _until(lambda: not Path(f"/proc/{pid}").exists())


def _until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def test_the_home_and_the_proxy_of_the_user_are_not_the_browsers(
    write: Write, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    told = tmp_path / "told.json"
    stand_in(
        f"pathlib.Path({str(told)!r}).write_text(json.dumps([dict(os.environ), sys.argv]))"
        + ANSWERS
    )
    time_in_browser([write(NEG)], FEEDS, rounds=6)
    environment, arguments = json.loads(told.read_text())
    assert not [key for key in environment if "proxy" in key.lower()]
    assert environment["HOME"] != str(tmp_path)
    assert "--no-proxy-server" in arguments and "--headless=new" in arguments
    assert ("--no-sandbox" in arguments) is (os.geteuid() == 0)
    assert arguments[-1].startswith("http://127.0.0.1:")


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in: StandIn, write: Write
) -> None:
    stand_in("")
    assert why_no_browser() == ""
    monkeypatch.setenv(browser.PACKAGE_VARIABLE, str(tmp_path / "nowhere"))
    assert "npm install onnxruntime-web" in why_no_browser()
    with pytest.raises(MissingExtra, match="nowhere does not hold it"):
        time_in_browser([write(NEG)], FEEDS, rounds=6)
    monkeypatch.setenv(browser.BROWSER_VARIABLE, str(tmp_path / "none"))
    assert "names" in why_no_browser() and "none" in why_no_browser()
    monkeypatch.delenv(browser.PACKAGE_VARIABLE)
    monkeypatch.setenv(browser.BROWSER_VARIABLE, str(tmp_path / "browser"))
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "package").rename(tmp_path / "node_modules" / "onnxruntime-web")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert why_no_browser() == "", "node_modules is looked for from here upwards"


def test_work_that_makes_no_sense_is_refused(write: Write, stand_in: StandIn) -> None:
    stand_in("")
    path = write(NEG)
    for paths, feeds, rounds in (([], FEEDS, 6), ([path], FEEDS, 0), ([path], [FEEDS, FEEDS], 6)):
        with pytest.raises(WrongUsage):
            time_in_browser(paths, feeds, rounds=rounds)
    with pytest.raises(RuntimeRefused, match="no file"):
        time_in_browser([path.with_name("none.onnx")], FEEDS, rounds=6)
    with pytest.raises(RuntimeRefused, match="only numeric tensors"):
        time_in_browser([path], {"x": np.array(["a"])}, rounds=6)


def test_the_server_answers_only_who_knows_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"model")
    with PageServer({"a.js": b"1", "m": tmp_path / "f"}, limit_bytes=4) as server:
        host = server.origin.removeprefix("http://")

        def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
            link = http.client.HTTPConnection(host)
            link.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = link.getresponse()
            try:
                return answer, answer.read()
            finally:
                link.close()

        known = server.address("").removeprefix(server.origin)
        answer, body = ask("GET", known + "m")
        assert (answer.status, body) == (200, b"model")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        for path in ("/m", "/", "//m", known, known + "f", known + "../m", "/" + "x" * 32 + "/m"):
            assert ask("GET", path)[0].status == 404
        assert ask("GET", known + "m", Host="evil.example")[0].status == 404
        ours = {"Origin": server.origin, "Content_Type": "application/json"}
        assert ask("POST", known + "answer", b"{}")[0].status == 404
        assert ask("POST", known + "m", b"{}", **ours)[0].status == 404
        assert ask("POST", known + "answer", b"{}", **{**ours, "Origin": "null"})[0].status == 404
        assert not server.answered.is_set()
        assert ask("POST", known + "answer", b"{}", **ours)[0].status == 204
        assert (server.answered.is_set(), server.answer) == (True, b"{}")
        assert ask("POST", known + "answer", b"[]", **ours)[0].status == 404
        assert server.answer == b"{}"
    with PageServer({}, limit_bytes=4) as server:
        host, known = server.origin.removeprefix("http://"), server.address("answer")
        ours["Origin"] = server.origin
        assert ask("POST", known.removeprefix(server.origin), b"12345", **ours)[0].status == 413
        assert (server.answered.is_set(), server.answer) == (True, None)
    with pytest.raises(RuntimeRefused, match="larger than"):
        browser._read_answer(None, ["m.onnx"], 6)
