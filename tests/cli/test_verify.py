from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packlight.cli import app
from packlight.cli import verify_browser as page
from packlight.errors import UnusableProof
from packlight.proof import Check, Verification

run = CliRunner().invoke


def build(status: Any) -> Verification:
    checks = (Check("files", "passed", "All [3] files\x1b."), Check("answers", status, "Said."))
    return Verification(Path("packed"), checks, "ab" * 32, {"processor": "p"})


@pytest.mark.parametrize(
    ("status", "exit_code", "word"),
    [("passed", 0, "Proven"), ("not-checked", 3, "Intact"), ("failed", 4, "Failed")],
)
def test_every_check_is_shown_and_the_verdict_is_the_exit_status(
    api: Any, status: str, exit_code: int, word: str
) -> None:
    api.verification = build(status)
    done = run(app, ["verify", "packed", "--original", "net.onnx"])
    assert done.exit_code == exit_code
    assert done.stdout.startswith(word)
    assert "All [3] files\\x1b." in done.stdout and "ab" * 32 in done.stdout
    assert api.calls == [("verify", (Path("packed"),), {"original": Path("net.onnx")})]


def test_json_is_all_that_stdout_holds(api: Any) -> None:
    api.verification = build("passed")
    found = json.loads(run(app, ["verify", "packed", "--json"]).stdout)
    assert (found["verdict"], found["seal"]) == ("proven", "ab" * 32)
    assert found["checks"][1] == {
        "name": "answers", "status": "passed", "said": "Said.", "figures": {},
    }  # fmt: skip


def test_no_proof_is_one_sentence(api: Any) -> None:
    api.fails = UnusableProof("packed holds no manifest.json.")
    done = run(app, ["verify", "packed"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "error: packed holds no manifest.json."


def test_a_headless_browser_answers_in_json(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "verify_in_browser", lambda folder, original: build("failed"))
    done = run(app, ["verify", "packed", "--browser", "--json"])
    assert done.exit_code == 4
    assert json.loads(done.stdout)["verdict"] == "failed"
