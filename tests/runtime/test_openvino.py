"""OpenVINO behind the same Process and Session as onnxruntime."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from packlight.errors import MissingExtra, RuntimeOutOfMemory, RuntimeRefused, WrongUsage
from packlight.runtime import Limits, Process, has_engine, measure_peak_memory, runtime_name
from packlight.tensors import TensorSpec

Write = Callable[..., Path]

needs_openvino = pytest.mark.skipif(
    not has_engine("openvino"), reason="openvino is not installed (pip install packlight[openvino])"
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a graph in ONNX's text form to a file."""

    def make(graph: str, name: str = "model.onnx") -> Path:
        opsets = '["": 21, "somewhere": 1, "com.microsoft": 1]'
        onnx.save(
            parser.parse_model(f"<ir_version: 10, opset_import: {opsets}>\n{graph}"),
            tmp_path / name,
        )
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """One child for the tests that leave it sound."""
    with Process() as shared:
        yield shared


NEG = "g (float[N] x) => (float[N] y) { y = Neg (x) }"


@needs_openvino
def test_both_engines_give_the_same_in_one_process(
    process: Process, write_mlp: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_mlp(tmp_path / "mlp.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)}
    expected = process.load(path).run(feeds)["y"]
    session = process.load(path, engine="openvino", threads=2)
    np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)
    other = {"x": feeds["x"][:2]}
    np.testing.assert_allclose(session.run(other)["y"], expected[:2], rtol=1e-4, atol=1e-4)
    assert session.run(feeds, ["y"])["y"].shape == (5, 4)


@needs_openvino
def test_inputs_and_outputs_have_the_names_and_types_of_the_file(
    process: Process, write: Write
) -> None:
    path = write(
        "g (float[N, 3] a, int64[2] i, bool[M] b, float16[2] h) => "
        "(float[N, 3] a, float[N, 3] p, float[N, 3] q, int64[2] i2, bool[M] n, float16[2] h2) "
        "{ p = Neg (a) q = Identity (p) i2 = Add (i, i) n = Not (b) h2 = Neg (h) }"
    )
    session = process.load(path, engine="openvino")
    assert session.inputs == (
        TensorSpec("a", "float32", (None, 3)),
        TensorSpec("i", "int64", (2,)),
        TensorSpec("b", "bool", (None,)),
        TensorSpec("h", "float16", (2,)),
    )
    feeds = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "i": np.array([1 << 20, -7]),
        "b": np.array([True, False, True]),
        "h": np.array([1.5, -2], np.float16),
    }
    found = session.run(feeds)
    expected = process.load(path).run(feeds)
    assert list(found) == list(expected) == ["a", "p", "q", "i2", "n", "h2"]
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert list(session.run(feeds, ["n", "p"])) == ["n", "p"]


@needs_openvino
def test_times_are_rounds_by_session(process: Process, write: Write) -> None:
    session = process.load(write(NEG), engine="openvino")
    feeds = [{"x": np.ones(4, np.float32)}, {"x": np.ones(9, np.float32)}]
    table = process.time([session, session], feeds, rounds=8)
    assert table.shape == (2, 8)
    assert (table > 0).all()
    session.close()
    with pytest.raises(WrongUsage, match="was closed"):
        session.run(feeds[0])


