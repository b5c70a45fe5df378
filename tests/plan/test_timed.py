"""What is timed computes as the result will; a share of the time is kept to by the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from graph_bench import build_model, gemm_weights

from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, Model, save_model
from packlight.graph.rewrite.factorize import factorize
from packlight.plan import channels, proposals, ranks, thinning
from packlight.plan.cuts import Cuts
from packlight.plan.ground import Ground, prepare_ground
from packlight.plan.thinning import Thinned, thin
from packlight.plan.timed import as_computed, run_inner
from packlight.progress import SILENT
from packlight.ranks import Rank
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import Samples, Split, open_samples

NET = """g (float[n,64] x) => (float[n,6] y) {
    [first] a = Gemm (x, w0, b0) r = Relu(a)
    [second] b = Gemm (r, w1, b1) s = Relu(b)
    [third] y = Gemm (s, w2, b2) }"""
INTEGERS = Recipe(layers=(("first", "int8"), ("gone", "int8"), ("second", "int8")))
FEEDS = {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    weights = gemm_weights(np.random.default_rng(2), ((64, 64), (64, 64), (64, 6)))
    return build_model(tmp_path_factory.mktemp("net") / "net.onnx", NET, weights)


@pytest.fixture
def process() -> Iterator[Process]:
    with Process() as child:
        yield child


def split_of(net: Model) -> tuple[Samples, Split]:
    data = np.random.default_rng(4).standard_normal((200, 64)).astype(np.float32)
    return open_samples({"x": data}, net.inputs), Split(
        tuple(range(150)), tuple(range(150, 200)), ()
    )


def bits_of(graph: Graph) -> dict[str, int]:
    """Of the weights that layers read through a DequantizeLinear."""
    found = {}
    for node in graph.graph:
        maker = node.inputs[1].producer() if node.op_type in ("Gemm", "MatMul") else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            found[str(node.name)] = maker.inputs[0].const_value.dtype.itemsize * 8
    return found


def test_layers_compute_as_the_recipe_says(net: Model, process: Process, tmp_path: Path) -> None:
    made = as_computed(net.ir, INTEGERS, FEEDS, process)
    assert bits_of(made) == {"first": 8, "second": 8}
    assert bits_of(net.ir) == {}  # the graph itself is as it was
    save_model(made, tmp_path / "timed.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "timed.onnx").run(None, FEEDS)[0]
    (want,) = (run_inner(net.ir, FEEDS, ["y"], process)["y"],)
    assert np.abs(found - want).max() < 0.05 * np.abs(want).max()


def test_both_parts_of_a_layer_compute_as_it_was_to(net: Model, process: Process) -> None:
    apart = factorize(net.ir, {"second": Rank("matrix", 8)}, {})
    made = as_computed(apart, INTEGERS, FEEDS, process)
    assert bits_of(made) == {"first": 8, "second_a": 8, "second_b": 8}


def test_without_a_recipe_it_is_the_graph_itself(net: Model, process: Process) -> None:
    assert as_computed(net.ir, None, FEEDS, process) is net.ir


def test_ranks_are_timed_in_integers(
    net: Model, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, split = split_of(net)
    seen: list[dict[str, int]] = []
    save = ranks.save_model

    def spy(graph: Graph, *rest: Any, **options: Any) -> Any:
        seen.append(bits_of(graph))
        return save(graph, *rest, **options)

    monkeypatch.setattr(ranks, "save_model", spy)
    ground = prepare_ground(
        net.ir, samples, split, net.inputs, process, 0, SILENT, "time", INTEGERS
    )
    ranks.measure_ranks(ground, SILENT)
    assert seen[0] == {"first": 8, "second": 8}  # the whole model
    assert {"second_a": 8, "second_b": 8} in seen and {"second": 8} in seen


def clock_of(weight_of: dict[str, float]) -> Any:
    """A clock by which each layer takes so long as it has weights, times what it weighs."""

    def took(graph: Graph) -> float:
        return sum(weight_of[one.name] * one.parameters for one in find_layers(graph))

    def measure(ground: Ground, cuts: Sequence[Cuts], progress: Any = SILENT) -> list[float]:
        whole = took(ground.graph)
        return [1 - took(ground.without(one)) / whole for one in cuts]

    return measure


def share_of_time(net: Model, monkeypatch: pytest.MonkeyPatch, clock: Any) -> Thinned:
    monkeypatch.setattr(thinning, "measure_ranks", lambda *_, **__: {})
    for room in (channels, proposals):
        monkeypatch.setattr(room, "measure_times", clock)
    samples, split = split_of(net)
    return thin(net.ir, samples, split, net.inputs, share=0.3, of="time", computes=INTEGERS)


def test_a_share_of_the_time_is_saved_by_the_clock(
    net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer takes nearly all the time here: so what it reads goes, and nothing else."""
    weight_of = {"first": 0.001, "second": 0.001, "third": 1.0}
    clock = clock_of(weight_of)
    found = share_of_time(net, monkeypatch, clock)
    kept = {one.name: one.kept for one in found.evidence.channels}
    assert kept["first"] == 64 and kept["second"] <= 0.7 * 64
    layers = find_layers(found.graph)
    left = sum(weight_of[one.name] * one.parameters for one in layers)
    assert left <= 0.71 * sum(weight_of[one.name] * one.parameters for one in find_layers(net.ir))


def test_where_time_cannot_be_told_it_is_a_share_of_the_multiplications(
    net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = share_of_time(net, monkeypatch, lambda *_: None)
    assert found.evidence.macs_left <= 0.71 * found.evidence.macs_original
    assert "without regard to time" in " ".join(found.evidence.notes)
