"""Tensors without text: whoever rounds the pieces, the bytes are the same."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from folder_bench import write_llama

from packlight.language import enter as door
from packlight.language import story
from packlight.language import target as language_target
from packlight.language.enter import enter
from packlight.llm import compress_alone
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.compress_alone import Spread
from packlight.llm.onnx.compress import compress_decoder
from packlight.llm.onnx.formats import ONNX
from packlight.llm.schemes import compress_folder, find_scheme
from packlight.measure.language_proof import LanguageProof
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


@pytest.mark.parametrize("kind", ["int4-32", "int8-32"])
def test_workers_and_pieces_decide_no_byte_of_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path / "model"))
    types = uniform_types(checkpoint, kind, ONNX)
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = compress_decoder(checkpoint, tmp_path / "a" / "m.onnx", types)
    monkeypatch.setattr(compress_alone, "PIECE", 1000)
    spread, taken = count_tasks(workers=2)
    pieces = compress_decoder(checkpoint, tmp_path / "b" / "m.onnx", types, spread=spread)
    assert len(taken) > len(types)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert [row.error for row in pieces.rows] == pytest.approx(
        [row.error for row in whole.rows], rel=1e-5
    )


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "nvfp4", "50%"])
def test_workers_and_pieces_decide_no_byte_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path / "model"))
    whole = compress_folder(checkpoint, tmp_path / "a", find_scheme(scheme))
    monkeypatch.setattr(compress_alone, "PIECE", 1000)
    spread, taken = count_tasks(workers=2)
    pieces = compress_folder(checkpoint, tmp_path / "b", find_scheme(scheme), spread=spread)
    assert len(taken) > len(whole.rows)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert [row.error for row in pieces.rows] == pytest.approx(
        [row.error for row in whole.rows], rel=1e-5
    )


def count_tasks(workers: int) -> tuple[Spread, list[object]]:
    """Workers, and a list that fills with what they have done."""
    taken: list[object] = []

    def spread(function: Any, tasks: Any) -> Any:
        for result in run_in_turn(function, tasks, workers=workers):
            taken.append(result)
            yield result

    return spread, taken


class EnoughError(Exception):
    """What comes now takes long, and shows nothing."""


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime", "vllm"])
def test_workers_that_are_asked_for_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, text: bool
) -> None:
    """From the door on: no target takes the number and leaves it unused."""
    asked = []

    data = None
    if text:
        pytest.importorskip("torch", reason="blocks are computed with PyTorch")
        data = tmp_path / "text.txt"
        data.write_text("the cat sat on the mat, and the mat was red. " * 20)

    def watch(function: Any, tasks: Any, *, workers: int, held: int = 8) -> Any:
        asked.append((workers, function.__name__))
        if text:
            raise EnoughError
        return run_in_turn(function, tasks, workers=1)

    monkeypatch.setattr(door, "open_tokenizer", lambda folder: lambda words: [*words.encode()])
    monkeypatch.setattr(language_target, "run_in_turn", watch)
    monkeypatch.setattr(story, "_prove", lambda *_: (LanguageProof(None, None, None, (), ()), ""))
    model = write_llama(tmp_path / "model")
    with suppress(EnoughError):
        enter_with(model, target=target, scratch=tmp_path / "scratch", data=data)
    first = "round_rows" if target == "vllm" else "round_piece"
    if text:  # vllm has one format, and none to weigh
        first = "gather_batch" if target == "vllm" else "weigh_errand"
    assert (2, first) in asked


def enter_with(model: Path, *, target: str, scratch: Path, data: Path | None) -> object:
    """The door with two workers and nothing else of note."""
    return enter(
        model,
        data=data,
        target=target,
        bits=None,
        max_size=None,
        max_drop=None,
        recipe=None,
        scheme=None,
        pins={},
        scratch=scratch,
        seed=0,
        workers="2",
        dry_run=False,
        progress=SILENT,
    )
