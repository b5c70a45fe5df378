"""Predicted costs of candidates against what whole files of a small network show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.plan import table as room
from packlight.plan.mixed import search_mixed
from packlight.plan.solve import Limits
from packlight.plan.table import Table, build_table, decibels
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.recipe import Recipe, parse_choice
from packlight.samples import open_samples, split_samples
from packlight.targets import find_target

NAMES = ("a", "b", "c", "d")
WORDS = ("float32", "int8", "int4", "weights-int8", "weights-int4", "weights-int3")


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]
) -> Iterator[Workbench]:
    """Four convolutions in a row, the last two large, and 96 smooth pictures."""
    random = np.random.default_rng(0)
    widths = (3, 8, 16, 32, 32)
    weights = {}
    for name, inputs, outputs in zip(NAMES, widths, widths[1:], strict=False):
        draw = random.standard_normal((outputs, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5
        weights[f"w{name}"] = draw.astype(np.float32)
        weights[f"b{name}"] = (0.1 * random.standard_normal(outputs)).astype(np.float32)
    path = write_model(
        tmp_path_factory.mktemp("table") / "net.onnx",
        """net (float[n, 3, 14, 14] x) => (float[n, 32, 6, 6] y) {
            [a] a0 = Conv(x, wa, ba) a1 = Relu(a0)
            [b] b0 = Conv(a1, wb, bb) b1 = Relu(b0)
            [c] c0 = Conv(b1, wc, bc) c1 = Relu(c0)
            [d] y = Conv(c1, wd, bd)
        }""",
        opset=21,
        **weights,
    )
    model = load_model(path)
    pictures = np.cumsum(np.cumsum(random.standard_normal((96, 3, 14, 14)), -1), -2) / 8
    samples = open_samples({"x": pictures.astype(np.float32)}, model.inputs)
    with Workbench(
        model, model.ir, samples, split_samples(samples), find_target("laptop"), max_drop=0.05
    ) as found:
        found.calibrate(NAMES)
        yield found


@pytest.fixture(scope="module")
def layers(bench: Workbench) -> tuple[Layer, ...]:
    return find_layers(bench.simplified)


@pytest.fixture(scope="module")
def base(bench: Workbench) -> Tried:
    return bench.evaluate(Recipe(layers=tuple((name, "int8") for name in NAMES)), "base")


@pytest.fixture(scope="module")
def table(bench: Workbench, layers: tuple[Layer, ...], base: Tried) -> Table:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "layer_times", lambda path, layers, feeds: {})
        patch.setattr(room, "border_times", lambda *arguments: ())
        return build_table(bench, base, layers, WORDS, packed=False)


def assignment(table: Table, *words: str) -> tuple[int, ...]:
    return tuple(row.index(word) for row, word in zip(table.words, words, strict=True))


def predicted(table: Table, choices: tuple[int, ...], what: str) -> float:
    costs = (row[number] for row, number in zip(table.costs, choices, strict=True))
    return float(sum(getattr(cost, what) for cost in costs))


def test_the_table_has_a_row_for_every_layer(table: Table) -> None:
    assert table.names == NAMES
    for words, costs, integer in zip(table.words, table.costs, table.integer, strict=True):
        assert set(words) == set(WORDS) and words[0] == "int8"
        assert len(costs) == len(integer) == len(words)
        assert integer == tuple(parse_choice(word).compute == "static" for word in words)
        by_word = dict(zip(words, costs, strict=True))
        assert by_word["float32"].loss == 0
        losses = [by_word[f"weights-int{bits}"].loss for bits in (8, 4, 3)]
        assert 0 < losses[0] < losses[1] < losses[2]
        assert by_word["int4"].loss >= by_word["int8"].loss


@pytest.mark.parametrize(
    "words",
    [
        ("int8",) * 4,
        ("weights-int4",) * 4,
        ("weights-int8", "weights-int4", "weights-int3", "weights-int4"),
        ("int8", "int8", "int4", "weights-int3"),
        ("float32", "int8", "weights-int4", "int4"),
    ],
)
def test_predicted_noise_is_near_what_is_measured(
    bench: Workbench, table: Table, base: Tried, words: tuple[str, ...]
) -> None:
    """Within 3 dB (a factor of two): sums of single layers, and gains measured at two points."""
    choices = assignment(table, *words)
    made = bench.evaluate(table.recipe(base.recipe, choices), "whole")
    assert made.recipe.layers == tuple(zip(NAMES, words, strict=True))
    foretold = decibels(predicted(table, choices, "loss"))
    assert foretold == pytest.approx(made.noise_db, abs=3.0)


def test_predicted_sizes_differ_by_a_constant_little(
    bench: Workbench, table: Table, base: Tried
) -> None:
    rest = base.size_bytes - predicted(table, assignment(table, *("int8",) * 4), "bytes")
    for words in (("weights-int4",) * 4, ("float32", "int8", "weights-int4", "int4")):
        choices = assignment(table, *words)
        made = bench.evaluate(table.recipe(base.recipe, choices), "whole")
        assert made.size_bytes == pytest.approx(rest + predicted(table, choices, "bytes"), abs=1500)


def test_a_pinned_layer_has_one_candidate(
    bench: Workbench, layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "layer_times", lambda path, layers, feeds: {})
    monkeypatch.setattr(room, "border_times", lambda *arguments: ())
    recipe = Recipe(layers=(("a", "float16"), *((name, "int8") for name in NAMES[1:])))
    start = bench.evaluate(recipe, "pinned")
    found = build_table(
        bench, start, layers, ("float32", "int8-dynamic"), packed=True, pins=(("a", "float16"),)
    )
    # A Conv is not computed with activations that are quantized while it runs.
    assert found.words == (("float16",), *(("int8", "float32"),) * 3)


def test_where_time_is_up_layers_get_the_usual_gain(
    bench: Workbench, layers: tuple[Layer, ...], base: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "layer_times", lambda path, layers, feeds: {})
    monkeypatch.setattr(room, "border_times", lambda *arguments: ())
    monkeypatch.setattr(room, "SECONDS", -1.0)
    found = build_table(bench, base, layers, ("float32", "weights-int4"), packed=False)
    for words, costs in zip(found.words, found.costs, strict=True):
        cost = dict(zip(words, costs, strict=True))
        assert cost["weights-int4"].loss > cost["int8"].loss > cost["float32"].loss == 0


def test_times_are_those_of_the_way_a_layer_is_computed(
    bench: Workbench, layers: tuple[Layer, ...], base: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bench.make(Recipe(layers=tuple((name, "float32") for name in NAMES)), "plain")
    times = {base.path: dict.fromkeys(NAMES, 1.0), plain.path: dict.fromkeys(NAMES, 3.0)}
    monkeypatch.setattr(room, "layer_times", lambda path, layers, feeds: times[path])
    monkeypatch.setattr(room, "border_times", lambda *arguments: ())
    monkeypatch.setattr(room, "SECONDS", -1.0)
    found = build_table(
        bench, base, layers, ("float32", "weights-int4"), packed=False, examples=(plain,)
    )
    for words, costs in zip(found.words, found.costs, strict=True):
        assert {w: cost.ms for w, cost in zip(words, costs, strict=True)} == {
            "int8": 1.0,
            "float32": 3.0,
            "weights-int4": 3.0,
        }


def test_the_whole_meets_a_size_and_a_drop(bench: Workbench, table: Table, base: Tried) -> None:
    """Table, knapsack and files together: the drop is of explained variance."""
    whole = predicted(table, assignment(table, *("int8",) * 4), "bytes")
    size = base.size_bytes - round(0.35 * whole)
    found = search_mixed(bench, table, base, Limits(size=size), "bytes")
    assert any(one.tried.size_bytes <= size for one in found)
    found = search_mixed(bench, table, base, Limits(drop=0.02), "bytes")
    kept = [one.tried for one in found if one.tried.drop <= 0.02]
    assert kept and min(one.size_bytes for one in kept) < base.size_bytes


def test_two_measurements_give_gain_and_activation_noise() -> None:
    from packlight.graph.solutions import Solution

    gain, own = 3.0, 1e-4
    errors = {"int8": 1e-5, "int4": 1e-3, "weights-int8": 1e-5, "weights-int4": 1e-3}
    solutions = {("l", word): Solution(error, 1.0) for word, error in errors.items()}
    static = {word: own * word.startswith("int") for word in errors}
    noise = {("l", word): static[word] + gain * error for word, error in errors.items()}
    for first, second, share in (
        ("int8", "int4", own),
        ("weights-int8", "weights-int4", 0.0),
        ("weights-int8", "int4", own),
        ("int8", "weights-int4", own),
    ):
        found = room._fit("l", first, second, noise, solutions)
        assert found == (pytest.approx(gain), pytest.approx(share, abs=1e-12)), (first, second)
    alone = {("l", "int8"): noise["l", "int8"]}
    assert room._fit("l", "int8", "int4", alone, solutions) == (noise["l", "int8"] / 1e-5, 0.0)
    assert room._fit("l", "int8", "int4", {}, solutions) is None


def test_the_probe_is_the_candidate_with_few_bits() -> None:
    assert room._probe(WORDS, "int8") == "int4"
    assert room._probe(("float32", "int8"), "int8") == "int8"
