from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from packlight.errors import (
    RuntimeCrashed,
    RuntimeOutOfMemory,
    RuntimeRefused,
    RuntimeTimedOut,
    WrongUsage,
)
from packlight.runtime import Limits, Process
from packlight.tensors import TensorSpec

Write = Callable[..., Path]

LOOP = """g (int64 trips, float x) => (float y) {
    keep = Constant <value = bool {1}> ()
    y = Loop (trips, keep, x) <body = b (int64 i, bool before, float v) => (bool after, float w) {
        after = Identity (before)
        w = Neg (v)
    }>
}"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a graph in ONNX's text form to a file."""

    def make(graph: str, name: str = "model.onnx") -> Path:
        text = '<ir_version: 10, opset_import: ["": 21, "somewhere": 1]>\n' + graph
        onnx.save(parser.parse_model(text), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """One child for the tests that leave it sound."""
    with Process() as shared:
        yield shared


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_session_knows_its_inputs_and_outputs(process: Process, write: Write) -> None:
    path = write("g (float[N, 2] x, int64[3] k, bool c) => (float[N, 2] y) { y = Neg (x) }")
    session = process.load(path)
    assert session.inputs == (
        TensorSpec("x", "float32", ("N", 2)),
        TensorSpec("k", "int64", (3,)),
        TensorSpec("c", "bool", ()),
    )
    assert session.outputs == (TensorSpec("y", "float32", ("N", 2)),)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float", "float32"),
        ("double", "float64"),
        ("float16", "float16"),
        ("int8", "int8"),
        ("uint8", "uint8"),
        ("int32", "int32"),
        ("int64", "int64"),
        ("uint64", "uint64"),
        ("bool", "bool"),
    ],
)
def test_values_of_each_type_pass_through(
    process: Process, write: Write, kind: str, dtype: str
) -> None:
    session = process.load(write(f"g ({kind}[N, 3] x) => ({kind}[N, 3] y) {{ y = Identity (x) }}"))
    for rows in (0, 1, 5):
        sent = np.arange(3 * rows).reshape(rows, 3).astype(dtype)
        received = session.run({"x": sent})["y"]
        assert received.dtype == sent.dtype
        np.testing.assert_array_equal(received, sent)


@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [
        ("bfloat16", np.uint16, ml_dtypes.bfloat16),
        ("float8e4m3fn", np.uint8, ml_dtypes.float8_e4m3fn),
    ],
)
def test_types_numpy_lacks_travel_as_bits(
    process: Process, write: Write, kind: str, bits: Any, dtype: Any
) -> None:
    graph = f"g ({kind}[3] x, float[3] f) => ({kind}[3] y, {kind}[3] z, float[3] e) {{"
    cast = onnx.TensorProto.DataType.Value(kind.upper())
    graph += f"y = Identity (x) z = Cast <to = {cast}> (f) e = Identity (f) }}"
    session = process.load(write(graph))
    assert [spec.dtype for spec in session.outputs] == [kind, kind, "float32"]
    values = np.array([1.5, -2.0, 0.25], np.float32)
    sent = values.astype(dtype).view(bits)
    received = session.run({"x": sent, "f": values})
    np.testing.assert_array_equal(received["y"], sent)
    np.testing.assert_array_equal(received["z"], sent)
    np.testing.assert_array_equal(received["e"], values)
    assert process.time([session], {"x": sent, "f": values}, rounds=2).shape == (1, 2)


def test_fetches_choose_outputs(process: Process, write: Write) -> None:
    path = write("g (float[2] x) => (float[2] y, float[2] z) { y = Neg (x) z = Abs (y) }")
    session = process.load(path)
    feeds = {"x": np.array([1, -2], np.float32)}
    assert list(session.run(feeds)) == ["y", "z"]
    assert list(session.run(feeds, ["z", "y", "z"])) == ["z", "y"]
    assert session.run(feeds, ["z"])["z"].tolist() == [1, 2]
    with pytest.raises(RuntimeRefused, match="has no output 'q'; it has y, z"):
        session.run(feeds, ["q"])
    with pytest.raises(RuntimeRefused, match="No output"):
        session.run(feeds, [])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.zeros((1, 2), np.float32), "q": np.zeros(1)}, "was given x, q"),
        ({}, r"takes x: float32\[N, 2\].*was given nothing"),
        ({"x": np.zeros((1, 2))}, "is float32, but was given float64"),
        ({"x": np.zeros((1, 3), np.float32)}, r"x: float32\[N, 2\].*\[1, 3\]"),
        ({"x": np.zeros(2, np.float32)}, r"given the shape \[2\]"),
    ],
)
def test_feeds_that_do_not_fit_are_named(
    process: Process, write: Write, feeds: dict[str, Any], message: str
) -> None:
    session = process.load(write("g (float[N, 2] x) => (float[N, 2] y) { y = Neg (x) }"))
    with pytest.raises(RuntimeRefused, match=message):
        session.run(feeds)


