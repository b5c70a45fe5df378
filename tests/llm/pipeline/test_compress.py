from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import write_llama

from packlight.errors import WrongUsage
from packlight.llm import rounding_matrices
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import (
    Compressed,
    Settings,
    compress_checkpoint,
    uniform_types,
)
from packlight.llm.compress_forecast import rounded_names
from packlight.llm.compress_gguf import GgufRun
from packlight.llm.costs import TensorCosts
from packlight.llm.formats import decode
from packlight.llm.gguf import read_gguf
from packlight.llm.text import Windows

TYPES = ("Q4_0", "Q5_0", "Q8_0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def windows() -> Windows:
    draw = np.random.default_rng(0).integers(0, 300, (16, 32)).astype(np.int32)
    return Windows("drawn", draw[:10], draw[10:12], draw[12:], draw.size)


def mixed(costs: Sequence[TensorCosts], other_bytes: int) -> dict[str, str]:
    """Each third tensor gets another type."""
    return {one.name: TYPES[number % 3] for number, one in enumerate(costs)}


def test_every_tensor_is_accounted_for(tmp_path: Path, checkpoint: Checkpoint):
    done = compress_checkpoint(checkpoint, tmp_path / "m.gguf", uniform_types(checkpoint, "Q4_0"))
    assert {*done.types, *done.kept} == set(checkpoint.tensors)
    assert not set(done.types) & set(done.kept)
    assert set(done.types.values()) == {"Q4_0"}
    assert done.bits_per_weight == 4.5
    assert done.size_bytes == (tmp_path / "m.gguf").stat().st_size
    assert all(0 < row.error < 0.02 and not row.compensated for row in done.rows)
    stored = read_gguf(tmp_path / "m.gguf").tensors
    for name in checkpoint.tensors:
        assert stored[name].dtype == done.types.get(name, "F32")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_errors_of_the_rows_are_those_of_the_file(tmp_path: Path, checkpoint: Checkpoint):
    done = compress_checkpoint(checkpoint, tmp_path / "m.gguf", uniform_types(checkpoint, "Q4_0"))
    stored = read_gguf(tmp_path / "m.gguf").tensors
    content = np.fromfile(tmp_path / "m.gguf", np.uint8)
    for row in done.rows:
        weight, place = checkpoint.read(row.name), stored[row.name]
        data = content[place.offset : place.offset + place.rows * place.row_bytes]
        near = decode(row.type, data.reshape(place.rows, -1))
        expected = float(((weight - near) ** 2).sum() / (weight**2).sum())
        assert row.error == pytest.approx(expected, rel=1e-4)


def test_widths_that_a_type_does_not_hold_get_the_next(checkpoint: Checkpoint):
    assert set(uniform_types(checkpoint, "Q4_K").values()) == {"Q5_0"}


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"output_norm.weight": "Q4_0"}, "output_norm.weight is no tensor"),
        ({"blk.0.ffn_up.weight": "Q4_K"}, "rows of 64 weights, which Q4_K does not hold: use Q5_0"),
        ({"blk.0.ffn_up.weight": "Q4"}, "rows of 64 weights, which Q4 does not hold: use"),
    ],
)
def test_types_that_cannot_be_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, types: dict[str, str], message: str
):
    with pytest.raises(WrongUsage, match=message):
        compress_checkpoint(checkpoint, tmp_path / "m.gguf", types)


def with_text(checkpoint: Checkpoint, path: Path, windows: Windows, **changes: Any) -> Compressed:
    return compress_checkpoint(
        checkpoint, path, mixed, windows=windows, candidates=TYPES, settings=Settings(**changes)
    )


def test_with_text_rows_are_compensated_and_better(
    tmp_path: Path, checkpoint: Checkpoint, windows: Windows
):
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    done = with_text(checkpoint, tmp_path / "m.gguf", windows)
    assert [row.name for row in done.rows if not row.compensated] == ["token_embd.weight"]
    assert set(done.types) == set(rounded_names(checkpoint))
    assert done.types == mixed([TensorCosts(n, 1, ()) for n in rounded_names(checkpoint)], 0)


class KilledError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Callable[[], None]:
    """The process dies while the tensor after so many is rounded."""
    real, count = rounding_matrices.round_matrix, [0]

    def dying(*args: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] > steps:
            raise KilledError
        return real(*args, **named)

    # Without text a tensor's pieces are rounded elsewhere, some ahead, and taken in turn.
    pieces, taken = GgufRun._write_pieces, [0]

    def dying_too(*args: Any) -> None:
        taken[0] += 1
        if taken[0] > steps:
            raise KilledError
        pieces(*args)

    monkeypatch.setattr(rounding_matrices, "round_matrix", dying)
    monkeypatch.setattr(GgufRun, "_write_pieces", dying_too)

    def alive() -> None:
        monkeypatch.setattr(rounding_matrices, "round_matrix", real)
        monkeypatch.setattr(GgufRun, "_write_pieces", pieces)

    return alive


@pytest.mark.parametrize("steps", [0, 1, 4, 9, 14])
@pytest.mark.parametrize("text", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path,
    checkpoint: Checkpoint,
    windows: Windows,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    text: bool,
):
    if text:
        pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    types = {name: TYPES[i % 3] for i, name in enumerate(rounded_names(checkpoint))}
    given = windows if text else None
    whole = compress_checkpoint(checkpoint, tmp_path / "a.gguf", types, windows=given)
    alive = stop_after(monkeypatch, steps)
    with pytest.raises(KilledError):
        compress_checkpoint(checkpoint, tmp_path / "b.gguf", types, windows=given)
    assert not (tmp_path / "b.gguf").exists()
    alive()
    again = stop_after(monkeypatch, len(types) - steps)  # what is finished is not rounded again
    resumed = compress_checkpoint(checkpoint, tmp_path / "b.gguf", types, windows=given)
    again()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert [row.error for row in resumed.rows] == [row.error for row in whole.rows]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_another_text_begins_anew(
    tmp_path: Path, checkpoint: Checkpoint, windows: Windows, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    types = uniform_types(checkpoint, "Q4_0")
    other = Windows("other", windows.proof, windows.search, windows.calibration, 1)
    alive = stop_after(monkeypatch, 5)
    with pytest.raises(KilledError):
        compress_checkpoint(checkpoint, tmp_path / "b.gguf", types, windows=windows)
    alive()
    compress_checkpoint(checkpoint, tmp_path / "b.gguf", types, windows=other)
    compress_checkpoint(checkpoint, tmp_path / "a.gguf", types, windows=other)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
