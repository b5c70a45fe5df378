"""Writing GGUF files: what comes back, and what a killed, wrong or second run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, write_hollow_llama, write_llama
from numpy.typing import NDArray

from packlight.errors import UnusableModel, UnusableOutput
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.formats.table import encode_plain
from packlight.llm.gguf import Kind, begin_gguf, plain_contents, read_gguf, write_gguf
from packlight.llm.gguf.encode import encode_rows
from packlight.llm.gguf.values import value_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path / "model"))


def contents(checkpoint: Checkpoint, kind: str = "F32") -> Iterator[tuple[str, str, NDArray[Any]]]:
    for name, info in checkpoint.tensors.items():
        yield name, kind if len(info.shape) > 1 else "F32", checkpoint.read(name)


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 2**-11), ("BF16", 2**-8)])
def test_what_was_written_is_read(tmp_path: Path, checkpoint: Checkpoint, kind: str, error: float):
    path = tmp_path / "out.gguf"
    write_gguf(path, checkpoint, contents(checkpoint, kind))
    back = open_checkpoint(path)
    assert list(back.tensors) == list(checkpoint.tensors)
    assert back.roles == checkpoint.roles
    for name, info in checkpoint.tensors.items():
        assert back.tensors[name].dtype == (kind if len(info.shape) > 1 else "F32")
        asked = checkpoint.read(name)
        assert (np.abs(back.read(name) - asked) <= error * np.abs(asked) + 1e-7).all()
    same = ("layers", "width", "heads", "kv_heads", "vocabulary", "context", "tied", "rope_theta")
    for field in same:
        assert getattr(back.config, field) == getattr(checkpoint.config, field)


def test_a_tensor_that_is_coded_already_is_taken_as_it_is(tmp_path: Path, checkpoint: Checkpoint):
    name, path = "blk.0.ffn_up.weight", tmp_path / "out.gguf"
    codes = np.random.default_rng(0).integers(-127, 128, (96, 2, 32)).astype(np.int8)
    scales = np.full((96, 2, 1), 0.125, np.float16)
    rows = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=2).reshape(96, 68)
    write_gguf(
        path,
        checkpoint,
        (
            (n, "Q8_0" if n == name else k, rows if n == name else c)
            for n, k, c in contents(checkpoint)
        ),
    )
    back = open_checkpoint(path)
    assert np.array_equal(back.read(name), (codes * np.float32(0.125)).reshape(96, 64))
    assert np.array_equal(back.read_stored(name), rows)
    assert read_gguf(path).metadata["general.file_type"].content == 7


def test_metadata_are_carried_over_completely(tmp_path: Path, checkpoint: Checkpoint):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    own = {
        "general.name": "tiny",
        "custom.u8": value_of([0, 255], Kind.U8),
        "custom.f64": value_of(0.1, Kind.F64),
        "custom.empty": value_of([], Kind.STRING),
        "custom.bytes": value_of([b"\xff\x00", "ü"]),
        "custom.i64": value_of(-5, Kind.I64),
        "tokenizer.chat_template.other": "{{ x }}",
    }
    write_gguf(first, checkpoint, contents(checkpoint), metadata=own)
    copy = open_checkpoint(first)
    write_gguf(second, copy, contents(copy), metadata={"general.name": None})
    a, b = read_gguf(first).metadata, read_gguf(second).metadata
    assert {**a} == {**b, "general.name": value_of("tiny")}
    assert set(own) <= set(a) and a["custom.u8"] == own["custom.u8"]
    assert a["tokenizer.ggml.tokens"] == checkpoint.gguf_metadata()["tokenizer.ggml.tokens"]


def test_a_file_in_f16_is_not_called_what_it_was_read_from(tmp_path: Path, checkpoint: Checkpoint):
    write_gguf(tmp_path / "a.gguf", checkpoint, contents(checkpoint))
    copy = open_checkpoint(tmp_path / "a.gguf")
    written = write_gguf(tmp_path / "b.gguf", copy, contents(copy, "F16"))
    assert written.metadata["general.file_type"].content == 1


def test_the_same_gives_the_same_bytes(tmp_path: Path, checkpoint: Checkpoint):
    for name in ("a", "b"):
        write_gguf(tmp_path / name, checkpoint, contents(checkpoint))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "model"]


def test_a_tensor_may_come_in_blocks_of_rows(tmp_path: Path, checkpoint: Checkpoint):
    write_gguf(tmp_path / "whole", checkpoint, contents(checkpoint))
    blocks = (
        (name, "F32", checkpoint.read_blocks(name, most_bytes=1000)) for name in checkpoint.tensors
    )
    write_gguf(tmp_path / "blocks", checkpoint, blocks)
    assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(("count", "given"), [(299, 299), (301, 301)])
def test_blocks_must_add_up(tmp_path: Path, checkpoint: Checkpoint, count: int, given: int):
    blocks = iter(np.ones((count, 1, 64), np.float32))
    with pytest.raises(UnusableModel, match=f"token_embd.weight has 300 rows, and {given}"):
        write_gguf(tmp_path / "out", checkpoint, [("token_embd.weight", "F32", blocks)])
    assert finished(tmp_path / "out", checkpoint) == 0


def test_the_plain_model(tmp_path: Path, checkpoint: Checkpoint):
    written = write_gguf(tmp_path / "out", checkpoint, plain_contents(checkpoint, "F16"))
    kinds = {name: one.dtype for name, one in written.tensors.items()}
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_q.weight"] == "F16"
    assert kinds["output_norm.weight"] == "F32"


_LIMITED = """
import resource, sys
from pathlib import Path
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.gguf import plain_contents, write_gguf

