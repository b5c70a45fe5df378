"""The demo model through a real server on a real port, which dies on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packlight.proof import verify

SERVE = Path(__file__).with_name("serve_anyway.py")
LINK = re.compile(r"http://127\.0\.0\.1:\d+/open/\S+")
JSON = {"content-type": "application/json"}
FILE = {"content-type": "application/octet-stream"}


class Server:
    """A running `packlight serve`, and a client that opened its link."""

    def __init__(self, state: Path, log: Path) -> None:
        command = [sys.executable, str(SERVE), "serve", "--no-open", "--state", str(state)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, stdin=subprocess.DEVNULL)
        while (found := LINK.search(log.read_text())) is None:
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.client = httpx2.Client(base_url=found[0].split("/open/")[0], timeout=600)
        opened = self.client.get(found[0], follow_redirects=False)
        assert opened.status_code == 303

    def end(self, number: signal.Signals) -> int:
        self.client.close()
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    with contextlib.ExitStack() as stack:

        def open_server() -> Server:
            server = Server(tmp_path / "state", tmp_path / "log")
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
            stack.callback(server.client.close)
            return server

        yield open_server


def events(server: Server, job: str) -> Generator[dict[str, Any]]:
    with server.client.stream("GET", f"/api/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def children_of(pid: int) -> set[int]:
    """All processes that descend from one, itself left out."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = place.read_text(errors="replace")
            parents[int(place.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {one for one, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def gone(pids: set[int]) -> bool:
    """Whether those processes end within some seconds."""
    for _ in range(600):
        if not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_demo_model_from_upload_to_download(
    start: Callable[[], Server], demo: Path, tmp_path: Path
) -> None:
    server = start()
    content = (demo / "digits.onnx").read_bytes()
    model = server.client.post(
        "/api/models", params={"name": "digits.onnx"}, content=content, headers=FILE
    ).json()
    samples = (demo / "digits.npz").read_bytes()
    server.client.post(
        f"/api/models/{model['id']}/samples",
        params={"name": "digits.npz"},
        content=samples,
        headers=FILE,
    )

    def ask(**settings: str) -> httpx2.Response:
        return server.client.post("/api/jobs", json={"model": model["id"], "settings": settings})

    # What is wrong is said at once, in the words of the command line, at its field.
    refused = ask(max_drop="200%")
    assert refused.status_code == 422
    assert refused.json()["field"] == "max_drop"
    assert refused.json()["error"].startswith("--max-drop '200%': nothing would be left")

    # A server that is killed in the middle takes its processes along.
    job = ask(max_drop="1%").json()["id"]
    with contextlib.closing(events(server, job)) as seen:
        next(shown for shown in seen if shown["points"])
    started = children_of(server.process.pid)
    assert started
    server.end(signal.SIGKILL)
    assert gone(started)

    # The next one knows of it, and does it again.
    server = start()
    shown = server.client.get(f"/api/jobs/{job}").json()
    assert shown["state"] == "interrupted"
    assert shown["points"]
    assert not (tmp_path / "state" / "jobs" / job / "work").exists()
    job = ask(**shown["settings"]).json()["id"]
    last = list(events(server, job))[-1]
    assert last["state"] == "done", last["error"]
    assert last["verdict"] in ("met", "best-effort")
    assert any(point["kept"] for point in last["points"])
    assert all(stage["name"] for stage in last["stages"])

    found = server.client.get(f"/api/jobs/{job}").json()
    assert found["evidence"]["model"] == "digits.onnx"
    assert found["evidence"]["samples"].startswith("900 samples from digits.npz")
    assert str(tmp_path) not in json.dumps(found)
    report = server.client.get(f"/api/jobs/{job}/report")
    assert "digits.onnx" in report.text
    assert str(tmp_path) not in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    assert report.headers["content-security-policy"].endswith("sandbox")

    answer = server.client.get(f"/api/jobs/{job}/download")
    assert 'filename="digits.packed.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "got")
    folder = tmp_path / "got" / "digits.packed"
    assert verify(folder, original=demo / "digits.onnx").exit_status == 0

    tried = server.client.get(f"/api/jobs/{job}/try").json()
    assert tried["samples"] == 8
    assert tried["kinds"]["image"]["kind"] == "picture"
    golden = server.client.get(f"/api/jobs/{job}/try/0").json()
    assert golden["inputs"]["image"]["shape"] == [1, 1, 8, 8]
    assert golden["original"].keys() == golden["compressed"].keys() == {"logits"}
    assert server.client.get(f"/api/jobs/{job}/try/8").status_code == 404
    files = tried["files"]
    assert server.client.get(files["original"]["url"]).content == content
    assert server.client.get(files["model"]["url"]).content == (folder / "model.onnx").read_bytes()
    assert files["model"]["data"] == files["original"]["data"] == []
    assert server.client.delete(f"/api/jobs/{job}", headers=JSON).status_code == 204
    assert not (tmp_path / "state" / "jobs" / job).exists()
    assert server.end(signal.SIGINT) == 0


def test_a_cancelled_job_leaves_nothing(
    open_browser: Callable[..., Any], state: Path, small: bytes
) -> None:
    browser = open_browser()
    model = browser.upload("/api/models", small, name="small.onnx").json()["id"]
    others = children_of(os.getpid())
    job = browser.post("/api/jobs", {"model": model, "settings": {}}).json()["id"]
    with browser.client.stream("GET", f"/api/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and "trying whole recipes" in line:
                break
    started = children_of(os.getpid()) - others
    work = state / "jobs" / job / "work"
    assert started and list(work.iterdir())
    for child in started:  # what any of them puts aside goes into the job's folder
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            assert not settings[0] or f"TMPDIR={work}".encode() in settings
    assert browser.post(f"/api/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert gone(started)
    assert not list((state / "jobs" / job).iterdir())
