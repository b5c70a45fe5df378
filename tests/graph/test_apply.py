"""A recipe on a model: every choice at once, the same bytes again, and reasons for the rest."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import WORDS
from numpy.typing import NDArray

from packlight.errors import UnusableRecipe
from packlight.graph.apply import (
    Weights,
    apply_recipe,
    check_choices,
    possible_choices,
    why_not,
)
from packlight.graph.layers import find_layers
from packlight.graph.model import Model, copy_model, load_model, save_model
from packlight.graph.observe import Observations
from packlight.graph.rewrite.simplify import simplify
from packlight.recipe import CHOICES, Recipe, parse_choice
from packlight.samples import generate_samples

RANDOM = np.random.default_rng(41)


def normal(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


MIXED = """g (float[n,4,8,8] x, int64[n,1] i) => (float[n,1,5] y) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1) r = Relu(a) [c2] b = Conv(r, w2) s = Relu(b)
    [up] u = ConvTranspose(s, w3) p = GlobalAveragePool(u) f = Flatten(p)
    [g1] g = Gemm(f, w4, b4) h = Relu(g) [g2] j = Gemm(h, w5)
    one = Constant <value = int64[1] {1}> () k = Unsqueeze(j, one)
    [look] e = Gather(w6, i) m = Add(k, e) [mul] t = MatMul(m, w7) y = Tanh(t) }"""


def mixed(bench: Bench) -> tuple[Model, dict[str, NDArray[Any]]]:
    model = bench.model(
        MIXED,
        w1=normal(8, 4, 3, 3),
        w2=normal(8, 8, 3, 3),
        w3=normal(8, 32, 2, 2),
        w4=normal(32, 32),
        b4=normal(32),
        w5=normal(32, 32),
        w6=normal(10, 32),
        w7=normal(32, 5, size=0.1),
    )
    return model, {"x": normal(64, 4, 8, 8, size=1.0), "i": RANDOM.integers(0, 10, (64, 1))}


FEW_BITS = {
    "c1": "int4",
    "c2": "int3",
    "up": "weights-nf4",
    "g1": "int4-a4",
    "g2": "weights-int2-blocks",
    "look": "weights-shared4",
    "mul": "weights-coded3",
}

CHOSEN = {
    "c1": "int8",
    "c2": "int8-wide",
    "up": "weights-int8",
    "g1": "int8-dynamic",
    "g2": "weights-int8-blocks",
    "look": "weights-int4-blocks",
    "mul": "float16",
}


def test_all_choices_in_one_model(bench: Bench) -> None:
    model, feeds = mixed(bench)
    before = onnx.load(bench.save(model.ir))
    path = bench.apply(model, CHOSEN, feeds)
    reference = bench.run(model, feeds)[0]
    for optimize in (True, False):
        assert snr_db(reference, bench.run(path, feeds, optimize=optimize)[0]) > 20
    operators = bench.operators(path)
    for one in ("ConvTranspose", "DynamicQuantizeMatMul", "MatMulNBits", "GatherBlockQuantized"):
        assert one in operators
    assert path.stat().st_size < model.size_bytes / 2
    assert onnx.load(bench.save(model.ir)) == before  # the model itself is left alone


@pytest.mark.parametrize("choices", [CHOSEN, FEW_BITS])
@pytest.mark.parametrize("rounding", ["compensated", "learned"])
def test_the_same_recipe_gives_the_same_bytes(
    bench: Bench, tmp_path: Path, choices: dict[str, str], rounding: str
) -> None:
    """Whatever was tried before with the same cache, and from a fresh start."""
    model, feeds = mixed(bench)
    recipe = Recipe(layers=tuple(choices.items()), rounding=rounding)
    contents = []
    for warmed in (False, True):
        seen, cache = bench.observe(model, feeds), Weights()
        if warmed:
            for name in ("c2", "g1"):
                for choice in ("int8", choices[name]):
                    other = Recipe(layers=((name, choice),), rounding=rounding)
                    apply_recipe(model.ir, other, seen, weights=cache)
        compressed, _ = apply_recipe(model.ir, recipe, seen, weights=cache)
        save_model(compressed, tmp_path / "out.onnx")
        contents.append((tmp_path / "out.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_sharing_layers_are_rounded_alike_in_any_order(bench: Bench, tmp_path: Path) -> None:
    text = """g (float[n,32] x) => (float[n,32] y) {
        [one] a = MatMul(x, w) r = Relu(a) [two] y = MatMul(r, w) }"""
    model = bench.model(text, w=normal(32, 32))
    seen = bench.observe(model, {"x": normal(64, 32)})
    contents = set()
    for first in ((), ("one",), ("two",)):
        cache = Weights()
        for name in first:
            apply_recipe(model.ir, Recipe(layers=((name, "int8"),)), seen, weights=cache)
        recipe = Recipe(layers=(("one", "int8"), ("two", "int8")), bias_correction=True)
        compressed, _ = apply_recipe(model.ir, recipe, seen, weights=cache)
        save_model(compressed, tmp_path / "out.onnx")
        contents.add((tmp_path / "out.onnx").read_bytes())
    assert len(contents) == 1


def test_few_bits_of_all_kinds_in_one_model(bench: Bench) -> None:
    model, feeds = mixed(bench)
    path = bench.apply(model, FEW_BITS, feeds, rounding="descent")
    reference = bench.run(model, feeds)[0]
    for optimize in (True, False):
        assert snr_db(reference, bench.run(path, feeds, optimize=optimize)[0]) > 3
    assert path.stat().st_size < model.size_bytes / 2


def test_settings_of_the_recipe_arrive(bench: Bench) -> None:
    model, feeds = mixed(bench)
    feeds["x"][0, 0, 0, 0] = 40.0  # which only min-max reaches out to
    seen = bench.observe(model, feeds)
    layers = (("c1", "int8"), ("c2", "int8"), ("g1", "int8"), ("g2", "int8"))
    variants = [
        {},
        {"ranges": "min-max"},
        {"ranges": "percentile"},
        {"rounding": "nearest"},
        {"rounding": "descent"},
        {"pair_limit": False},
        {"bias_correction": True},
    ]
    cache = Weights()
    contents = []
    for settings in variants:
        recipe = Recipe(layers=layers, **settings)  # type: ignore[arg-type]
        compressed, _ = apply_recipe(model.ir, recipe, seen, weights=cache)
        contents.append(bench.save(compressed).read_bytes())
    for one, other in itertools.combinations(range(len(variants)), 2):
        assert contents[one] != contents[other], (variants[one], variants[other])


def test_an_empty_recipe_is_the_model(bench: Bench) -> None:
    model, feeds = mixed(bench)
    compressed, notes = apply_recipe(model.ir, Recipe(), Observations())
    assert notes == {}
    path = bench.save(compressed)
    np.testing.assert_array_equal(bench.run(model, feeds)[0], bench.run(path, feeds)[0])


def test_an_impossible_choice_leaves_the_layer_and_says_so(bench: Bench) -> None:
    model, feeds = mixed(bench)
    recipe = Recipe(layers=(("up", "int8"), ("c1", "int8-dynamic"), ("g1", "weights-int8")))
    compressed, notes = apply_recipe(model.ir, recipe, Observations())
    assert set(notes) == {"up", "c1"}
    assert notes["up"] == ("left as it is, not int8: ConvTranspose has no static 8-bit kernel")
    path = bench.save(compressed)
    assert 30 < snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) < 100
    layers = find_layers(model.ir)
    with pytest.raises(UnusableRecipe, match=r"'up' \(ConvTranspose\) cannot be 'int8'") as refusal:
        check_choices(recipe, layers)
    assert "weights-int8" in str(refusal.value)
    check_choices(Recipe(layers=tuple(CHOSEN.items())), layers)


def test_a_layer_that_is_not_there_is_refused(bench: Bench) -> None:
    model, _ = mixed(bench)
    recipe = Recipe(layers=(("c3", "int8"),))
    with pytest.raises(UnusableRecipe, match=r"'c3'.*did you mean 'c[12]'"):
        apply_recipe(model.ir, recipe, Observations())
    with pytest.raises(UnusableRecipe, match="'c3'"):
        check_choices(recipe, find_layers(model.ir))


STATIC_REASONS: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("g (int64[n] x) => (y) { y = Gather(w, x) }", {"w": (9, 64)}, "Gather has no static"),
    (
        "g (float[n,4] x) => (y) { y = MatMul(v, w) z = Neg(x) }",
        {"v": (4, 4), "w": (4, 4)},
        "input is constant",
    ),
    ("g (float[n,4] x, float[4] b) => (y) { y = Gemm(x, w, b) }", {"w": (4, 4)}, "at run time"),
    ("g (float[3,4] x) => (y) { y = Gemm(x, w, b) }", {"w": (4, 4), "b": (3, 4)}, "no vector"),
    ("g (float[n,4] x) => (y) { y = Gemm(x, w, b) }", {"w": (4, 4), "b": (4, 1)}, "no vector"),
]


@pytest.mark.parametrize(("text", "weights", "reason"), STATIC_REASONS)
@pytest.mark.parametrize("choice", ["int8", "int8-wide"])
def test_what_cannot_be_static_has_its_reason(
    bench: Bench, text: str, weights: dict[str, tuple[int, ...]], reason: str, choice: str
) -> None:
    model = bench.model(text, **{key: normal(*shape) for key, shape in weights.items()})
    (layer,) = find_layers(model.ir)
    assert reason in why_not(layer, choice)
    assert choice not in possible_choices(layer, CHOICES)


def test_layers_in_functions_and_subgraphs_have_reasons(bench: Bench) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>\n'
    text = (
        head
        + """g (float[n,2] x, bool c) => (float[n,2] y) {
        f = own.twice(x) y = If(c) <
            then_branch = t () => (float[n,2] p) { [in_t] p = MatMul(f, w) },
            else_branch = e () => (float[n,2] q) { q = Identity(f) }> }
        <domain: "own", opset_import: ["" : 17]>
        twice (a) => (b) { k = Constant <value = float[2,2] {1., 2., 3., 4.}> ()
            [in_f] b = MatMul(a, k) }"""
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(2, 2), "w"))
    onnx.save(proto, bench.folder / "functions.onnx")
    model = load_model(bench.folder / "functions.onnx")
    reasons = {
        layer.name: {choice for choice in CHOICES if why_not(layer, choice)}
        for layer in find_layers(model.ir)
    }
    assert reasons["in_f"] == set(CHOICES) - {"float32"}
    computes = {choice: parse_choice(choice).compute for choice in CHOICES}
    assert reasons["in_t"] == {one for one in CHOICES if computes[one] in ("static", "blocks")}
    path = bench.apply(model, {"in_f": "weights-int8", "in_t": "weights-int8"})
    for branch in (True, False):
        feeds = {"x": normal(4, 2), "c": np.array(branch)}
        assert snr_db(bench.run(model, feeds)[0], bench.run(path, feeds)[0]) > 34


def test_every_possible_choice_of_every_layer_runs(bench: Bench) -> None:
    """Each layer alone, each choice it can have: runs, keeps the outputs, is faithful."""
    model, feeds = mixed(bench)
    seen = bench.observe(model, feeds)
    reference = bench.run(model, feeds)[0]
    tried = 0
    for layer in find_layers(model.ir):
        for choice in possible_choices(layer, WORDS):
            path = bench.apply(model, {layer.name: choice}, observations=seen)
            bits = parse_choice(choice).bits
            least = 20 if bits >= 8 and "a4" not in choice else 5 if bits >= 4 else 0
            if "sparse" in choice:
                least = 3  # half of random weights
            assert snr_db(reference, bench.run(path, feeds)[0]) > least, (layer.name, choice)
            tried += 1
    assert tried > 150


def test_duplicate_names_and_an_empty_graph(bench: Bench) -> None:
    text = """g (float[n,4] x) => (float[n,4] y) {
        [same] a = MatMul(x, w) [same] r = Relu(a) [same] y = MatMul(r, v) }"""
    model = bench.model(text, w=normal(4, 4), v=normal(4, 4))
    assert len({layer.name for layer in find_layers(model.ir)}) == 2
    x = normal(64, 4, size=1.0)
    path = bench.apply(model, "int8", {"x": x})
    # onnxruntime refuses the names as they were: the model is saved with its own.
    reference = bench.run(bench.save(model.ir), {"x": x})[0]
    assert snr_db(reference, bench.run(path, {"x": x})[0]) > 30
    empty = bench.model("g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }")
    assert bench.run(bench.apply(empty, "int8"), {"x": x})[0].shape == (64, 4)


@pytest.mark.parametrize("name", ["yolox_nano", "silero_vad_op18_ifless", "tiny_random_gpt2_past"])
@pytest.mark.parametrize("choice", ["weights-int8", "int8-dynamic", "weights-int4-blocks"])
def test_real_models_without_samples(bench: Bench, real: Path, name: str, choice: str) -> None:
    model = load_model(real / "onnx" / f"{name}.onnx")
    simplified, _ = simplify(model.ir, check=lambda _: True)
    layers = find_layers(simplified)
    chosen = tuple((one.name, choice) for one in layers if not why_not(one, choice))
    compressed, _ = apply_recipe(copy_model(simplified), Recipe(layers=chosen), Observations())
    save_model(compressed, bench.folder / "out.onnx")
    samples = generate_samples(model.inputs, count=1)
    with_batch = {
        spec.name: array if array.ndim == len(spec.shape) else np.asarray(array[0])
        for spec, array in ((s, samples.read([0])[s.name]) for s in model.inputs)
    }
    for array in with_batch.values():
        if array.ndim == 4:
            array *= 50  # a picture: on fainter noise the detector has nothing to say
    pairs = zip(
        bench.run(model, with_batch), bench.run(bench.folder / "out.onnx", with_batch), strict=True
    )
    for reference, found in pairs:
        assert np.isfinite(found).all()
        assert snr_db(reference, found) > (2 if choice == "weights-int4-blocks" else 12)