status = Path("/proc/self/status").read_text()
used = 1024 * int(status.split("VmSize:")[1].split()[0])
limit = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
checkpoint = open_checkpoint(sys.argv[1])
assert checkpoint.size_bytes > 3 * int(sys.argv[3])
write_gguf(sys.argv[2], checkpoint, plain_contents(checkpoint, "F16"))
"""


def test_a_model_three_times_as_large_as_the_memory_is_written(tmp_path: Path):
    folder = write_hollow_llama(tmp_path / "model", feed_forward=130_000)
    command = [sys.executable, "-c", _LIMITED, str(folder), str(tmp_path / "out"), str(60 << 20)]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out").stat().st_size > 90 << 20


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, checkpoint: Checkpoint, stop: int):
    whole, path = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    write_gguf(whole, checkpoint, contents(checkpoint, "F16"))

    def killed() -> Iterator[tuple[str, str, NDArray[Any]]]:
        for number, content in enumerate(contents(checkpoint, "F16")):
            if number == stop:
                raise Killed
            yield content

    with pytest.raises(Killed):
        write_gguf(path, checkpoint, killed())
    assert not path.exists()
    read = []

    def lazily(name: str, kind: str) -> Any:
        def compute() -> NDArray[np.float32]:
            read.append(name)
            return checkpoint.read(name)

        return name, kind, compute

    write_gguf(
        path,
        checkpoint,
        (lazily(n, "F16" if len(i.shape) > 1 else "F32") for n, i in checkpoint.tensors.items()),
    )
    assert read == list(checkpoint.tensors)[stop:]
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "out.gguf", "whole.gguf"]


_KILLED = """
import os, sys
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.gguf import write_gguf

checkpoint = open_checkpoint(sys.argv[1])

def contents():
    for number, name in enumerate(checkpoint.tensors):
        if number == 9:
            os.kill(os.getpid(), 9)
        yield name, "F32", checkpoint.read(name)

