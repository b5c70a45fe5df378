"""What bad input gets: one sentence that names it, exit 2, nothing written, in a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import packlight

Case = Callable[["Place"], list[str]]


class Place:
    """An empty folder to stand in, with a model and samples that are fine to begin with."""

    def __init__(self, folder: Path, write_mlp: Callable[..., Path], rows: NDArray[Any]) -> None:
        self.folder = folder / "here"
        self.temporary = folder / "tmp"
        self.folder.mkdir()
        self.temporary.mkdir()
        self.rows = rows
        self.model = write_mlp(self.folder / "net.onnx", hidden=32)
        np.savez(self.folder / "s.npz", x=rows)

    def run(self, *argv: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m packlight`; limit_bytes: no file may become larger, as on a full disk."""
        command = [sys.executable, "-m", "packlight", *argv]
        if limit_bytes is not None:
            code = (
                "import resource, signal, sys; from packlight.cli import main; "
                "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
                f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes})); main()"
            )
            command = [sys.executable, "-c", code, *argv]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def environment(self) -> dict[str, str]:
        """As a user's, with a folder for temporary files that can be looked into."""
        found = os.environ | {"TMPDIR": str(self.temporary), "HOME": str(self.temporary)}
        found["PYTHONPATH"] = str(Path(packlight.__file__).parents[1])
        del found["ORT_DISABLE_TELEMETRY"]
        return found

    def listing(self) -> list[tuple[str, int]]:
        """Everything that lies here, with its size."""
        found = [*self.folder.rglob("*"), *self.temporary.rglob("*")]
        return sorted((str(path), path.lstat().st_size) for path in found)

    def external(self, location: str) -> onnx.ModelProto:
        """The model with the tensor w2 said to lie at `location`."""
        proto = onnx.load(self.model)
        for tensor in proto.graph.initializer:
            if tensor.name == "w2":
                (self.folder / "w2.bin").write_bytes(tensor.raw_data)
                del tensor.external_data[:]
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=location)
        return proto


@pytest.fixture
def place(tmp_path: Path, write_mlp: Callable[..., Path], rows: NDArray[np.float32]) -> Place:
    return Place(tmp_path, write_mlp, rows)


def with_data(name: str = "s.npz") -> list[str]:
    return ["compress", "net.onnx", "--data", name]


def save(place: Place, **arrays: NDArray[Any]) -> list[str]:
    np.savez(place.folder / "s.npz", **arrays)
    return with_data()


def change_model(place: Place, change: Callable[[onnx.ModelProto], None]) -> list[str]:
    proto = onnx.load(place.model)
    change(proto)
    onnx.save(proto, place.model)
    return with_data()


# Models --


def absent(place: Place) -> list[str]:
    return ["compress", "nets.onnx"]


def empty(place: Place) -> list[str]:
    place.model.write_bytes(b"")
    return with_data()


def truncated(place: Place) -> list[str]:
    place.model.write_bytes(place.model.read_bytes()[:-400])
    return with_data()


def no_onnx(place: Place) -> list[str]:
    place.model.write_text("This is a text about a model.")
    return with_data()


def checkpoint(place: Place) -> list[str]:
    place.model.write_bytes(b"PK\x03\x04" + bytes(100))
    return with_data()


def a_folder(place: Place) -> list[str]:
    return ["compress", "."]


def external_missing(place: Place) -> list[str]:
    onnx.save(place.external("gone.bin"), place.model)
    return with_data()


def external_upwards(place: Place) -> list[str]:
    onnx.save(place.external("../here/w2.bin"), place.model)
    return with_data()


def external_absolute(place: Place) -> list[str]:
    onnx.save(place.external("/etc/hostname"), place.model)
    return with_data()


def external_link(place: Place) -> list[str]:
    onnx.save(place.external("link.bin"), place.model)
    outside = place.temporary.parent / "outside.bin"
    (place.folder / "w2.bin").rename(outside)
    (place.folder / "link.bin").symlink_to(outside)
    return with_data()


def external_short(place: Place) -> list[str]:
    onnx.save(place.external("w2.bin"), place.model)
    with (place.folder / "w2.bin").open("r+b") as file:
        file.truncate(100)
    return with_data()