@needs_openvino
def test_what_it_cannot_read_is_refused_by_name(process: Process, write: Write) -> None:
    unknown = write("g (float[N] x) => (float[N] y) { y = somewhere.Foo (x) }", "unknown.onnx")
    with pytest.raises(RuntimeRefused, match=r"loading unknown\.onnx in openvino.*'Foo'"):
        process.load(unknown, engine="openvino")
    text = unknown.with_name("text.onnx")
    text.write_bytes(b"hello world")
    with pytest.raises(RuntimeRefused, match=r"text\.onnx in openvino"):
        process.load(text, engine="openvino")
    wide = write(
        "g (float[4] x) => (float[4] y) <float s = {0.01}, uint16 z = {32768}> "
        "{ q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    )
    with pytest.raises(RuntimeRefused, match=r"model\.onnx in openvino"):
        process.load(wide, engine="openvino")
    with pytest.raises(RuntimeRefused, match="no file"):
        process.load(text.with_name("none.onnx"), engine="openvino")
    assert process.load(write(NEG), engine="openvino").outputs[0].name == "y"


@needs_openvino
def test_feeds_that_do_not_fit_are_refused(process: Process, write: Write) -> None:
    path = write("g (float[N] x, int64[2] s) => (float[a, b] y) { y = Reshape (x, s) }")
    session = process.load(path, engine="openvino")
    x = np.ones(9, np.float32)
    assert session.run({"x": x, "s": np.array([3, 3])})["y"].shape == (3, 3)
    with pytest.raises(RuntimeRefused, match=r"running model\.onnx: .*Reshape.*\(3\.7\)"):
        session.run({"x": x, "s": np.array([3, 7])})
    with pytest.raises(RuntimeRefused, match="is float32, but was given float64"):
        session.run({"x": np.ones(9), "s": np.array([3, 3])})
    assert session.run({"x": x, "s": np.array([9, 1])})["y"].shape == (9, 1)


@needs_openvino
def test_quantized_layers_are_read(process: Process, write: Write) -> None:
    path = write(
        "g (float[N, 4] x) => (float[N, 4] y) <float s = {0.05}, uint8 z = {128}, "
        "int8[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, "
        "float t = {0.1}, int8 u = {0}> { q = QuantizeLinear (x, s, z) "
        "d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, u) y = MatMul (d, v) }"
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    expected = process.load(path).run(feeds)["y"]
    found = process.load(path, engine="openvino").run(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@needs_openvino
def test_memory_beyond_the_limit_is_refused_by_the_limit(write: Write) -> None:
    path = write("g (float[N] x, int64[1] s) => (float[M] y) { y = Expand (x, s) }")
    with Process(limits=Limits(memory_bytes=1 << 30)) as process:
        session = process.load(path, engine="openvino")
        feeds = {"x": np.ones(1, np.float32)}
        assert session.run({**feeds, "s": np.array([5])})["y"].sum() == 5
        with pytest.raises(RuntimeOutOfMemory, match=r"model\.onnx.*1024 MiB"):
            session.run({**feeds, "s": np.array([1 << 29])})


@needs_openvino
def test_memory_and_name_are_of_openvino(write: Write) -> None:
    assert measure_peak_memory(write(NEG), {"x": np.ones(4, np.float32)}, engine="openvino") > 1e7
    name, version, device = runtime_name("openvino").split()
    assert (name, device) == ("openvino", "CPU")
    assert int(version.split(".")[0]) >= 2025


LOADS = """
import sys
from pathlib import Path
from packlight.runtime import Process
with Process() as process:
    process.load(Path(sys.argv[1]), engine="openvino")
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    print(sorted(n for n in ("onnxruntime", "openvino", "_ssl") if f"/{n}" in maps))
"""


@needs_openvino
def test_nothing_is_reported_and_nothing_left_in_the_home(write: Write, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("CI", None)  # where it is set OpenVINO keeps quiet by itself
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(write(NEG))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # Neither the other engine, nor what a report over the network would need.
    assert done.stdout.strip() == "['openvino']"
    assert list(home.iterdir()) == []


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    assert not has_engine("openvino") and has_engine("onnxruntime")
    for ask in (
        lambda: measure_peak_memory(write(NEG), {}, engine="openvino"),
        lambda: runtime_name("openvino"),
    ):
        with pytest.raises(MissingExtra, match=r"pip install packlight\[openvino\]"):
            ask()


def test_an_engine_that_does_not_exist_or_does_not_fit_is_wrong_usage(
    process: Process, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WrongUsage, match="onnxruntime, openvino"):
        process.load(write(NEG), engine="tflite")  # type: ignore[arg-type]
    monkeypatch.setattr("packlight.runtime.process.has_engine", lambda engine: True)
    with pytest.raises(WrongUsage, match="as it stands"):
        process.load(write(NEG), engine="openvino", optimize=False)
