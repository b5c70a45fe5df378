from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.runtime import worker
from packlight.runtime.worker import peak_memory_bytes, time_rounds


class _Clock:
    """Stands still but for what the calls add."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.log.append(name)


def _time(
    rounds: int, seconds: float | None, durations: dict[str, float]
) -> tuple[NDArray[np.float64], str]:
    clock = _Clock()
    calls = [lambda n=name, d=took: clock.call(n, d) for name, took in durations.items()]
    table = time_rounds(calls, rounds=rounds, seconds=seconds, clock=lambda: clock.now)
    return table, "".join(clock.log)


def test_rounds_are_interleaved_and_begin_with_another_each_time() -> None:
    table, log = _time(3, None, {"a": 0.001, "b": 0.002, "c": 0.004})
    assert log == "abc" * 5 + "bca" + "cab" + "abc"
    np.testing.assert_allclose(table, np.array([[1.0], [2.0], [4.0]]) * np.ones((3, 3)))


def test_time_ends_the_rounds_but_six_are_done() -> None:
    table, log = _time(100, 10.0, {"a": 0.5, "b": 0.5})
    assert table.shape == (2, 11)
    assert log.startswith("ab" * 2)
    table, log = _time(100, 1.0, {"a": 5.0})
    assert table.shape == (1, 6)
    assert log == "a" * 7, "a slow call is warmed up once"


def test_one_round_is_one_round() -> None:
    assert _time(1, 0.001, {"a": 1.0})[0].shape == (1, 1)


def test_peak_memory_is_that_of_this_process() -> None:
    assert 1 << 20 < peak_memory_bytes() < 1 << 40


PROGRAM = """
import json, os, runpy, sys
requests, to_requests = os.pipe()
nobody_reads, answers = os.pipe()
os.close(nobody_reads)  # so that serving ends with the first answer
text = b'{"request": "hello", "engine": "onnxruntime", "arrays": []}'
os.write(to_requests, len(text).to_bytes(8, "little") + text)
settings = json.dumps({"path": json.loads(sys.argv[2]), "memory_bytes": 1 << 40})
sys.argv = ["start.py", str(requests), str(answers), settings]
runpy.run_path(json.loads(START), run_name="__main__")
ours = ("packlight", "onnx", "scipy", "torch", "openvino")
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ours)))
"""


def test_a_worker_imports_only_what_it_needs() -> None:
    start_file = Path(worker.__file__).with_name("start.py")
    program = PROGRAM.replace("START", repr(json.dumps(str(start_file))))
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, "-", json.dumps(sys.path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names = ("", ".loaded", ".ort", ".refusal", ".trace", ".wire", ".worker")
    assert json.loads(done.stdout) == ["packlight"] + [f"packlight.runtime{n}" for n in names]