write_gguf(sys.argv[2], checkpoint, contents())
"""


def test_a_process_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, checkpoint: Checkpoint):
    whole, path = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    write_gguf(whole, checkpoint, contents(checkpoint))
    command = [sys.executable, "-c", _KILLED, str(checkpoint.path), str(path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9
    assert finished(path, checkpoint) == 9
    write_gguf(path, checkpoint, contents(checkpoint))
    assert path.read_bytes() == whole.read_bytes()


def half_write(path: Path, checkpoint: Checkpoint, count: int = 5, **settings: Any) -> None:
    with begin_gguf(path, checkpoint, **settings) as writing:
        for name, kind, content in list(contents(checkpoint))[:count]:
            writing.add(name, kind, content)


def finished(path: Path, checkpoint: Checkpoint, **settings: Any) -> int:
    with begin_gguf(path, checkpoint, **settings) as writing:
        return len(writing.finished)


def test_what_is_finished_can_be_read_back(tmp_path: Path, checkpoint: Checkpoint):
    half_write(tmp_path / "out", checkpoint)
    with begin_gguf(tmp_path / "out", checkpoint) as writing:
        assert list(writing.finished.items()) == [
            (name, "F32") for name in list(checkpoint.tensors)[:5]
        ]
        rows = writing.read("token_embd.weight").view(np.float32)
        assert np.array_equal(rows, checkpoint.read("token_embd.weight"))


def test_only_the_same_work_goes_on(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "out"
    half_write(path, checkpoint)
    assert finished(path, checkpoint) == 5
    assert finished(path, checkpoint, settings="other") == 0
    half_write(path, checkpoint)
    assert finished(path, checkpoint, metadata={"general.name": "other"}) == 0
    half_write(path, checkpoint)
    other = open_checkpoint(write_llama(tmp_path / "other", llama_tensors(seed=1)))
    assert finished(path, other) == 0


def test_a_damaged_remainder_is_written_anew(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "out"
    half_write(path, checkpoint)
    partial, journal = tmp_path / ".out.partial", tmp_path / ".out.partial.journal"
    third = json.loads(journal.read_text().splitlines()[3])
    with partial.open("r+b") as file:
        file.seek(third["offset"] + 3)
        file.write(b"?")
    assert finished(path, checkpoint) == 2
    half_write(path, checkpoint)
    with journal.open("r+") as file:
        file.truncate(journal.stat().st_size - 10)
    assert finished(path, checkpoint) == 4
    half_write(path, checkpoint)
    os.truncate(partial, third["offset"])
    assert finished(path, checkpoint) == 2
    half_write(path, checkpoint)
    journal.write_bytes(b"\xff{}")
    assert finished(path, checkpoint) == 0
    half_write(path, checkpoint)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], lines[1].replace('"F32"', '"Q8_0"'), *lines[2:]]))
    assert finished(path, checkpoint) == 0


def test_other_contents_of_a_finished_tensor_are_an_error(tmp_path: Path, checkpoint: Checkpoint):
    half_write(tmp_path / "out", checkpoint)
    with pytest.raises(UnusableOutput, match=r"half written with other contents of token_embd"):
        write_gguf(
            tmp_path / "out", checkpoint, ((n, k, c + 1) for n, k, c in contents(checkpoint))
        )


def test_two_runs_do_not_write_one_file(tmp_path: Path, checkpoint: Checkpoint):
    with (
        begin_gguf(tmp_path / "out", checkpoint),
        pytest.raises(UnusableOutput, match="is being written by another run"),
        begin_gguf(tmp_path / "out", checkpoint),
    ):
        pass


def test_the_model_itself_is_never_overwritten(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "a.gguf"
    write_gguf(path, checkpoint, contents(checkpoint))
    copy = open_checkpoint(path)
    os.link(path, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(path)
    for same in (path, tmp_path / "hard.gguf", tmp_path / "soft.gguf"):
        with pytest.raises(UnusableOutput, match="is the model that is read"):
            write_gguf(same, copy, contents(copy))


def test_a_disk_that_is_full_leaves_what_goes_on(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "out"
    half_write(path, checkpoint)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("packlight.llm.gguf.journal.Journal.add", full)
        with pytest.raises(UnusableOutput, match=r"No space left on device.*is kept"):
            write_gguf(path, checkpoint, contents(checkpoint))
    assert not path.exists()
    assert finished(path, checkpoint) == 5


def test_what_goes_wrong_elsewhere_is_not_blamed_on_the_file(
    tmp_path: Path, checkpoint: Checkpoint
):
    with pytest.raises(FileNotFoundError), begin_gguf(tmp_path / "out", checkpoint):
        (tmp_path / "nothing").read_bytes()


def test_a_folder_that_is_not_there(tmp_path: Path, checkpoint: Checkpoint):
    with pytest.raises(UnusableOutput, match="check that the folder exists"):
        write_gguf(tmp_path / "no" / "out", checkpoint, contents(checkpoint))


def test_a_tensor_that_broke_off_leaves_nothing_behind(tmp_path: Path, checkpoint: Checkpoint):
    some = list(contents(checkpoint))
    name, kind, embeddings = some[0]
    with begin_gguf(tmp_path / "out", checkpoint) as writing:
        for other in reversed(some[1:]):
            writing.add(*other)
        with pytest.raises(UnusableModel, match="holds NaN"):
            writing.add(name, kind, [embeddings[:250], embeddings[250:] * np.nan])
        writing.add(name, "F16", embeddings)  # shorter than what was there
        file = writing.finish()
    assert file.size_bytes == file.tensors[name].offset + 300 * 64 * 2
    assert np.allclose(open_checkpoint(tmp_path / "out").read(name), embeddings, atol=2e-3)


@pytest.mark.parametrize("name", [".out.partial", ".out.partial.journal"])
def test_a_link_in_place_of_the_unfinished_file_is_not_followed(
    tmp_path: Path, checkpoint: Checkpoint, name: str
):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UnusableOutput, match="cannot be written"):
        write_gguf(tmp_path / "out", checkpoint, contents(checkpoint))
    assert (tmp_path / "victim").read_text() == "precious"


def test_every_tensor_and_no_other_is_written(tmp_path: Path, checkpoint: Checkpoint):
    some = list(contents(checkpoint))
    with pytest.raises(UnusableModel, match=r"would lack 1 of 21 tensors, blk\.1\.ffn_down"):
        write_gguf(tmp_path / "out", checkpoint, some[:-1])
    with pytest.raises(UnusableModel, match="extra is to be written, which the checkpoint"):
        write_gguf(tmp_path / "out", checkpoint, [*some, ("extra", "F32", np.ones((2, 2)))])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("Q9", np.ones((2, 32), np.float32), "none of GGUF's types"),
        ("Q4_K", np.zeros((2, 32), np.uint8), "rows of 32 weights, and Q4_K stores blocks of 256"),
        ("Q8_0", np.zeros((2, 33), np.uint8), "takes 68 bytes as Q8_0, and 66 are given"),
        ("Q8_0", np.ones((2, 32), np.float32), "encode it first"),
        ("F32", np.ones((32, 2), np.float32), r"has the shape \[2, 32\], and \[32, 2\] is given"),
        ("F32", np.full((2, 32), np.nan, np.float32), "holds NaN or infinity"),
        ("F16", np.full((2, 32), 1e6, np.float32), "holds weights above 65504"),
    ],
)
def test_contents_that_do_not_fit_are_refused(kind: str, content: NDArray[Any], message: str):
    with pytest.raises(UnusableModel, match=f"w .*{message}"):
        encode_rows("w", kind, content, (2, 32))


def test_bfloat16_rounds_to_nearest_halves_to_even():
    floats = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, -1 - 2**-8 - 2**-12], np.float32)
    back = (encode_plain("BF16", floats).view("<u2").astype(np.uint32) << 16).view(np.float32)
    assert back.tolist() == [1, 1, 1 + 2**-6, 1, -1 - 2**-7]
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    asked = torch.from_numpy(draw).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(encode_plain("BF16", draw).view("<u2"), asked)


def test_the_gguf_package_reads_the_same(tmp_path: Path, real: Path):
    gguf = pytest.importorskip("gguf")
    checkpoint = open_checkpoint(real / "novels-llama" / "hf")
    path = tmp_path / "novels.gguf"
    write_gguf(path, checkpoint, contents(checkpoint, "F16"))
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == list(checkpoint.tensors)
    for tensor in reader.tensors:
        asked = checkpoint.read(tensor.name)
        assert tuple(tensor.shape)[::-1] == asked.shape
        assert np.array_equal(tensor.data, asked.astype(tensor.data.dtype).reshape(asked.shape))
    for key, value in read_gguf(path).metadata.items():
        assert reader.fields[key].contents() == value.content, key
