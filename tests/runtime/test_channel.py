"""What becomes of workers that misbehave: each is played by a small program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from packlight.errors import RuntimeCrashed, RuntimeOutOfMemory, RuntimeTimedOut
from packlight.runtime import channel as room
from packlight.runtime.channel import Channel
from packlight.runtime.limits import Limits

Play = Callable[..., Channel]

PRELUDE = """
import json, os, sys, time
requests, answers = int(sys.argv[1]), int(sys.argv[2])
def read(size):
    data = b""
    while len(data) < size:
        part = os.read(requests, size - len(data))
        if not part:
            sys.exit()
        data += part
    return data
def receive():
    return json.loads(read(int.from_bytes(read(8), "little")))
def answer(text):
    data = text.encode()
    os.write(answers, len(data).to_bytes(8, "little") + data)
receive(); answer('{"arrays": []}')
receive()
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """A channel to a worker that greets, takes one request, and then does as it is told."""
    channels = []

    def make(program: str, seconds: float = 60.0) -> Channel:
        script = tmp_path / "worker.py"
        script.write_text(PRELUDE + program)
        monkeypatch.setattr(room, "_START", script)
        channels.append(Channel(Limits(memory_bytes=1 << 28, seconds=seconds)))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


def _is_gone(pid: int) -> bool:
    """Dead and reaped."""
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "nonsense",
    [
        "answer('not json')",
        "answer('{}')",
        "answer(json.dumps({'arrays': [['x', 'object', [1]]]}))",
        "answer(json.dumps({'arrays': [['x', 'float64', [1 << 30]]]}))",
        "os.write(answers, b'\\xff' * 8)",
    ],
)
def test_an_answer_that_breaks_the_rules_ends_it(play: Play, nonsense: str) -> None:
    channel = play(nonsense + "\ntime.sleep(60)")
    with pytest.raises(RuntimeCrashed, match=r"running m\.onnx.*do not trust this file"):
        channel.request("run", {}, doing="running m.onnx")
    assert _is_gone(channel.pid)
    with pytest.raises(RuntimeCrashed, match=r"gone .*broke the protocol.*start a new one"):
        channel.request("run", {}, doing="running m.onnx")


def test_a_worker_that_does_not_answer_in_time_is_killed(play: Play) -> None:
    channel = play("time.sleep(60)", seconds=0.3)
    with pytest.raises(RuntimeTimedOut, match=r"longer than 0\.3 s for running m\.onnx"):
        channel.request("run", {}, doing="running m.onnx")
    assert _is_gone(channel.pid)


def test_a_worker_that_reads_nothing_in_time_is_killed(play: Play) -> None:
    channel = play("time.sleep(60)", seconds=0.3)
    with pytest.raises(RuntimeTimedOut):
        channel.request("run", {}, {"x": np.zeros(1 << 22)}, doing="running m.onnx")


def test_a_worker_that_trickles_is_still_late(play: Play) -> None:
    channel = play(
        "os.write(answers, (1000).to_bytes(8, 'little'))\n"
        "while True: os.write(answers, b' '); time.sleep(0.05)",
        seconds=0.5,
    )
    with pytest.raises(RuntimeTimedOut):
        channel.request("run", {}, doing="running m.onnx")


def test_noise_neither_blocks_nor_shows(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    channel = play(
        "os.write(1, b'on the output')\n"
        "for _ in range(200): os.write(2, b'noise' * 10000)\n"
        'answer(\'{"arrays": [], "well": true}\')\ntime.sleep(60)'
    )
    answer, _ = channel.request("run", {}, doing="running m.onnx")
    assert answer == {"well": True}
    assert capfd.readouterr() == ("", "")


def test_a_crash_names_its_signal_and_last_words(play: Play) -> None:
    channel = play("os.write(2, b'index out of range\\n'); os.kill(os.getpid(), 11)")
    with pytest.raises(RuntimeCrashed, match=r"running m\.onnx \(SIGSEGV\)\..*index out of range"):
        channel.request("run", {}, doing="running m.onnx")
    assert _is_gone(channel.pid)


def test_an_end_without_a_signal(play: Play) -> None:
    with pytest.raises(RuntimeCrashed, match="exit status 7"):
        play("sys.exit(7)").request("run", {}, doing="running m.onnx")


def test_dying_for_lack_of_memory_is_told_apart(play: Play) -> None:
    channel = play(
        "os.write(2, b\"terminate called after throwing an instance of 'std::bad_alloc'\\n"
        '  what():  std::bad_alloc\\n"); os.abort()'
    )
    with pytest.raises(RuntimeOutOfMemory, match="256 MiB"):
        channel.request("run", {}, doing="running m.onnx")


def test_nothing_leaks(play: Play) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    channel = play("time.sleep(60)")
    assert descriptors() == before + 3
    channel.close()
    channel.close()
    assert _is_gone(channel.pid)
    assert descriptors() == before


def test_a_forgotten_channel_is_ended_with_its_owner() -> None:
    channel = Channel(Limits())
    pid = channel.pid
    del channel
    assert _is_gone(pid)
