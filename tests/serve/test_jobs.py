"""The queue, with a child process that does what the test says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packlight.serve.errors import Refused


class Work:
    """Stands for child processes: a job waits until `go`, then ends as `fate` says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.read: list[bytes] = []
        self.at_once = self.most_at_once = 0
        self.go = False
        self.told: list[dict[str, Any]] = []
        self.fate: Exception | dict[str, Any] = {"verdict": "met", "sentence": "smaller"}

    async def ask(self, request: dict[str, Any], work: Path, *, tell: Any = None) -> dict[str, Any]:
        if request["do"] != "compress":
            return {"inputs": [], "outputs": []}
        self.asked.append(request)
        if request["data"] is not None:
            self.read += [path.read_bytes() for path in Path(request["data"]).rglob("*.png")]
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            for message in self.told:
                tell(message)
            while not self.go:
                await asyncio.sleep(0.01)
            if isinstance(self.fate, Exception):
                raise self.fate
            folder = Path(request["out"])
            folder.mkdir()
            (folder / "report.json").write_text("{}")
            return self.fate
        finally:
            self.at_once -= 1


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    monkeypatch.setattr("packlight.serve.site.ask_child", made.ask)
    monkeypatch.setattr("packlight.serve.jobs.ask_child", made.ask)
    return made


def give(browser: Any) -> str:
    return str(browser.upload("/api/models", b"x", name="net.onnx").json()["id"])


def add(browser: Any, model: str, **settings: Any) -> str:
    answer = browser.post("/api/jobs", {"model": model, "settings": settings})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def wait(browser: Any, job: str, *states: str) -> dict[str, Any]:
    for _ in range(1000):
        shown: dict[str, Any] = browser.get(f"/api/jobs/{job}").json()
        if shown["state"] in states:
            return shown
        time.sleep(0.01)
    raise AssertionError(f"the job is {shown['state']}")