def broken_weight(value: float) -> Case:
    def case(place: Place) -> list[str]:
        def change(proto: onnx.ModelProto) -> None:
            for number, tensor in enumerate(proto.graph.initializer):
                if tensor.name == "w2":
                    array = numpy_helper.to_array(tensor).copy()
                    array[3, 4] = value
                    proto.graph.initializer[number].CopyFrom(numpy_helper.from_array(array, "w2"))

        return change_model(place, change)

    return case


def custom_operator(place: Place) -> list[str]:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(
            helper.make_node("Sparkle", ["y"], ["z"], name="star", domain="my.ops")
        )
        proto.opset_import.append(helper.make_opsetid("my.ops", 1))
        proto.graph.output[0].name = "z"

    return change_model(place, change)


# Samples --


def no_samples_file(place: Place) -> list[str]:
    return with_data("photos/")


def no_npz(place: Place) -> list[str]:
    (place.folder / "s.npz").write_bytes(b"not an archive")
    return with_data()


def empty_npz(place: Place) -> list[str]:
    (place.folder / "s.npz").write_bytes(b"")
    return with_data()


def empty_folder(place: Place) -> list[str]:
    (place.folder / "photos").mkdir()
    return with_data("photos")


def broken_sample(value: float) -> Case:
    def case(place: Place) -> list[str]:
        rows = place.rows.copy()
        rows[137, 5] = value
        return save(place, x=rows)

    return case


def other_name(place: Place) -> list[str]:
    return save(place, picture=place.rows, mask=place.rows)


def other_type(place: Place) -> list[str]:
    return save(place, x=np.full((20, 16), "cat"))


def other_shape(place: Place) -> list[str]:
    return save(place, x=np.ones((20, 15), np.float32))


def pickled(place: Place) -> list[str]:
    return save(place, x=np.array([{"a": 1}] * 20, dtype=object))


def zero_samples(place: Place) -> list[str]:
    return save(place, x=place.rows[:0])


def other_labels(place: Place) -> list[str]:
    return save(place, x=place.rows, labels=np.zeros(199, np.int64))


# Options and output --


def existing_output(place: Place) -> list[str]:
    (place.folder / "net.packed").mkdir()
    (place.folder / "net.packed" / "mine").touch()
    return with_data()


def output_is_a_file(place: Place) -> list[str]:
    return [*with_data(), "--out", "s.npz"]


def output_under_a_file(place: Place) -> list[str]:
    return [*with_data(), "--out", "s.npz/packed"]


def read_only_output(place: Place) -> list[str]:
    # Root may write anywhere but where the kernel itself has no file to make.
    return [*with_data(), "--out", "/proc/packed"]


def replaces_its_input(place: Place) -> list[str]:
    return [*with_data(), "--out", ".", "--force"]


def option(*argv: str) -> Case:
    return lambda place: [*with_data(), *argv]


def broken_recipe(place: Place) -> list[str]:
    (place.folder / "r.yaml").write_text("layers: [1, 2\n")
    return [*with_data(), "--recipe", "r.yaml"]


def recipe_for_another(place: Place) -> list[str]:
    (place.folder / "r.yaml").write_text("layers:\n  h1: int8\n")
    return [*with_data(), "--recipe", "r.yaml"]


def channels_of_nothing(place: Place) -> list[str]:
    (place.folder / "r.yaml").write_text("layers: {g: int8}\nchannels:\n  g1: 4\n")
    return [*with_data(), "--recipe", "r.yaml"]


def ranks_of_nothing(place: Place) -> list[str]:
    (place.folder / "r.yaml").write_text("layers: {g: int8}\nranks:\n  g1: matrix 4\n")
    return [*with_data(), "--recipe", "r.yaml"]