def test_byte_order_and_strides_do_not_matter(process: Process, write: Write) -> None:
    session = process.load(write("g (float[N, 2] x) => (float[N, 2] y) { y = Neg (x) }"))
    sent = np.arange(6, dtype=">f4").reshape(2, 3).T
    np.testing.assert_array_equal(session.run({"x": sent})["y"], -sent.astype(np.float32))


def test_text_is_refused_as_input_and_left_out_as_output(process: Process, write: Write) -> None:
    session = process.load(write("g (string[N] s) => (string[N] t) { t = Identity (s) }"))
    assert session.inputs[0].dtype == "string"
    with pytest.raises(RuntimeRefused, match=r"'s' of model\.onnx is of type string"):
        session.run({"s": np.array(["a"])})
    path = write(
        "g (float[N] x) => (float[N] y, seq(float[N]) q) { y = Neg (x) q = SequenceConstruct (x) }"
    )
    session = process.load(path)
    feeds = {"x": np.ones(2, np.float32)}
    assert list(session.run(feeds)) == ["y"]
    with pytest.raises(RuntimeRefused, match=r"'q' of model.onnx is of type seq\(tensor\(float"):
        session.run(feeds, ["q"])


def test_a_refusal_leaves_the_process_sound(process: Process, write: Write, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"this is no model")
    with pytest.raises(RuntimeRefused, match=r"loading noise.onnx: Protobuf parsing failed\."):
        process.load(tmp_path / "noise.onnx")
    with pytest.raises(RuntimeRefused, match=r"no file .*absent\.onnx"):
        process.load(tmp_path / "absent.onnx")
    with pytest.raises(RuntimeRefused, match="'Strange' of the domain 'somewhere'"):
        process.load(write("g (float[2] x) => (float[2] y) { y = somewhere.Strange (x) }"))
    graph = "g (float[N] x, int64[K] s) => (float[P] y) { y = Reshape (x, s) }"
    session = process.load(write(graph))
    feeds = {"x": np.ones(3, np.float32), "s": np.array([7])}
    with pytest.raises(RuntimeRefused, match=r"running model.onnx: Reshape node.*\{3\}.*\{7\}"):
        session.run(feeds)
    assert session.run({**feeds, "s": np.array([3, 1])})["y"].shape == (3, 1)


def test_external_data_is_found_next_to_the_model(process: Process, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) '
    model = parser.parse_model(text + "<float[2] w = {1, 2}> { y = Add (x, w) }")
    weights = np.array([3, 4], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "elsewhere" / "m.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert (path.parent / "w.data").exists()
    assert process.load(path).run({"x": np.ones(2, np.float32)})["y"].tolist() == [4, 5]
    (path.parent / "w.data").unlink()
    with pytest.raises(RuntimeRefused, match=r"loading m\.onnx"):
        process.load(path)


def test_large_arrays_go_both_ways(process: Process, write: Write) -> None:
    session = process.load(write("g (float[N] x) => (float[N] y) { y = Neg (x) }"))
    sent = np.arange(10_000_000, dtype=np.float32)
    np.testing.assert_array_equal(session.run({"x": sent})["y"], -sent)


def test_times_are_rounds_by_session(process: Process, write: Write) -> None:
    first = process.load(write("g (float[N] x) => (float[N] y) { y = Neg (x) }", "a.onnx"))
    second = process.load(write("g (float16[N] z) => (float16[N] y) { y = Neg (z) }", "b.onnx"))
    feeds = {"x": np.ones(4, np.float32)}
    table = process.time([first, first], feeds, rounds=8)
    assert table.shape == (2, 8)
    assert (table > 0).all()
    own = [feeds, {"z": np.ones(4, np.float16)}]
    assert process.time([first, second], own, rounds=8, seconds=1e-9).shape == (2, 6)
    with pytest.raises(RuntimeRefused, match=r"b\.onnx takes"):
        process.time([first, second], feeds, rounds=8)
    for wrong in (([], feeds, 1), ([first], feeds, 0), ([first], [feeds, feeds], 1)):
        with pytest.raises(WrongUsage):
            process.time(wrong[0], wrong[1], rounds=wrong[2])


def test_a_closed_session_is_not_used(process: Process, write: Write) -> None:
    session = process.load(write("g (float[N] x) => (float[N] y) { y = Neg (x) }"))
    session.close()
    session.close()
    with pytest.raises(WrongUsage, match=r"model\.onnx was closed"):
        session.run({"x": np.ones(1, np.float32)})


def test_a_killed_process_is_a_crash_and_stays_one(write: Write) -> None:
    path = write("g (float[N] x) => (float[N] y) { y = Neg (x) }")
    with Process() as process:
        session = process.load(path)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeCrashed, match=r"died while running model\.onnx \(SIGKILL"):
            session.run({"x": np.ones(1, np.float32)})
        assert _is_gone(process.pid)
        with pytest.raises(RuntimeCrashed, match=r"it crashed.*start a new one"):
            process.load(path)
        with pytest.raises(RuntimeCrashed):
            process.peak_memory_bytes()


