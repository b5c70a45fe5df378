from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from packlight.errors import RuntimeRefused, UnusableOutput, WrongUsage
from packlight.runtime import (
    Limits,
    measure_peak_memory,
    optimized_graph,
    profile_operators,
    runtime_name,
)

Write = Callable[[str], Path]
FEEDS = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
GRAPH = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
    a = Exp (x)
    [mine] b = Tan (a)
    [choice] y = If (c) <
        then_branch = t () => (float[N, 4] o) { [inner] o = Add (b, a) },
        else_branch = e () => (float[N, 4] p) { [other] p = Mul (b, a) }
    >
}"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(graph: str) -> Path:
        text = '<ir_version: 10, opset_import: ["": 21]>\n' + graph
        onnx.save(parser.parse_model(text), tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return make


def test_every_node_that_ran_is_listed_in_order(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GRAPH)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    found = profile_operators(path, FEEDS, runs=3)
    assert [time.op for time in found] == ["Exp", "Tan", "Add", "If"]
    assert [time.name for time in found[1:]] == ["mine", "inner", "choice"]
    assert all(time.ms >= 0 for time in found)
    assert not list(scratch.iterdir()), "the profile's file is removed"


def test_fused_nodes_keep_the_file_s_names_below_the_layout(write: Write) -> None:
    path = write(
        """g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y)
        <float[8, 8, 1, 1] w = {"""
        + ", ".join(["0.5"] * 64)
        + "}> { [my_conv] a = Conv (x, w) [my_relu] y = Relu (a) }"
    )
    feeds = {"x": np.ones((1, 8, 6, 6), np.float32)}
    (fused,) = profile_operators(path, feeds, runs=1, level="extended")
    assert (fused.name, fused.op) == ("my_conv", "FusedConv")


def test_a_profile_refuses_what_does_not_fit(write: Write) -> None:
    path = write(GRAPH)
    with pytest.raises(RuntimeRefused, match=r"takes x: float32\[N, 4\]"):
        profile_operators(path, {"x": FEEDS["x"]})
    with pytest.raises(WrongUsage, match="at least one run"):
        profile_operators(path, FEEDS, runs=0)


def test_peak_memory_is_that_of_a_run(write: Write) -> None:
    path = write(
        "g (int64[1] n) => (float s) { y = ConstantOfShape (n) s = ReduceMax <keepdims = 0> (y) }"
    )
    small = measure_peak_memory(path, {"n": np.array([1])})
    large = measure_peak_memory(path, {"n": np.array([25_000_000])}, limits=Limits(seconds=60))
    # The runtime's arena takes up to twice what a run needs.
    assert 90_000_000 < large - small < 300_000_000


def test_the_optimized_graph_shows_what_runs(write: Write, tmp_path: Path) -> None:
    path = write("g (float[N] x) => (float[N] y) { a = Identity (x) b = Neg (a) y = Identity (b) }")
    out = tmp_path / "seen.onnx"
    optimized_graph(path, out)
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Neg"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "seen.onnx"]
    with pytest.raises(UnusableOutput, match="no folder"):
        optimized_graph(path, tmp_path / "absent" / "seen.onnx")
    with pytest.raises(RuntimeRefused, match="no file"):
        optimized_graph(tmp_path / "absent.onnx", out)


def test_the_runtime_has_a_name() -> None:
    name, version, device = runtime_name().split()
    assert (name, device) == ("onnxruntime", "CPU")
    assert version[0].isdigit()
