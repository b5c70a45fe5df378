from __future__ import annotations

import io
import re

import pytest

from packlight.cli.progress import PlainProgress, estimate_left, show_progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_line_a_stage_and_one_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock)
    progress.stage("search", 10)
    for second in range(1, 11):
        clock.now = float(second)
        progress.step(f"layer{second}")
    progress.stage("prove")
    assert stream.getvalue().splitlines() == [
        "search (10 steps)",
        "  search: 5/10, layer5, about 5 s left",
        "  search: 10/10, layer10, about 0 s left",
        "prove",
    ]


def test_names_cannot_steer_the_terminal() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock)
    progress.stage("a\x1b[2J", 1)
    clock.now = 9.0
    progress.step("b\r\u202e")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_closed_stream_does_not_stop_the_work() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    stream.close()
    progress.stage("go on")


@pytest.mark.parametrize(
    ("elapsed", "done", "total", "left"),
    [(10, 5, 10, 10), (10, 12, 10, 0), (10, 0, 10, None), (10, 5, None, None)],
)
def test_time_left(elapsed: float, done: int, total: int | None, left: float | None) -> None:
    assert estimate_left(elapsed, done, total) == left


def test_a_terminal_gets_a_bar_and_a_line_for_what_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with show_progress(stream) as progress:
        progress.step("before any stage")
        progress.stage("search [bold]x", 4)
        progress.step("layer [red]1", 4)
        progress.stage("prove")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    for name in ("working", "search [bold]x", "prove"):
        assert f"✓ {name}" in text
    assert "0/4" in text


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with show_progress(stream) as progress:
        progress.stage("search", 3)
    assert stream.getvalue() == "search (3 steps)\n"
