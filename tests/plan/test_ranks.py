"""Layers become two where that is faster and loses least; what a recipe says is done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from graph_bench import build_model, gemm_weights
from numpy.typing import NDArray

from packlight.errors import UnusableRecipe, WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.layers import find_layers
from packlight.graph.model import Model, load_model, save_model
from packlight.graph.rewrite.simplify import simplify
from packlight.measure.latency import RankedLatency
from packlight.plan import proposals
from packlight.plan import ranks as planner
from packlight.plan.allocation import Option, Part
from packlight.plan.channels import measure_parts
from packlight.plan.cuts import Cuts
from packlight.plan.ground import Ground, prepare_ground
from packlight.plan.thinning import Thinned, thin
from packlight.progress import SILENT
from packlight.ranks import Rank
from packlight.recipe import Recipe, read_recipe, write_recipe
from packlight.runtime import Process
from packlight.samples import Samples, Split, open_samples

NET = """g (float[n,96] x) => (float[n,6] y) {
    [first] a = Gemm (x, w0, b0) r = Relu(a)
    [second] b = Gemm (r, w1, b1) s = Relu(b)
    [third] y = Gemm (s, w2, b2) }"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The second layer's weight is of rank 12, but for a little; no channel is superfluous."""
    random = np.random.default_rng(2)
    sizes = ((96, 96), (96, 96), (96, 6))
    weights = gemm_weights(random, sizes)
    thin = random.standard_normal((96, 12)) @ random.standard_normal((12, 96)) / 30
    weights["w1"] = thin + 0.005 * weights["w1"]
    return build_model(tmp_path_factory.mktemp("net") / "net.onnx", NET, weights)


NOTHING = Option(Cuts(), 0.0, 0.0, 0.0)


def rows(count: int = 400, seed: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 96)).astype(np.float32)


def samples_of(net: Model) -> tuple[Samples, Split]:
    return open_samples({"x": rows()}, net.inputs), Split(
        tuple(range(300)), tuple(range(300, 400)), ()
    )


def run(net: Model, **options: Any) -> Thinned:
    return thin(net.ir, *samples_of(net), net.inputs, **options)


