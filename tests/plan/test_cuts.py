"""Residual branches go along with channels: which, what is left, and again by a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.errors import UnusableRecipe
from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.groups import find_groups
from packlight.graph.layers import find_layers
from packlight.graph.model import Model, load_model, save_model
from packlight.plan.cuts import Cuts, groups_inside, layers_behind, possible, removable_branches
from packlight.plan.thinning import Thinned, thin
from packlight.ranks import Rank
from packlight.recipe import Recipe, read_recipe, write_recipe
from packlight.report.channels import describe_thinning
from packlight.samples import Split, open_samples

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,4,6,6] x) => (float[n,5] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w0, b0) ar = Relu(a)
    [one_in] b = Conv <pads = [1,1,1,1]> (ar, w1, b1) br = Relu(b)
    [one_out] c = Conv <pads = [1,1,1,1]> (br, w2, b2)
    [one] d = Add(c, ar) dr = Relu(d)
    [two_in] e = Conv <pads = [1,1,1,1]> (dr, w3, b3) er = Relu(e)
    [two_out] f = Conv <pads = [1,1,1,1]> (er, w4, b4)
    [two] h = Add(f, dr) hr = Relu(h)
    [three_in] i = Conv <pads = [1,1,1,1]> (hr, w5, b5) ir = Relu(i)
    [three_out] j = Conv <pads = [1,1,1,1]> (ir, w6, b6)
    [three] k = Add(j, hr) kr = Relu(k)
    m = GlobalAveragePool(kr) q = Flatten(m)
    [head] y = Gemm (q, w7, b7) }"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three residual blocks, of which the second adds next to nothing."""
    random = np.random.default_rng(3)
    proto = onnx.parser.parse_model(NET)
    for number in range(8):
        shape = (8, 4 if number == 0 else 8, 3, 3) if number < 7 else (8, 5)
        weight = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2)
        bias = 0.1 * random.standard_normal(5 if number == 7 else 8)
        if number == 4:
            weight, bias = 0.01 * weight, 0 * bias
        for kind, array in (("w", weight), ("b", bias)):
            constant = numpy_helper.from_array(array.astype(np.float32), f"{kind}{number}")
            proto.graph.initializer.append(constant)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(proto, path)
    return load_model(path)


def pictures(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((count, 4, 6, 6)).astype(np.float32)


def run(net: Model, **options: Any) -> Thinned:
    samples = open_samples({"x": pictures(120)}, net.inputs)
    split = Split(tuple(range(80)), tuple(range(80, 120)), ())
    return thin(net.ir, samples, split, net.inputs, **options)


def outputs(graph: Any, path: Path) -> NDArray[np.float32]:
    save_model(graph, path)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": pictures(50)})
    return np.asarray(found)


def test_the_branch_that_adds_nothing_goes_first(net: Model, tmp_path: Path) -> None:
    found = run(net, share=0.25)
    assert found.removed == ("two",) and found.channels == ()
    evidence = found.evidence
    macs = {name: count or 0 for name, count in count_macs(net.ir).items()}
    assert evidence.macs_original == sum(macs.values())
    assert evidence.macs_left == sum(macs.values()) - macs["two_in"] - macs["two_out"]
    assert {one.name: one.kept for one in evidence.channels}["two_in"] == 0
    assert evidence.removed == ("two",)
    assert any("1 block" in line and "two" in line for line in describe_thinning(evidence))
    assert "two_in" not in {layer.name for layer in find_layers(found.graph)}
    wanted, given = outputs(net.ir, tmp_path / "a.onnx"), outputs(found.graph, tmp_path / "b.onnx")
    assert np.square(wanted - given).sum() < 1e-3 * np.square(wanted - wanted.mean(0)).sum()


def test_a_recipe_does_the_same_again(net: Model, tmp_path: Path) -> None:
    first = run(net, share=0.5)
    assert first.removed and first.evidence.macs_left <= 0.51 * first.evidence.macs_original
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(first.note_in(Recipe(layers=(("head", "float32"),)))))
    recipe = read_recipe(path)
    assert (recipe.channels, recipe.removed) == (first.channels, first.removed)
    again = run(net, channels=recipe.channels, removed=recipe.removed)
    for name, one in (("a", first), ("b", again)):
        save_model(one.graph, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert replace(again.evidence, notes=first.evidence.notes) == first.evidence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("removed: [7]", "line 2.*7 is read as no text"),
        ("removed: two", "'removed' must be a list of residual branches"),
        ("removde: [two]", "did you mean 'removed'"),
    ],
)
def test_what_is_no_branch_in_a_recipe(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"layers: {{}}\n{text}\n")
    with pytest.raises(UnusableRecipe, match=words):
        read_recipe(path)