CASES: list[tuple[Case, tuple[str, ...]]] = [
    (absent, ("nets.onnx", "check the name")),
    (empty, ("net.onnx is empty", "again")),
    (truncated, ("net.onnx", "cut short", "again")),
    (no_onnx, ("net.onnx is not an ONNX model", "exported to ONNX")),
    (checkpoint, ("net.onnx", "PyTorch checkpoint", "torch.onnx.export")),
    (a_folder, (". is a folder", ".onnx file inside")),
    (external_missing, ("'w2'", "net.onnx", "'gone.bin'", "put it next to the model")),
    (external_upwards, ("'w2'", "outside the model's folder", "../here/w2.bin")),
    (external_absolute, ("'w2'", "outside the model's folder", "/etc/hostname")),
    (external_link, ("'w2'", "outside the model's folder through a link", "'link.bin'")),
    (external_short, ("'w2'", "'w2.bin'", "only 100", "cut short")),
    (broken_weight(np.nan), ("'w2'", "net.onnx", "NaN", "checkpoint that works")),
    (broken_weight(-np.inf), ("'w2'", "net.onnx", "infinity")),
    (custom_operator, ("net.onnx", "'Sparkle'", "'my.ops'", "standard operators")),
    (no_samples_file, ("photos", "check the path")),
    (no_npz, ("s.npz",)),
    (empty_npz, ("s.npz is empty", "again")),
    (empty_folder, ("photos",)),
    (broken_sample(np.nan), ("s.npz", "sample 137", "'x'", "NaN", "remove")),
    (broken_sample(np.inf), ("s.npz", "sample 137", "'x'", "inf")),
    (other_name, ("s.npz", "picture", "x: float32[n, 16]")),
    (other_type, ("s.npz", "'x' holds text", "x: float32[n, 16]")),
    (other_shape, ("s.npz", "[20, 15]", "x: float32[n, 16]", "[samples, 16]")),
    (pickled, ("s.npz", "'x.npy'", "plain arrays")),
    (zero_samples, ("s.npz", "zero samples")),
    (other_labels, ("s.npz", "199", "200", "labels")),
    (existing_output, ("net.packed exists", "--out", "--force")),
    (output_is_a_file, ("s.npz is a file", "--out")),
    (output_under_a_file, ("s.npz is a file", "--out")),
    (read_only_output, ("/proc/packed", "nothing may be written in /proc", "--out")),
    (replaces_its_input, ("net.onnx lies in it", "--out")),
    (option("--target", "lapton"), ("lapton", "did you mean 'laptop'")),
    (option("--max-drop", "5MB"), ("--max-drop", "1%")),
    (option("--prune", "120%"), ("--prune 120%", "30%", "auto")),
    (option("--prune", "95%"), ("at most", "multiply-accumulates", "ask for less")),
    (option("--heal-minutes", "-1", "--prune", "30%"), ("--heal-minutes", "0 or more")),
    (ranks_of_nothing, ("'g1'", "factorized", "'g'")),
    (channels_of_nothing, ("'g1'", "channels", "'g'")),
    (option("--max-size", "big"), ("--max-size", "5MB")),
    (option("--metric", "own.py:score"), ("own.py", "does not exist")),
    (option("--metric", "top1"), ("top1", "labels")),
    (option("--preset", "smalest"), ("'smalest'", "did you mean 'smallest'")),
    (option("--pin", "gg=int8"), ("'gg'", "did you mean 'g'")),
    (option("--pin", "g=int88"), ("'int88'", "did you mean 'int8'")),
    (option("--forbid", "flaot16"), ("'flaot16'", "did you mean 'float16'")),
    (option("--max-download", "much"), ("--max-download", "much")),
    (option("--workers", "many"), ("many", "auto")),
    (broken_recipe, ("r.yaml", "YAML")),
    (recipe_for_another, ("'h1'", "did you mean 'h'")),
]


def name_of(value: object) -> str | None:
    return getattr(value, "__qualname__", "").split(".")[0] or None


@pytest.mark.parametrize(("case", "words"), CASES, ids=name_of)
def test_one_sentence_and_nothing_written(place: Place, case: Case, words: tuple[str, ...]) -> None:
    argv = case(place)
    before = place.listing()
    done = place.run(*argv)
    told = done.stderr.splitlines()[-1]
    print(told)
    assert done.returncode == 2, done.stderr
    assert told.startswith("error: ")
    assert sum(line.startswith("error") for line in done.stderr.splitlines()) == 1
    for word in words:
        assert word in told
    assert told.endswith((".", "?", "!"))
    assert len(told) < 700
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert place.listing() == before


