from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from packlight.cli import app
from packlight.cli.outcomes import explain_os_error, one_sentence
from packlight.errors import UnusableSamples

run = CliRunner().invoke

# The command line in a process of its own, with a compress that never ends.
WAITING = """
import sys, time, types
api = types.ModuleType("packlight.api")
def compress(*args, progress, **options):
    progress.stage("calibrate", 100)
    print("ready", flush=True)
    time.sleep(60)
api.compress = compress
api.is_language_model = lambda model: False
sys.modules["packlight.api"] = api
from packlight.cli import main
sys.argv = ["packlight", "compress", "net.onnx", "--out", sys.argv[1] + "/out"]
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_with_its_status_and_no_traceback(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    lines = err.splitlines()
    assert lines[0] == "calibrate (100 steps)"
    assert [line.split(":")[0] for line in lines[1:]] == ["interrupted"] * (number == signal.SIGINT)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_inside_a_command(api: Any) -> None:
    api.fails = KeyboardInterrupt()
    done = run(app, ["compress", "net.onnx"])
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1].startswith("interrupted")


def test_a_fault_of_ours_asks_for_debug_and_is_status_1(api: Any) -> None:
    api.fails = ValueError("shapes\ndiffer")
    done = run(app, ["compress", "net.onnx"])
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: This is a fault in packlight (ValueError: shapes differ)")
    assert "--debug" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), 1), (UnusableSamples("y"), 2)])
def test_debug_shows_the_traceback(api: Any, error: Exception, status: int) -> None:
    api.fails = error
    done = run(app, ["compress", "net.onnx", "--debug"])
    assert done.exit_code == status
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full while writing /x/model.onnx"),
        (errno.EROFS, "/x/model.onnx cannot be used, because its file system is read-only"),
        (errno.EACCES, "/x/model.onnx cannot be used"),
    ],
)
def test_a_full_disk_and_a_forbidden_place_are_sentences(number: int, words: str) -> None:
    told = explain_os_error(OSError(number, os.strerror(number), "/x/model.onnx"))
    assert words in str(told)


def test_other_system_errors_are_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain_os_error(OSError(errno.EMFILE, "too many")) is None
    with pytest.raises(typer.Exit) as end, one_sentence(debug=False):
        raise OSError(errno.EMFILE, "too many open files")
    assert end.value.exit_code == 1
    assert "too many open files" in capsys.readouterr().err


def test_a_full_disk_while_saving_is_status_2(api: Any) -> None:
    api.fails = OSError(errno.ENOSPC, "No space left on device", "net.packed/model.onnx")
    done = run(app, ["compress", "net.onnx"])
    assert done.exit_code == 2
    assert "The disk is full while writing net.packed/model.onnx" in done.stderr


def test_memory_that_is_used_up_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, one_sentence(debug=False):
        raise MemoryError
    assert end.value.exit_code == 1
    assert "memory is used up" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = (
        "import sys, types\n"
        "api = types.ModuleType('packlight.api')\n"
        "api.targets = lambda: tuple(range(200_000))\n"
        "sys.modules['packlight.api'] = api\n"
        "from packlight.cli import main\n"
        "sys.argv = ['packlight', 'targets', '--json']\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "[\n"
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert err == ""