@pytest.fixture
def ground(net: Model) -> Any:
    samples, split = samples_of(net)
    with Process() as process:
        yield prepare_ground(net.ir, samples, split, net.inputs, process, 0, SILENT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that says what the test wants: each file takes as long as it has weights."""
    state = {"slowdown": 1.0}

    def rank_latencies(paths: list[Path], *_: Any, **__: Any) -> tuple[RankedLatency, ...]:
        sizes = [
            sum(layer.parameters for layer in find_layers(load_model(path).ir)) for path in paths
        ]
        ratios = [1.0] + [state["slowdown"] * size / sizes[0] for size in sizes[1:]]
        return tuple(
            RankedLatency(path, ratio, ratio, (ratio * 0.99, ratio * 1.01))
            for path, ratio in zip(paths, ratios, strict=True)
        )

    monkeypatch.setattr(planner, "rank_latencies", rank_latencies)
    return state


def answers(graph: Any, folder: Path) -> NDArray[np.float32]:
    save_model(graph, folder / "thin.onnx")
    session = onnxruntime.InferenceSession(folder / "thin.onnx")
    found: NDArray[np.float32] = session.run(None, {"x": rows(seed=9)})[0]
    return found


def snr_db(want: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    power = np.square(want - want.mean()).sum()
    return float(10 * np.log10(power / np.square(want - found).sum()))


def test_what_is_of_low_rank_becomes_two_layers(
    net: Model, clock: dict[str, float], tmp_path: Path
) -> None:
    found = run(net, share=0.3)
    assert dict(found.ranks)["second"].kind == "matrix" and "first" not in dict(found.ranks)
    names = [layer.name for layer in find_layers(found.graph)]
    assert "second_a" in names and "second_b" in names and "second" not in names
    saved = 1 - found.evidence.macs_left / found.evidence.macs_original
    counted = sum(layer.parameters for layer in find_layers(found.graph))
    whole = sum(layer.parameters for layer in find_layers(net.ir))
    assert saved == pytest.approx(1 - counted / whole) and saved >= 0.29
    want = answers(net.ir, tmp_path)
    assert snr_db(want, answers(found.graph, tmp_path)) > 20
    # Channels alone lose more for as much.
    clock["slowdown"] = 10.0
    slow = run(net, share=0.3)
    assert slow.ranks == () and slow.channels
    assert snr_db(want, answers(found.graph, tmp_path)) > (
        snr_db(want, answers(slow.graph, tmp_path)) + 6
    )


def test_layers_of_a_model_with_open_lengths_are_taken_apart_too(
    clock: dict[str, float], tmp_path: Path
) -> None:
    """Its multiply-accumulates are known for the samples' shape only."""
    random = np.random.default_rng(5)
    low = random.standard_normal((96, 12)) @ random.standard_normal((12, 96)) / 30
    model = build_model(
        tmp_path / "open.onnx",
        """g (float[n,length,96] x) => (float[n,length,6] y) {
            [first] a = MatMul (x, w0) r = Relu(a)
            [second] y = MatMul (r, w1) }""",
        {"w0": low + 0.0005 * random.standard_normal((96, 96)), "w1": np.eye(96, 6)},
    )
    samples = open_samples({"x": rows(600).reshape(60, 10, 96)}, model.inputs)
    split = Split(tuple(range(40)), tuple(range(40, 60)), ())
    with Process() as process:
        ground = prepare_ground(model.ir, samples, split, model.inputs, process, 0, SILENT)
        found = planner.measure_ranks(ground, SILENT)
    assert len(found["first"]) > 1
    first = found["first"][-1]
    assert first.share == pytest.approx(1 - ground.macs_left(first.cuts) / ground.total, abs=1e-6)


def test_a_recipe_gives_the_same_bytes(net: Model, clock: dict[str, float], tmp_path: Path) -> None:
    first = run(net, share=0.5)
    assert first.ranks and first.channels
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(first.note_in(Recipe(layers=(("first", "int8"),)))))
    recipe = read_recipe(path)
    assert (recipe.channels, recipe.ranks) == (first.channels, first.ranks)
    again = run(net, channels=recipe.channels, ranks=recipe.ranks)
    assert again.evidence.macs_left == first.evidence.macs_left
    for graph, name in ((first.graph, "one.onnx"), (again.graph, "other.onnx")):
        save_model(graph, tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ((("secnod", Rank("matrix", 8)),), "did you mean 'second'"),
        ((("second", Rank("matrix", 48)),), "ranks from 1 to 47"),
        ((("second", Rank("spatial", 8)),), "has no spatial factors"),
    ],
)
def test_ranks_that_cannot_be(net: Model, ranks: Any, words: str) -> None:
    with pytest.raises(UnusableRecipe, match=words):
        run(net, ranks=ranks)


def test_what_is_offered_was_faster_and_what_it_loses_was_measured(
    ground: Ground, clock: dict[str, float]
) -> None:
    offers = planner.measure_ranks(ground, SILENT)
    assert {"first", "second"} <= set(offers)
    none, *options = offers["second"]
    assert none == NOTHING
    losses = {one.cuts.ranks[0][1].rank: one.loss for one in options}
    assert all(one.share > 0 and one.time > 0 for one in options)
    assert list(losses.values()) == sorted(losses.values())  # the largest rank first
    assert list(losses) == sorted(losses, reverse=True)
    least = min(one.loss for one in offers["first"][1:] if one.cuts.ranks[0][1].rank <= 24)
    assert losses[16] < 0.05 * least
    assert "second" not in planner.measure_ranks(ground, SILENT, whole=["second"])
    clock["slowdown"] = 10.0
    assert planner.measure_ranks(ground, SILENT) == {}


