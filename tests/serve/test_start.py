"""The command: what it says where it cannot serve."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packlight.cli import app
from packlight.errors import WrongUsage
from packlight.serve import page, start


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", "--no-open", *arguments])
    return result.exit_code, result.output


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, said = run()
    assert status == 2
    assert "pip install 'packlight[serve]'" in said


def test_an_installation_without_the_page_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page.check_page, "__defaults__", (tmp_path,))
    status, said = run("--state", str(tmp_path / "state"))
    assert status == 2
    assert "has no page: run `make page`" in " ".join(said.split())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--host", "0.0.0.0"), "stands for every address"),
        (("--host", "::"), "stands for every address"),
        (("--host", "example.org"), "give an IP address"),
        (("--port", "70000"), "give a number from 0"),
        (("--host", "203.0.113.7"), "Nothing can listen on 203.0.113.7"),
        (("--max-upload", "much"), "--max-upload"),
        (("--max-upload", "50%"), "--max-upload"),
    ],
)
def test_options_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(page, "check_page", lambda: None)
    status, said = run("--state", str(tmp_path / "state"), *options)
    assert status == 2
    assert expected in " ".join(said.split())


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "check_page", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = run("--state", str(tmp_path), "--port", port)
    assert status == 2
    assert "give another --port" in " ".join(said.split())


def test_a_history_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "check_page", lambda: None)
    (tmp_path / "history.sqlite").write_bytes(b"no database at all" * 100)
    status, said = run("--state", str(tmp_path))
    assert status == 2
    assert "history.sqlite cannot be used" in " ".join(said.split())


def test_which_addresses_are_this_machines_own() -> None:
    assert all(start.is_loopback(host) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"))
    assert not start.is_loopback("192.168.1.5")
    with pytest.raises(WrongUsage):
        start.is_loopback("127.1")
