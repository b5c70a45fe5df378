from __future__ import annotations

import os
from pathlib import Path

import pytest

from packlight.errors import UnusableOutput
from packlight.report.folder import check_output


def test_a_new_folder_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b", force=False, inputs=[])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnusableOutput, match="--force"):
        check_output(out, force=False, inputs=[])
    check_output(out, force=True, inputs=[tmp_path / "net.onnx"])


def test_force_never_replaces_what_holds_an_input_or_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "net.onnx").touch()
    (tmp_path / "link.onnx").symlink_to(out / "deep" / "net.onnx")
    for held in (out / "deep" / "net.onnx", tmp_path / "link.onnx", out):
        with pytest.raises(UnusableOutput, match="lies in it"):
            check_output(out, force=True, inputs=[held])
    monkeypatch.chdir(out / "deep")
    with pytest.raises(UnusableOutput, match="lies in it"):
        check_output(out, force=True, inputs=[])


def test_files_and_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name, words in (("file", "is a file"), ("link", "is a link"), ("file/x", "is a file")):
        with pytest.raises(UnusableOutput, match=words):
            check_output(tmp_path / name, force=True, inputs=[])


def test_a_folder_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write anywhere: the system's answer is played.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UnusableOutput, match="nothing may be written"):
        check_output(tmp_path / "out", force=False, inputs=[])