def test_an_endless_run_is_stopped(write: Write) -> None:
    with Process(limits=Limits(seconds=2.0)) as process:
        session = process.load(write(LOOP))
        feeds = {"trips": np.array(3), "x": np.array(1, np.float32)}
        assert session.run(feeds)["y"] == -1
        with pytest.raises(RuntimeTimedOut, match=r"longer than 2 s for running model\.onnx"):
            session.run({**feeds, "trips": np.array(1 << 60)})
        assert _is_gone(process.pid)


def test_memory_beyond_the_limit_is_refused_by_the_limit(write: Write) -> None:
    path = write(
        "g (int64[1] n) => (float s) { y = ConstantOfShape (n) s = ReduceMax <keepdims = 0> (y) }"
    )
    with Process(limits=Limits(memory_bytes=1 << 29)) as process:
        session = process.load(path)
        with pytest.raises(RuntimeOutOfMemory, match=r"running model\.onnx.*512 MiB"):
            session.run({"n": np.array([1 << 28])})  # 1 GiB, which the machine would have
        # The runtime's arena has grown to what it did not get: that session may be full now.
        session.close()
        assert process.load(path).run({"n": np.array([1000])})["s"] == 0
        big = process.load(
            write("g (float[N] x) => (float s) { s = ReduceMax <keepdims = 0> (x) }")
        )
        with pytest.raises(RuntimeOutOfMemory):
            big.run({"x": np.zeros(1 << 28, np.float32)})
        assert big.run({"x": np.ones(3, np.float32)})["s"] == 1


def test_peak_memory_grows_with_what_ran_and_not_with_the_parent(write: Write) -> None:
    held = np.ones(50_000_000)  # 400 MB of the parent, which a fork would have counted
    graph = (
        "g (int64[1] n) => (float s) { y = ConstantOfShape (n) s = ReduceMax <keepdims = 0> (y) }"
    )
    with Process() as process:
        session = process.load(write(graph))
        before = process.peak_memory_bytes()
        assert before < 300_000_000
        session.run({"n": np.array([50_000_000])})
        assert process.peak_memory_bytes() > before + 150_000_000
    assert held[-1] == 1


def test_an_interrupt_ends_the_child_and_passes_on(write: Write) -> None:
    with Process() as process:
        session = process.load(write(LOOP))
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            session.run({"trips": np.array(1 << 60), "x": np.array(1, np.float32)})
        timer.join()
        assert _is_gone(process.pid)
        with pytest.raises(RuntimeCrashed, match="interrupted"):
            process.peak_memory_bytes()


def test_the_child_ignores_interrupts(write: Write) -> None:
    with Process() as process:
        session = process.load(write("g (float[N] x) => (float[N] y) { y = Neg (x) }"))
        os.kill(process.pid, signal.SIGINT)
        assert session.run({"x": np.ones(1, np.float32)})["y"] == -1


PARENT = """
import sys, numpy as np
from pathlib import Path
from packlight.runtime import Process
process = Process()
session = process.load(Path(sys.argv[1]))
print(process.pid, flush=True)
session.run({"trips": np.array(1 << 60), "x": np.array(1, np.float32)})
"""


def test_the_child_dies_with_its_parent_even_in_mid_run(write: Write) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(write(LOOP))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    for _ in range(200):
        if _is_gone(pid) or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def test_the_child_holds_no_core_files_and_little_else(write: Write) -> None:
    with Process(limits=Limits(memory_bytes=1 << 30)) as process:
        process.load(write("g (float[N] x) => (float[N] y) { y = Neg (x) }"))
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        rows = {line[:25].strip(): line[25:].split()[:2] for line in limits}
        assert rows["Max core file size"] == ["0", "0"]
        assert rows["Max data size"] == [str(1 << 30)] * 2
        assert rows["Max address space"][0] != "unlimited"
        # nothing, nothing, errors, requests, answers
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) <= 8