def events(browser: Any, job: str) -> list[dict[str, Any]]:
    with browser.client.stream("GET", f"/api/jobs/{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[::2] == ["event: job"] * (len(lines) // 2)
    return [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]


def test_jobs_wait_for_each_other(browser: Any, work: Work) -> None:
    model = give(browser)
    first, second, third = (add(browser, model, max_drop="1%") for _ in range(3))
    wait(browser, first, "running")
    assert [one["id"] for one in browser.get("/api/jobs").json()] == [third, second, first]
    assert browser.get(f"/api/jobs/{second}").json()["position"] == 1
    assert browser.get(f"/api/jobs/{third}").json()["position"] == 2
    assert browser.post(f"/api/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert browser.get(f"/api/jobs/{third}").json()["position"] == 1
    work.go = True
    shown = wait(browser, third, "done")
    assert wait(browser, first, "done")["verdict"] == "met"
    assert shown["sentence"] == "smaller"
    assert shown["settings"] == {"max_drop": "1%"}
    assert shown["evidence"] == {}
    assert work.most_at_once == 1
    assert len(work.asked) == 2


def test_the_job_at_work_is_cancelled_and_the_next_one_begins(
    browser: Any, work: Work, state: Path
) -> None:
    model = give(browser)
    first, second = add(browser, model), add(browser, model)
    wait(browser, first, "running")
    assert browser.post(f"/api/jobs/{first}/cancel").json()["state"] == "cancelled"
    wait(browser, second, "running")
    again = browser.post(f"/api/jobs/{first}/cancel")
    assert again.status_code == 409
    assert "it is cancelled" in again.json()["error"]
    for name in ("report", "download", "try", "try/0", "files/model.onnx"):
        answer = browser.get(f"/api/jobs/{first}/{name}")
        assert answer.status_code == 409, name
    assert browser.delete(f"/api/jobs/{second}").status_code == 204
    assert browser.get(f"/api/jobs/{second}").status_code == 404
    assert not (state / "jobs" / second).exists()
    assert work.at_once == 0


def test_what_a_child_tells_is_watched_until_the_end(browser: Any, work: Work) -> None:
    point = {"choice": "int8", "size_bytes": 10, "quality": 0.9, "kept": True}
    work.told = [
        {"stage": "reading", "total": None},
        {"stage": "search", "total": 4},
        {"step": 2, "detail": "int8"},
        {"tried": point},
    ]
    work.go = True
    job = add(browser, give(browser))
    shown = events(browser, job)[-1]
    assert shown["state"] == "done"
    assert [stage["name"] for stage in shown["stages"]] == ["reading", "search"]
    search = shown["stages"][-1]
    assert (search["done"], search["total"], search["detail"]) == (2, 4, "int8")
    assert search["left_seconds"] == pytest.approx(search["seconds"], abs=1)
    assert shown["points"] == [point]
    assert "evidence" not in shown
    # Over is over: whoever comes late gets one event.
    assert events(browser, job) == [shown]


def test_a_watched_job_is_told_of_as_it_goes(browser: Any, work: Work) -> None:
    model = give(browser)
    first, second = add(browser, model), add(browser, model)
    wait(browser, first, "running")

    states = []
    with browser.client.stream("GET", f"/api/jobs/{second}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line[6:])["state"])
                work.go = True  # the first event lets both end
    assert states[0] == "queued"
    assert states[-1] == "done"


def test_what_a_child_refuses_is_the_error_of_the_job(browser: Any, work: Work) -> None:
    work.go = True
    work.fate = Refused(422, "the samples are broken", field="samples")
    model = give(browser)
    job = add(browser, model)
    assert wait(browser, job, "failed")["error"] == "the samples are broken"
    work.fate = RuntimeError("what nobody foresaw")
    job = add(browser, model)
    assert "what nobody foresaw" in wait(browser, job, "failed")["error"]
    work.fate = {"verdict": "met"}
    wait(browser, add(browser, model), "done")


def test_a_result_that_was_changed_is_told(browser: Any, work: Work, state: Path) -> None:
    work.go = True
    job = add(browser, give(browser))
    wait(browser, job, "done")
    assert browser.get(f"/api/jobs/{job}/report").status_code == 404
    (state / "jobs" / job / "result" / "manifest.json").write_text('{"schema": 9}')
    for name in ("try", "try/0", "files/model/0"):
        answer = browser.get(f"/api/jobs/{job}/{name}")
        assert answer.status_code == 409, name
        assert "is of schema 9" in answer.json()["error"]


def test_what_ran_when_the_server_ended_is_interrupted_and_the_rest_goes_on(
    open_browser: Callable[..., Any], work: Work, state: Path
) -> None:
    browser = open_browser()
    model = give(browser)
    work.told = [{"stage": "search", "total": 4}, {"step": 1, "detail": ""}]
    first, second = add(browser, model, max_drop="1%"), add(browser, model)
    wait(browser, first, "running")
    browser = open_browser()
    shown = browser.get(f"/api/jobs/{first}").json()
    assert shown["state"] == "interrupted"
    assert shown["stages"][0]["done"] == 1
    wait(browser, second, "running")
    # The same once more: model and settings are still there.
    third = add(browser, shown["model"], **shown["settings"])
    work.go = True
    wait(browser, third, "done")
    assert browser.get(f"/api/jobs/{first}").json()["state"] == "interrupted"


def test_a_server_that_was_killed_leaves_an_interrupted_job(
    open_browser: Callable[..., Any], work: Work, state: Path
) -> None:
    browser = open_browser()
    job = add(browser, give(browser))
    wait(browser, job, "running")
    (state / "jobs" / job / "work" / "packlight-x").mkdir(parents=True)
    # What a killed server would have left in the history.
    browser.post(f"/api/jobs/{job}/cancel")
    open_browser_history(state, job)
    browser = open_browser()
    assert browser.get(f"/api/jobs/{job}").json()["state"] == "interrupted"
    assert not (state / "jobs" / job / "work").exists()
    assert not work.asked[1:]


def open_browser_history(state: Path, job: str) -> None:
    import sqlite3

    with sqlite3.connect(state / "history.sqlite") as database:
        database.execute("UPDATE jobs SET state = 'running', ended = NULL WHERE id = ?", (job,))


def test_a_job_keeps_the_samples_that_it_was_given(browser: Any, work: Work, state: Path) -> None:
    model = give(browser)
    samples = f"/api/models/{model}/samples"
    browser.upload(samples, b"first", name="a.png", label="cat")
    first, second = add(browser, model), add(browser, model)
    browser.delete(samples)
    browser.upload(samples, b"second", name="b.png")
    third = add(browser, model)
    browser.delete(samples)
    fourth = add(browser, model)
    work.go = True
    wait(browser, fourth, "done")
    assert work.asked[3]["data"] is None
    assert work.read == [b"first", b"first", b"second"]
    names = work.asked[1]["names"]
    assert {"a.png", "your files", "net.onnx"} == set(names.values())
    assert all(str(state) in path for path in names)
    assert browser.get(f"/api/jobs/{third}").json()["samples"] is True
    # What is not needed any more is not kept.
    assert not list(state.rglob("*.png"))
    assert browser.get(f"/api/jobs/{first}").json()["samples"] is True
    assert wait(browser, second, "done")["samples"] is True


def test_a_model_that_no_job_needs_goes_with_the_next_server(
    open_browser: Callable[..., Any], work: Work, state: Path
) -> None:
    browser = open_browser()
    kept, gone = give(browser), give(browser)
    job = add(browser, kept)
    (state / "jobs" / "work-of-a-killed-server").mkdir()
    browser = open_browser()
    assert browser.get(f"/api/models/{kept}").status_code == 200
    assert browser.get(f"/api/models/{gone}").status_code == 404
    assert [path.name for path in (state / "models").iterdir()] == [kept]
    assert [path.name for path in (state / "jobs").iterdir()] == [job]