def test_a_branch_that_is_not_there_is_refused(net: Model) -> None:
    with pytest.raises(UnusableRecipe, match=r"'tow'.*did you mean 'two'"):
        run(net, removed=["tow"])


def test_channels_branches_and_ranks_of_a_recipe_together(net: Model, tmp_path: Path) -> None:
    ranks = (("one_out", Rank("spatial", 6)),)
    first = run(net, channels=[("three_in", 4)], removed=["two"], ranks=ranks)
    assert (first.channels, first.removed, first.ranks) == ((("three_in", 4),), ("two",), ranks)
    macs = count_macs(first.graph)
    assert {"one_out_a", "one_out_b", "three_in"} <= set(macs) and "two_in" not in macs
    assert first.evidence.macs_left == sum(count or 0 for count in macs.values())
    assert [(one.name, one.kind, one.rank) for one in first.evidence.ranks] == [
        ("one_out", "spatial", 6)
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(first.note_in(Recipe(layers=(("head", "float32"),)))))
    recipe = read_recipe(path)
    again = run(net, channels=recipe.channels, removed=recipe.removed, ranks=recipe.ranks)
    for name, one in (("a", first), ("b", again)):
        save_model(one.graph, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    wanted, given = outputs(net.ir, tmp_path / "o.onnx"), outputs(first.graph, tmp_path / "a.onnx")
    noise = np.square(wanted - given).sum() / np.square(wanted - wanted.mean(0)).sum()
    assert noise < 0.2  # it is fitted: without, it is several times as much
    with pytest.raises(UnusableRecipe, match="'two_in'"):
        run(net, removed=["two"], ranks=(("two_in", Rank("spatial", 6)),))


def test_cuts_add_up_and_ranks_in_what_goes_are_left_out(net: Model) -> None:
    branches, groups = removable_branches(net.ir), find_groups(net.ir)
    rank = Cuts(ranks=(("two_in", Rank("channel", 4)),))
    gone = Cuts(removed=("two",))
    both = gone | rank
    assert both == Cuts(removed=("two",), ranks=rank.ranks) and both.whole == gone
    assert possible(net.ir, groups, {}, branches, both) == gone
    assert possible(net.ir, groups, {}, branches, rank) == rank
    assert layers_behind(net.ir, groups, branches, rank, 1) == {"two_in_b", "two_out"}


def test_what_lies_inside_and_behind_a_branch(net: Model) -> None:
    branches, groups = removable_branches(net.ir), find_groups(net.ir)
    assert [branch.name for branch in branches] == ["one", "two", "three"]
    assert [group.name for group in groups_inside(branches[1], groups)] == ["two_in"]
    inside = Cuts((("two_in", 4),))
    assert layers_behind(net.ir, groups, branches, inside, 0) == {"two_out"}
    assert layers_behind(net.ir, groups, branches, inside, 2) == {
        "two_out",
        "three_in",
        "three_out",
    }
    gone = layers_behind(net.ir, groups, branches, Cuts(removed=("two",)), 1)
    assert gone == {"one_in", "one_out", "two_in", "two_out", "three_in"}
    assert layers_behind(net.ir, groups, branches, Cuts(), 3) == set()