def test_json_leaves_stdout_empty_when_it_fails(place: Place) -> None:
    done = place.run(*empty(place), "--json")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("argv", [["inspect", "net.onnx"], ["compare", "net.onnx", "net.onnx"]])
def test_the_other_commands_say_it_as_well(place: Place, argv: list[str]) -> None:
    broken_weight(np.nan)(place)
    before = place.listing()
    done = place.run(*argv, "--data", "s.npz")
    assert done.returncode == 2
    assert "'w2'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert place.listing() == before


def test_a_full_disk_leaves_nothing(place: Place) -> None:
    before = place.listing()
    done = place.run(*with_data(), limit_bytes=2000)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert told.startswith("error: ")
    assert "full" in told or "too large" in told or "space" in told
    assert "Traceback" not in done.stderr
    assert place.listing() == before


# What is fine --


def test_a_pipe_gets_plain_lines_and_force_replaces(place: Place) -> None:
    (place.folder / "net.packed").mkdir()
    (place.folder / "net.packed" / "old.txt").touch()
    recipe = place.folder / "r.yaml"
    recipe.write_text("layers:\n  g: weights-int8\n")
    done = place.run(*with_data(), "--force", "--recipe", "r.yaml")
    assert done.returncode in (0, 3, 4), done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[0] == "reading the model and the samples"
    assert "net.packed/report.html" in done.stdout
    assert sorted(path.name for path in (place.folder / "net.packed").iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.onnx",
        "recipe.yaml",
        "report.html",
        "report.json",
        "verify.html",
    ]
    assert {path.name for path in place.folder.iterdir()} == {
        "net.onnx",
        "net.packed",
        "r.yaml",
        "s.npz",
    }
    assert list(place.temporary.iterdir()) == []


def test_json_is_all_of_stdout(place: Place) -> None:
    (place.folder / "r.yaml").write_text("layers:\n  g: weights-int8\n")
    done = place.run(*with_data(), "--json", "--recipe", "r.yaml", "--out", "out")
    found = json.loads(done.stdout)
    saved = json.loads((place.folder / "out" / "report.json").read_text())
    assert {key: found[key] for key in saved} == saved
    assert found["output"] == "out"
    assert {"met": 0, "best-effort": 3, "not-worth-it": 4}[found["verdict"]] == done.returncode
    dry = place.run(*with_data(), "--dry-run", "--json")
    assert json.loads(dry.stdout)["layers"] == {"Gemm": 2, "MatMul": 1}
    assert dry.returncode == 0


# Ctrl-C ------------------------------------------------------------------------------------------


def children_of(process: int) -> list[int]:
    """Processes that were started by this one, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == process:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see children")
@pytest.mark.parametrize(
    "moment",
    [
        "",  # while modules are imported
        "reading the model",
        "simplifying",
        "calibrating",
        "trying whole recipes",
        "proving",
    ],
)
def test_an_interrupt_leaves_nothing(place: Place, demo: Path, moment: str) -> None:
    more = []
    if moment == "proving":  # a recipe spares the search
        (place.folder / "r.yaml").write_text("layers:\n  /head/Gemm: weights-int8\n")
        more = ["--recipe", "r.yaml"]
    before = place.listing()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "packlight", "compress", str(demo / "digits.onnx")),
            *("--data", str(demo / "digits.npz"), *more),
        ],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    heard = []
    if moment:
        for line in process.stderr:
            heard.append(line)
            if line.startswith(moment):
                break
        time.sleep(0.3)
    else:
        # NumPy is mapped: the command has begun and is importing.
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "_multiarray_umath" not in maps.read_text():
            time.sleep(0.01)
    children = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, (heard, err)
    assert err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in err
    assert out == ""
    assert place.listing() == before
    for child in children:
        for _ in range(100):
            if not Path(f"/proc/{child}").exists():
                break
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
