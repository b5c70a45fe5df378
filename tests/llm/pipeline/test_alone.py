"""Tensors without text: whoever rounds the pieces, the bytes are the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from folder_bench import write_llama

from packlight.errors import WrongUsage
from packlight.language.enter import enter
from packlight.llm import compress_alone
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.plan.workers import run_in_turn
from packlight.progress import SILENT


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_pieces_decide_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path / "model"))
    types = uniform_types(checkpoint, "Q4_0")
    whole = compress_checkpoint(checkpoint, tmp_path / "a.gguf", types)
    monkeypatch.setattr(compress_alone, "PIECE", 1000)  # 15 rows
    spread = partial(run_in_turn, workers=workers)
    pieces = compress_checkpoint(checkpoint, tmp_path / "b.gguf", types, spread=spread)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert [row.error for row in pieces.rows] == pytest.approx(
        [row.error for row in whole.rows], rel=1e-5
    )


def test_workers_are_refused_with_a_text(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="leave --workers or --data out"):
        enter(
            write_llama(tmp_path / "model"),
            data=tmp_path / "text.txt",
            target="llama.cpp",
            bits=4.5,
            max_size=None,
            max_drop=None,
            recipe=None,
            scheme=None,
            pins={},
            scratch=tmp_path / "scratch",
            seed=0,
            workers="2",
            dry_run=False,
            progress=SILENT,
        )
