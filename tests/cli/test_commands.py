from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packlight.cli import app
from packlight.errors import UnusableModel
from packlight.version import __version__

run = CliRunner().invoke
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def test_the_result_is_saved_and_shown(api: Any) -> None:
    done = run(app, ["compress", "dir/net.onnx", "--data", "photos/"])
    assert done.exit_code == 0
    assert api.saved == [(Path("net.packed"), False)]
    assert "Budget met. Your model is 2.5 times smaller and 2.0 times faster" in done.stdout
    assert "net.packed/report.html" in done.stdout
    assert "packlight pack" not in done.stdout
    assert "calibrate (2 steps)" in done.stderr
    assert "calibrate" not in done.stdout


def test_how_to_pack_is_said_where_the_packed_size_is_known(api: Any) -> None:
    api.evidence = replace(api.evidence, packed_bytes=150)
    out = run(app, ["compress", "net.onnx", "--out", "a folder"]).stdout
    assert re.search(r"^Download, once packed +1.00 KB +150 bytes", out, re.M)
    assert "To download:" in out and "packlight pack 'a folder'" in out


def test_every_option_reaches_the_api_unchanged(api: Any) -> None:
    options = {
        "--data": "s.npz",
        "--target": "phone",
        "--max-drop": "1%",
        "--max-size": "25%",
        "--max-latency": "10ms",
        "--max-download": "5%",
        "--bits": "4.5",
        "--preset": "smallest",
        "--pin": "a=b=int8",
        "--forbid": "float16",
        "--prune": "30%",
        "--heal-minutes": "2",
        "--workers": "2",
        "--recipe": "r.yaml",
        "--metric": "own.py:score",
        "--preprocess": "0..1",
        "--seed": "7",
        "--out": "there",
    }
    argv = ["compress", "net.onnx", "--force", "--no-golden"]
    for name, value in options.items():
        argv += [name, value]
    assert run(app, argv).exit_code == 0
    ((_, args, said),) = api.calls
    assert args == (Path("net.onnx"),)
    assert said == {
        "data": "s.npz",
        "target": "phone",
        "max_drop": "1%",
        "max_size": "25%",
        "max_latency": "10ms",
        "max_download": "5%",
        "bits": "4.5",
        "preset": "smallest",
        "scheme": None,
        "pin": {"a=b": "int8"},
        "forbid": ("float16",),
        "prune": "30%",
        "heal_minutes": 2.0,
        "checkpoints": Path("there.healing"),
        "workers": "2",
        "recipe": Path("r.yaml"),
        "metric": "own.py:score",
        "preprocess": "0..1",
        "seed": 7,
        "golden": False,
        "dry_run": False,
    }
    assert api.saved == [(Path("there"), True)]


def test_unfinished_files_of_a_language_model_are_named_so(api: Any) -> None:
    assert run(app, ["compress", "net.gguf", "--out", "there"]).exit_code == 0
    assert api.calls[0][2]["checkpoints"] == Path("there.unfinished")


@pytest.mark.parametrize(
    ("verdict", "status"), [("met", 0), ("best-effort", 3), ("not-worth-it", 4)]
)
def test_the_exit_status_is_the_verdict(api: Any, verdict: str, status: int) -> None:
    api.evidence = replace(api.evidence, verdict=verdict)
    assert run(app, ["compress", "net.onnx"]).exit_code == status
    assert len(api.saved) == 1


def test_json_is_all_that_stdout_holds(api: Any) -> None:
    done = run(app, ["compress", "net.onnx", "--json"])
    found = json.loads(done.stdout)
    assert (found["schema"], found["verdict"], found["output"]) == (1, "met", "net.packed")
    done = run(app, ["compare", "a.onnx", "b.onnx", "--data", "s.npz", "--json"])
    assert json.loads(done.stdout) == {"ratio": None}
    assert [t["name"] for t in json.loads(run(app, ["targets", "--json"]).stdout)] == [
        "laptop",
        "phone",
    ]


def test_a_dry_run_writes_nothing_and_minds_no_existing_folder(api: Any) -> None:
    Path("net.packed").mkdir()
    done = run(app, ["compress", "net.onnx", "--dry-run"])
    assert (done.exit_code, done.stdout) == (0, "would quantize 21 layers\nabout 330 KB\n")
    assert api.saved == []
    done = run(app, ["compress", "net.onnx", "--dry-run", "--json"])
    assert json.loads(done.stdout) == {"layers": 21}


def test_an_existing_folder_is_found_before_any_work(api: Any) -> None:
    Path("net.packed").mkdir()
    done = run(app, ["compress", "net.onnx"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: The output folder net.packed exists")
    assert api.calls == []


def test_compare_prints_the_comparison(api: Any) -> None:
    done = run(app, ["compare", "a.onnx", "b.onnx", "--data", "s.npz"])
    assert (done.exit_code, done.stdout) == (0, "A and B side by side\n")
    assert api.calls[0][1] == (Path("a.onnx"), Path("b.onnx"))
    assert run(app, ["compare", "a.onnx", "b.onnx"]).exit_code == 2


def test_inspect_prints_the_anatomy(api: Any) -> None:
    done = run(app, ["inspect", "net.onnx"])
    assert done.exit_code == 0
    assert "net.onnx, 1.09 MB" in done.stdout
    assert api.calls == [("inspect", (Path("net.onnx"),), {"data": None})]
    assert json.loads(run(app, ["inspect", "net.onnx", "--json"]).stdout)["nodes"] == 61
    run(app, ["inspect", "net.onnx", "--data", "p/", "--preprocess", "0..1"])
    assert api.calls[-1][2] == {"data": "p/", "preprocess": "0..1"}


def test_targets_are_listed(api: Any) -> None:
    out = run(app, ["targets"]).stdout
    assert "laptop  Laptop [x86]" in out
    assert "int8; float32" in out
    assert "slow start" in out


def test_what_packlight_refuses_is_one_line_and_status_2(api: Any) -> None:
    api.fails = UnusableModel("net.onnx is empty:\nexport it\x1b[31m again.")
    done = run(app, ["compress", "net.onnx"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "error: net.onnx is empty: export it\\x1b[31m again."
    assert "Traceback" not in done.stderr
    assert api.saved == []


def test_the_version() -> None:
    assert run(app, ["--version"]).stdout == f"packlight {__version__}\n"


@pytest.mark.parametrize(
    "name", ["compress", "inspect", "compare", "targets", "choices", "pack", "unpack"]
)
def test_help_has_an_example(name: str) -> None:
    for flag in ("-h", "--help"):
        done = run(app, [name, flag], env={"COLUMNS": "200"})
        assert done.exit_code == 0
        assert f"packlight {name}" in ANSI.sub("", done.stdout).split("Example")[1]


@pytest.mark.parametrize(
    "argv", [["compress", "m.onnx", "--sed", "1"], ["compress", "m.onnx", "--seed", "x"], ["what"]]
)
def test_wrong_usage_is_status_2(api: Any, argv: list[str]) -> None:
    assert run(app, argv).exit_code == 2
    assert api.calls == []


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "onnx", "onnx_ir", "onnxruntime", "PIL", "yaml", "packlight.api")
    code = (
        "import sys\n"
        "from packlight.cli import main\n"
        "sys.argv = ['packlight', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
