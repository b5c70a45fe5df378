"""The state folder and its history: whose they are, and what is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from packlight.errors import UnusableOutput
from packlight.serve.errors import Refused
from packlight.serve.history import History
from packlight.serve.state import default_folder, open_state, plain_file


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    state = open_state(tmp_path / "deep" / "state")
    assert state.folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "deep" / "state").chmod(0o755)
    state.close()
    open_state(tmp_path / "deep" / "state").close()
    assert state.folder.stat().st_mode & 0o777 == 0o700


def test_one_server_uses_a_folder(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    with pytest.raises(UnusableOutput, match="Another packlight serve uses"):
        open_state(tmp_path)
    state.close()
    open_state(tmp_path).close()


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UnusableOutput, match="is a link: give the folder"):
        open_state(tmp_path / "link")
    folder = tmp_path / "state"
    open_state(folder).close()
    (folder / "models" / "evil").symlink_to("/etc")
    with pytest.raises(UnusableOutput, match="evil is a link"):
        open_state(folder)
    (folder / "models" / "evil").unlink()
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableOutput):
        open_state(folder)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnusableOutput, match="cannot be used"):
        open_state(tmp_path / "file")


def test_no_link_is_followed_to_a_file_that_is_sent(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "report.html").write_text("secret")
    job = "0" * 32
    state.job(job).mkdir()
    state.result(job).symlink_to(secret)
    with pytest.raises(Refused):
        plain_file(state.result(job) / "report.html", state.folder)
    state.result(job).unlink()
    state.result(job).mkdir()
    path = state.result(job) / "report.html"
    path.symlink_to(secret / "report.html")
    with pytest.raises(Refused):
        plain_file(path, state.folder)
    with pytest.raises(Refused):
        plain_file(secret / "report.html", state.folder)
    path.unlink()
    path.write_text("ours")
    assert plain_file(path, state.folder) == path
    state.close()


def test_a_history_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    History(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(UnusableOutput, match="is of schema 7"):
        History(path)
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"no database at all" * 100)
    with pytest.raises(UnusableOutput, match="cannot be used"):
        History(other)


def test_where_state_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "packlight" / "serve"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_folder() == tmp_path / ".local" / "state" / "packlight" / "serve"


def test_the_history_is_written_ahead(browser: Any, state: Path) -> None:
    with sqlite3.connect(state / "history.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
