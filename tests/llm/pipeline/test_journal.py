from __future__ import annotations

from pathlib import Path

import pytest

from packlight.errors import UnusableOutput
from packlight.llm.journal import Journal, Row


def row(name: str) -> Row:
    return Row(name, "Q4_K", 4.5, 256, 0.01, True, 1.5)


def test_what_was_added_is_found_again(tmp_path: Path):
    journal = Journal(tmp_path / "j", "key")
    journal.add_types({"a": "Q4_K"})
    journal.add(row("a"))
    journal.add(row("b"))
    again = Journal(tmp_path / "j", "key")
    assert again.types == {"a": "Q4_K"}
    assert again.rows == {"a": row("a"), "b": row("b")}


def test_another_run_finds_nothing(tmp_path: Path):
    Journal(tmp_path / "j", "key").add(row("a"))
    assert Journal(tmp_path / "j", "other").rows == {}
    assert Journal(tmp_path / "j", "key").rows == {}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_counts_for_nothing(tmp_path: Path, cut: int):
    journal = Journal(tmp_path / "j", "key")
    journal.add(row("a"))
    journal.add(row("b"))
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-cut])
    again = Journal(tmp_path / "j", "key")
    assert set(again.rows) == ({"a", "b"} if cut == 1 else {"a"})
    again.add(row("c"))
    assert set(Journal(tmp_path / "j", "key").rows) == {*again.rows, "c"}


@pytest.mark.parametrize("line", ["3", "{}", '{"row": {"name": "x"}}', '{"types": {"a": 3}}', "["])
def test_a_line_of_something_else_ends_it(tmp_path: Path, line: str):
    Journal(tmp_path / "j", "key").add(row("a"))
    with (tmp_path / "j").open("a") as file:
        file.write(line + "\n")
    assert set(Journal(tmp_path / "j", "key").rows) == {"a"}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    with pytest.raises(UnusableOutput, match="cannot be written"):
        Journal(tmp_path / "none" / "j", "key")
