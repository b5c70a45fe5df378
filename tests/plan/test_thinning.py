"""A share of the multiplications goes where it is missed least; what cannot be done is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import build_model, gemm_weights
from numpy.typing import NDArray

from packlight.errors import UnusableRecipe, WrongUsage
from packlight.graph.layers import find_layers
from packlight.graph.model import Model
from packlight.plan import ground, thinning
from packlight.plan.thinning import Thinned, parse_share, thin
from packlight.plan.training import Training
from packlight.recipe import Recipe
from packlight.samples import Split, hold_out, open_samples

NET = """g (float[n,16] x) => (float[n,6] y) {
    [first] a = Gemm (x, w0, b0) r = Relu(a)
    [second] b = Gemm (r, w1, b1) s = Relu(b)
    [third] y = Gemm (s, w2, b2) }"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The second half of the first layer's channels, and of no other, say nothing."""
    random = np.random.default_rng(2)
    sizes = ((16, 32), (32, 32), (32, 6))
    weights = gemm_weights(random, sizes)
    weights["w1"][16:] *= 0.02
    return build_model(tmp_path_factory.mktemp("net") / "net.onnx", NET, weights)


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels alone, so that no clock decides; `test_ranks` has the other."""
    monkeypatch.setattr(thinning, "measure_ranks", lambda *_, **__: {})


def rows(count: int = 400) -> NDArray[np.float32]:
    random = np.random.default_rng(4)
    mixed = random.standard_normal((count, 5)) @ random.standard_normal((5, 16))
    return (mixed + 0.3 * random.standard_normal((count, 16))).astype(np.float32)


def run(net: Model, **options: Any) -> Thinned:
    samples = open_samples({"x": rows()}, net.inputs)
    split = Split(tuple(range(300)), tuple(range(300, 400)), ())
    return thin(net.ir, samples, split, net.inputs, **options)


def test_the_share_is_reached_and_what_says_nothing_goes(net: Model) -> None:
    found = run(net, share=0.35)
    saved = 1 - found.evidence.macs_left / found.evidence.macs_original
    assert 0.34 <= saved < 0.48
    kept = {one.name: one.kept for one in found.evidence.channels}
    assert kept["first"] == 16 and kept["third"] == 6
    widths = {layer.name: layer.weight_shape for layer in find_layers(found.graph)}
    assert widths["first"] == (16, 16) and widths["third"][1] == 6
    reasons = {one.name: one.reason for one in found.evidence.channels}
    assert "keeps its shape" in reasons["third"] and reasons["first"] == ""


WIDE = """g (float[n,3,12,12] x) => (float[n,6] y) {
    [early] a = Conv <pads=[1,1,1,1]> (x, w0, b0) r = Relu(a)
    [middle] b = Conv <pads=[1,1,1,1]> (r, w1, b1) s = Relu(b)
    p = GlobalAveragePool(s) f = Flatten(p)
    [late] c = Gemm (f, w2, b2) t = Relu(c)
    [last] y = Gemm (t, w3, b3) }"""


@pytest.mark.parametrize("of", ["macs", "weights"])
def test_a_share_may_be_of_the_weights(tmp_path: Path, of: Any) -> None:
    """Multiplications are in the first layers of this net, and weights in the last ones."""
    random = np.random.default_rng(5)
    shapes = ((16, 3, 3, 3), (16, 16, 3, 3), (16, 128), (128, 6))
    weights = {
        f"w{k}": random.standard_normal(shape).astype(np.float32) / 8
        for k, shape in enumerate(shapes)
    } | {f"b{k}": np.zeros(size, np.float32) for k, size in enumerate((16, 16, 128, 6))}
    net = build_model(tmp_path / "net.onnx", WIDE, weights)
    data = random.standard_normal((120, 3, 12, 12)).astype(np.float32)
    split = Split(tuple(range(80)), tuple(range(80, 120)), ())
    found = thin(net.ir, open_samples({"x": data}, net.inputs), split, net.inputs, share=0.3, of=of)
    left = sum(layer.parameters for layer in find_layers(found.graph))
    fewer = 1 - left / sum(layer.parameters for layer in find_layers(net.ir))
    less = 1 - found.evidence.macs_left / found.evidence.macs_original
    assert (fewer if of == "weights" else less) >= 0.29
    kept = {one.name: one.kept for one in found.evidence.channels}
    assert (min(kept["early"], kept["middle"]) == 16) == (of == "weights")


def test_the_counts_of_a_recipe_give_the_same_graph(net: Model) -> None:
    first = run(net, share=0.35)
    recipe = first.note_in(Recipe())
    assert recipe.channels == first.channels and recipe.heal_steps == 0
    again = run(net, channels=recipe.channels)
    for one, other in zip(find_layers(first.graph), find_layers(again.graph), strict=True):
        np.testing.assert_array_equal(one.weight.const_value, other.weight.const_value)


def test_too_much_says_how_much_can_go(net: Model) -> None:
    with pytest.raises(WrongUsage, match=r"at most 8\d% .* keeps its shape.*ask for less"):
        run(net, share=0.95)


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ((("frist", 8),), "did you mean 'first'"),
        ((("first", 0),), "1 to 32"),
        ((("first", 33),), "1 to 32"),
        ((("third", 3),), "keeps its shape"),
    ],
)
def test_channels_that_cannot_be_kept_so(net: Model, channels: Any, words: str) -> None:
    with pytest.raises(UnusableRecipe, match=words):
        run(net, channels=channels)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("auto", "auto"),
        ("0%", 0),
        ("0", 0),
        ("30%", 0.3),
        ("0.3", 0.3),
        (0.5, 0.5),
        (" 95% ", 0.95),
    ],
)
def test_shares_are_read(text: str | float, share: float | str) -> None:
    assert parse_share(text) == (share if share == "auto" else pytest.approx(share))


@pytest.mark.parametrize("text", ["", "100%", "1", "-3%", "nan", "half", "30"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage, match="--prune"):
        parse_share(text)


def test_a_model_without_such_channels_says_why(tmp_path: Path) -> None:
    text = "g (float[n,16] x) => (float[n,6] y) { [only] y = MatMul (x, w) }"
    one = build_model(tmp_path / "one.onnx", text, {"w": np.ones((16, 6))})
    with pytest.raises(WrongUsage, match=r"no channels to remove.*keeps its shape"):
        run(one, share=0.3)


def test_auto_takes_the_largest_share_that_the_drop_allows(net: Model) -> None:
    seen = []

    def drop_of(graph: Any) -> float:
        total = sum(layer.parameters for layer in find_layers(graph))
        seen.append(total)
        return 0.004 if len(seen) == 3 else 0.3

    found = run(net, share="auto", max_drop=0.01, drop_of=drop_of)
    assert len(seen) == 3 and seen == sorted(seen)
    assert sum(layer.parameters for layer in find_layers(found.graph)) == seen[2]
    none = run(net, share="auto", max_drop=0.01, drop_of=lambda graph: 0.3)
    assert none.channels == () and "no channels could go" in none.evidence.notes[-1]
    with pytest.raises(WrongUsage, match="--data"):
        run(net, share="auto")


def test_a_model_with_an_open_length_is_pruned_by_what_its_samples_cost(tmp_path: Path) -> None:
    """Its multiplications are not known from the file alone: it had no channels to remove."""
    random = np.random.default_rng(5)
    net = build_model(
        tmp_path / "open.onnx",
        """g (float[n,length,16] x) => (float[n,length,6] y) {
            [first] a = MatMul (x, w0) r = Relu(a) [second] y = MatMul (r, w1) }""",
        {
            name: random.standard_normal(shape) / shape[0] ** 0.5
            for name, shape in (("w0", (16, 32)), ("w1", (32, 6)))
        },
    )
    samples = open_samples({"x": rows(400).reshape(40, 10, 16)}, net.inputs)
    split = Split(tuple(range(30)), tuple(range(30, 40)), ())
    found = thin(net.ir, samples, split, net.inputs, share=0.25)
    assert found.evidence.macs_original == 10 * (16 * 32 + 32 * 6)
    assert found.evidence.macs_left == 10 * 24 * (16 + 6)


def test_what_healing_is_judged_by_took_no_part_in_fitting(
    net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    fitted: set[int] = set()
    fit = ground.repair

    def noted(original: Any, thinned: Any, samples: Any, indices: Any, *rest: Any, **how: Any):
        fitted.update(indices)
        return fit(original, thinned, samples, indices, *rest, **how)

    monkeypatch.setattr(ground, "repair", noted)
    run(net, share=0.35, training=Training(heal_steps=2))
    apart, rest = hold_out(range(300))
    assert sorted(fitted) == sorted(rest) and len(apart) == 30
    fitted.clear()
    run(net, share=0.35)
    assert sorted(fitted) == list(range(300))
