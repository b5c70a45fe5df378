from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packlight.cli import app

run = CliRunner().invoke


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "net.packed"
    made.mkdir()
    (made / "recipe.yaml").write_text("schema: 1\n")
    (made / "weights.bin").write_bytes(bytes(2000))
    (made / "report.html").write_text("<p>")
    return made


def test_pack_and_unpack_show_what_became_of_each_file(folder: Path, tmp_path: Path) -> None:
    done = run(app, ["pack", str(folder), "--out", str(tmp_path / "net.plz")])
    assert done.exit_code == 0
    for said in ("recipe.yaml", "weights.bin", "2,000", "ratio", "net.plz", "--with-report"):
        assert said in done.stdout
    assert "report.html" in done.stdout.split("Left out:")[1]
    back = run(app, ["unpack", str(tmp_path / "net.plz")])
    assert back.exit_code == 0 and "Unpacked:" in back.stdout
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "recipe.yaml", "weights.bin",
    ]  # fmt: skip


def test_json_is_all_that_stdout_holds(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.packed.plz"
    done = run(app, ["pack", str(folder), "--json", "--with-report"])
    found = json.loads(done.stdout)
    assert found["output"] == str(file)
    assert found["packed_bytes"] == file.stat().st_size
    assert found["left_out"] == []
    assert [one["name"] for one in found["files"]] == ["recipe.yaml", "report.html", "weights.bin"]
    found = json.loads(
        run(app, ["unpack", str(file), "--out", str(tmp_path / "x"), "--json"]).stdout
    )
    assert found["output"] == str(tmp_path / "x")


def test_what_cannot_be_done_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "a.plz")
    assert run(app, ["pack", str(folder), "--out", file]).exit_code == 0
    for argv, said in (
        (["pack", str(folder), "--out", file], "--force"),
        (["pack", str(tmp_path / "none")], "does not exist"),
        (["unpack", str(folder / "recipe.yaml")], "not a transport file"),
        (["unpack", file, "--out", str(folder)], "exists"),
    ):
        done = run(app, argv)
        assert done.exit_code == 2
        assert done.stderr.strip().splitlines()[-1].startswith("error: ") and said in done.stderr
    assert run(app, ["pack", str(folder), "--out", file, "--force"]).exit_code == 0