def test_a_file_that_is_no_faster_has_no_ranks(
    ground: Ground, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = measure_parts(ground, SILENT, planner.measure_ranks(ground, SILENT))
    assert proposals.choose_cuts(ground, parts, 0.3, SILENT).ranks
    monkeypatch.setattr(proposals, "measure_times", lambda _, cuts: [0.1] * len(cuts))
    assert not proposals.choose_cuts(ground, parts, 0.3, SILENT).ranks


def rank_of(layer: str, rank: int, loss: float, macs: float) -> Part:
    cuts = Cuts(ranks=((layer, Rank("matrix", rank)),))
    return (NOTHING, Option(cuts, loss, macs, 0.0))


def test_a_rank_that_channels_make_useless_is_left_out(ground: Ground) -> None:
    """Without half of the inputs of the second layer rank 40 saves nothing there."""
    rank = (("second", Rank("matrix", 40)),)
    together = Cuts((("first", 48),), ranks=rank)
    assert ground.possible(together) == Cuts((("first", 48),))
    assert ground.possible(Cuts(ranks=rank)) == Cuts(ranks=rank)
    assert ground.macs_left(together) == ground.macs_left(together.whole)
    less = Cuts((("first", 80),), ranks=rank)
    made = ground.without(less)
    assert ground.possible(less) == less
    assert ground.macs_left(less) == sum(count or 0 for count in count_macs(made).values())


def test_too_much_counts_ranks_too(ground: Ground, clock: dict[str, float]) -> None:
    with pytest.raises(WrongUsage, match=r"at most 4\d%"):
        proposals.choose_cuts(ground, [rank_of("first", 8, 1e-3, 0.4)], 0.9, SILENT)


def test_convolutions_are_timed_at_the_shapes_that_reach_them(
    tmp_path: Path, clock: dict[str, float]
) -> None:
    random = np.random.default_rng(5)
    weights = {
        "w0": random.standard_normal((16, 3, 3, 3)) / 5,
        "w1": random.standard_normal((24, 16, 3, 3)) / 12,
        "w2": random.standard_normal((4, 24)) / 5,
    }
    model = build_model(
        tmp_path / "conv.onnx",
        """g (float[n,3,12,12] x) => (float[n,4] y) {
        [stem] a = Conv <pads = [1,1,1,1]> (x, w0) r = Relu(a)
        [next] b = Conv <pads = [1,1,1,1], strides = [2,2]> (r, w1) s = Relu(b)
        p = GlobalAveragePool(s) f = Flatten(p) [head] y = Gemm <transB = 1> (f, w2) }""",
        weights,
    )
    graph, _ = simplify(model.ir, check=None)
    samples = open_samples({"x": random.random((64, 3, 12, 12), np.float32)}, model.inputs)
    split = Split(tuple(range(48)), tuple(range(48, 64)), ())
    shapes = []
    whole = planner.layer_alone

    def spy(graph: Any, layer: Any, shape: Any) -> Any:
        shapes.append((layer.name, tuple(shape)))
        return whole(graph, layer, shape)

    with Process() as process, pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "layer_alone", spy)
        found = prepare_ground(graph, samples, split, model.inputs, process, 0, SILENT)
        offers = planner.measure_ranks(found, SILENT)
    assert ("next", (1, 16, 12, 12)) in shapes
    kinds = {one.cuts.ranks[0][1].kind for one in offers["next"][1:]}
    assert kinds and kinds <= {"channel", "spatial"}


def test_a_model_of_one_layer_has_ranks_alone(tmp_path: Path, clock: dict[str, float]) -> None:
    """Its channels are the model's inputs and outputs: none can go."""
    random = np.random.default_rng(6)
    weight = random.standard_normal((64, 5)) @ random.standard_normal((5, 64))
    text = "g (float[n,64] x) => (float[n,64] y) { [only] y = MatMul (x, w) }"
    model = build_model(tmp_path / "one.onnx", text, {"w": weight})
    samples = open_samples({"x": random.standard_normal((64, 64)).astype(np.float32)}, model.inputs)
    split = Split(tuple(range(48)), tuple(range(48, 64)), ())
    found = thin(model.ir, samples, split, model.inputs, share=0.4)
    assert [name for name, _ in found.ranks] == ["only"] and not found.channels
    assert found.evidence.macs_left <= 0.61 * found.evidence.macs_original
    with pytest.raises(WrongUsage, match="no channels to remove"):
        thin(model.ir, samples, split, model.inputs, share=0.4, whole=["only"])


def test_of_channels_and_ranks_the_better_is_taken(ground: Ground, clock: dict[str, float]) -> None:
    """Whatever the knapsack promises, what is left decides: here channels would lose far more."""
    ranks = planner.measure_ranks(ground, SILENT)
    parts = [
        tuple(replace(one, loss=one.loss if one.cuts.ranks else 1e-9 * one.share) for one in row)
        for row in measure_parts(ground, SILENT, ranks)
    ]
    found = proposals.propose(ground, parts, 0.3, SILENT)
    kinds = {(bool(one.allocation.cuts.keep), bool(one.allocation.cuts.ranks)) for one in found}
    assert {(True, False), (False, True)} <= kinds  # each alone is looked at
    chosen = proposals.choose_cuts(ground, parts, 0.3, SILENT)
    assert chosen.ranks and not chosen.keep
