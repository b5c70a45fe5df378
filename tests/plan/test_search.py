"""The search on a bench whose figures follow from a formula: no file is made, no clock read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import load_model
from packlight.measure.evidence import MetricEvidence
from packlight.plan import search as room
from packlight.plan.goal import candidate_words, find_goal
from packlight.plan.knapsack import Cost
from packlight.plan.rules import Rules
from packlight.plan.search import BALANCE, SAFETY, search
from packlight.plan.solve import Limits
from packlight.plan.table import Table
from packlight.plan.tried import Tried
from packlight.recipe import Recipe, parse_choice
from packlight.targets import find_target

# Size and time of a layer, as shares of float32, and the noise that it makes.
COST = {
    "float32": (1.0, 1.0, 0.0),
    "float16": (0.5, 1.0, 1e-7),
    "weights-int8": (0.25, 1.0, 1e-4),
    "int8": (0.25, 0.5, 1e-3),
    "int8-dynamic": (0.25, 0.9, 1e-3),
    "weights-int4-blocks": (0.16, 1.6, 2e-2),
    "weights-int8-blocks": (0.28, 1.4, 1e-4),
}
for word in candidate_words("download"):
    few = parse_choice(word)
    faster = 0.5 if few.compute == "static" else 1.0
    COST.setdefault(word, (few.bits / 32, faster, 1e-4 * 4 ** (8 - few.bits)))
ALONE = 32


@dataclass
class Bench:
    """A bench by formula. sensitive: factors on the noise of layers; fails: labels that do."""

    layers: tuple[Layer, ...]
    sensitive: dict[str, float] = field(default_factory=dict)
    fails: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    better: dict[str, object] = field(default_factory=dict)
    generated: bool = False
    tried: list[Tried] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target, self.seed = find_target("laptop"), 0
        self.samples = SimpleNamespace(generated=self.generated)

    def first_feeds(self) -> dict[str, Any]:
        return {}

    def search_indices(self) -> tuple[int, ...]:
        return tuple(range(100))

    def differs(self, recipe: Recipe, other: Recipe) -> bool:
        return False

    def make(self, recipe: Recipe, label: str) -> Tried:
        size = sum(layer.bytes * COST[recipe.choice(layer.name)][0] for layer in self.layers)
        return Tried(label, recipe, Path(label), (), round(size) + 100)

    def evaluate(
        self, recipe: Recipe, label: str, *, indices: Sequence[int] | None = None
    ) -> Tried:
        made = self.make(recipe, label)
        if indices is not None:
            self.alone.append(label)
            assert len(indices) == ALONE
        if label in self.fails:
            made = replace(made, failure="it was refused")
        else:
            noise = sum(
                COST[recipe.choice(layer.name)][2] * self.sensitive.get(layer.name, 1.0)
                for layer in self.layers
            )
            for setting, value in self.better.items():
                noise *= 0.1 if getattr(recipe, setting) == value else 1.0
            db = 10 * math.log10(1 / noise) if noise else 200.0
            made = replace(
                made,
                metric=MetricEvidence(
                    "m", 100, 1.0, 1 - noise, noise, (0, noise), proven=False, noise_db=db
                ),
            )
        if indices is None and all(old.recipe != recipe for old in self.tried):
            self.tried.append(made)
        return made

    def evaluate_many(
        self,
        candidates: Sequence[tuple[Recipe, str]],
        *,
        indices: Sequence[int] | None = None,
        progress: object = None,
    ) -> list[Tried]:
        return [self.evaluate(recipe, label, indices=indices) for recipe, label in candidates]

    def pack_trial(self, one: Tried) -> Tried:
        return replace(one, packed_bytes=one.size_bytes - 50)

    def rank(self, candidates: Sequence[Tried], *, seconds: float = 8.0) -> list[Tried]:
        timed = []
        for one in candidates:
            total = sum(layer.bytes for layer in self.layers)
            ratio = sum(
                layer.bytes
                * (1.5 if layer.name in self.slow and choice == "int8" else COST[choice][1])
                for layer in self.layers
                for choice in [one.recipe.choice(layer.name)]
            )
            ratio /= max(total, 1)
            timed.append(
                replace(one, latency_ratio=ratio, latency_interval_95=(ratio - 0.01, ratio + 0.01))
            )
        self.tried = [
            next((new for new in timed if new.recipe == old.recipe), old) for old in self.tried
        ]
        return timed


@pytest.fixture(scope="module")
def layers(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]
) -> tuple[Layer, ...]:
    """Four convolutions a, b, c, d of the same size."""
    draw = np.random.default_rng(0).standard_normal
    path = write_model(
        tmp_path_factory.mktemp("search") / "net.onnx",
        """net (float[1, 16, 8, 8] x) => (float[1, 16, 4, 4] d) {
            a = Conv(x, wa)
            b = Conv(a, wb)
            c = Conv(b, wc)
            d = Conv(c, wd)
        }""",
        **{f"w{name}": draw((16, 16, 2, 2)).astype(np.float32) for name in "abcd"},
    )
    return find_layers(load_model(path).ir)


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "layer_times", lambda path, layers, feeds: {})


@pytest.fixture(autouse=True)
def table_by_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(
        bench: Any,
        base: Tried,
        layers: Sequence[Layer],
        words: Sequence[str],
        *,
        pins: Sequence[tuple[str, str]],
        **options: Any,
    ) -> Table:
        able = []
        for layer in layers:
            own = base.recipe.choice(layer.name)
            wanted = (own,) if layer.name in dict(pins) else (own, *words)
            able.append(tuple(w for w in dict.fromkeys(wanted) if not why_not(layer, w)))
        costs = tuple(
            tuple(Cost(COST[word][2], COST[word][0] * layer.bytes, 0.0) for word in row)
            for layer, row in zip(layers, able, strict=True)
        )
        integer = tuple((False,) * len(row) for row in able)
        return Table(tuple(layer.name for layer in layers), tuple(able), costs, integer)

    monkeypatch.setattr(room, "build_table", build)


def limits(layers: Sequence[Layer], drop: float | None = 0.01, share: float = 1.0) -> Limits:
    return Limits(drop=drop, size=share * sum(layer.bytes for layer in layers) + 200, latency=1.0)


def choices(found: Any) -> list[str]:
    return [choice for _, choice in found.chosen.recipe.layers]


def test_the_fastest_that_keeps_to_the_budget_is_chosen(layers: tuple[Layer, ...]) -> None:
    bench = Bench(layers)
    found = search(bench, layers, limits(layers))  # type: ignore[arg-type]
    assert choices(found) == ["int8"] * 4
    assert found.chosen in found.tried
    assert found.taken_back == {}
    assert sorted(found.noise_db) == ["a", "b", "c", "d"]


def test_the_search_samples_may_show_only_part_of_the_drop(layers: tuple[Layer, ...]) -> None:
    for drop in (0.0041 / SAFETY, 0.0039 / SAFETY):  # all in int8 lose 0.004
        found = search(Bench(layers), layers, limits(layers, drop))  # type: ignore[arg-type]
        assert (choices(found) == ["int8"] * 4) == (drop * SAFETY > 0.004)
        assert found.chosen.drop <= drop * SAFETY


@pytest.mark.parametrize("sensitive", ["a", "b", "c", "d"])
def test_only_the_sensitive_layer_is_taken_back(layers: tuple[Layer, ...], sensitive: str) -> None:
    bench = Bench(layers, sensitive={sensitive: 50.0})
    found = search(bench, layers, limits(layers, 0.02))  # type: ignore[arg-type]
    expected = {layer.name: "int8" for layer in layers}
    expected[sensitive] = "weights-int8"
    assert dict(found.chosen.recipe.layers) == expected
    assert found.chosen.drop <= 0.02 * SAFETY
    assert found.chosen.recipe.choice(sensitive) != "int8"
    reason = "sensitive: int8 of it alone leaves 13.0 dB at the output"
    assert found.taken_back == {sensitive: reason}


def test_as_few_layers_as_will_do_are_taken_back(layers: tuple[Layer, ...]) -> None:
    bench = Bench(layers, sensitive={"b": 30.0, "c": 20.0})
    found = search(bench, layers, limits(layers, 0.04))  # type: ignore[arg-type]
    back = [name for name, choice in found.chosen.recipe.layers if choice != "int8"]
    assert len(back) == 1
    assert found.chosen.drop <= 0.04 * SAFETY


def test_no_better_choice_is_missed_by_brute_force(layers: tuple[Layer, ...]) -> None:
    """Nothing that was tried and keeps to the limits is clearly faster."""
    bench = Bench(layers, sensitive={"a": 3.0, "b": 30.0, "c": 0.1})
    found = search(bench, layers, limits(layers))  # type: ignore[arg-type]
    assert found.chosen.latency_ratio is not None
    for one in found.tried:
        if one.latency_ratio is not None and one.drop <= 0.01 * SAFETY:
            assert found.chosen.latency_ratio <= 1.04 * one.latency_ratio


def test_layers_that_are_slow_in_integers_stay_float(
    layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {
        "simplified only": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0},
        "int8 static": {"a": 1.4, "b": 0.5, "c": 0.5, "d": 1.3},
    }
    monkeypatch.setattr(room, "layer_times", lambda path, layers, feeds: times[str(path)])
    bench = Bench(layers, slow=("a", "d"))
    found = search(bench, layers, limits(layers))  # type: ignore[arg-type]
    assert choices(found) == ["float32", "int8", "int8", "float32"]


def test_a_setting_is_kept_where_it_is_clearly_better(layers: tuple[Layer, ...]) -> None:
    for better in ({"ranges": "percentile"}, {"bias_correction": True}, {"ranges": "min-max"}):
        found = search(Bench(layers, better=dict(better)), layers, limits(layers))  # type: ignore[arg-type]
        for setting, value in better.items():
            assert getattr(found.chosen.recipe, setting) == value
    plain = search(Bench(layers), layers, limits(layers))  # type: ignore[arg-type]
    assert plain.chosen.recipe.ranges == Recipe().ranges
    assert plain.chosen.recipe.bias_correction is False


@pytest.mark.parametrize(("factor", "gains"), [(10.0, True), (0.01, False)])
def test_graphs_are_balanced_only_where_that_can_gain(
    layers: tuple[Layer, ...], factor: float, gains: bool
) -> None:
    class Able(Bench):
        def differs(self, recipe: Recipe, other: Recipe) -> bool:
            return recipe != other

    for better in ({"rotate": True}, {"smooth": "searched"}, {"smooth": 0.5}):
        sensitive = {layer.name: factor for layer in layers}
        bench = Able(layers, better=dict(better), sensitive=sensitive)
        found = search(bench, layers, limits(layers, drop=0.5))  # type: ignore[arg-type]
        tried = {key for one in bench.tried for key in BALANCE if getattr(one.recipe, key)}
        # 14 dB without, and 44 dB where every layer makes a thousandth of that noise.
        assert tried == (set(BALANCE) if gains else set())
        for setting, value in better.items():
            assert (getattr(found.chosen.recipe, setting) == value) == gains


def test_what_fails_is_reported_and_not_chosen(layers: tuple[Layer, ...]) -> None:
    bench = Bench(layers, fails=("int8 static",))
    found = search(bench, layers, limits(layers))  # type: ignore[arg-type]
    assert not found.chosen.failure
    assert [one.failure for one in found.tried if one.failure] == ["it was refused"]


def test_even_where_all_fails_there_is_an_answer(layers: tuple[Layer, ...]) -> None:
    labels = ("int8 weights", "int8 static", "float16 weights", "int8 dynamic")
    found = search(Bench(layers, fails=labels), layers, limits(layers))  # type: ignore[arg-type]
    assert not found.chosen.failure


def test_without_samples_nothing_is_computed_in_integers(layers: tuple[Layer, ...]) -> None:
    found = search(Bench(layers, generated=True), layers, limits(layers))  # type: ignore[arg-type]
    assert set(choices(found)).isdisjoint({"int8", "int8-wide"})


def test_a_model_without_layers(layers: tuple[Layer, ...]) -> None:
    found = search(Bench(()), (), limits(layers))  # type: ignore[arg-type]
    assert found.chosen.recipe.layers == ()
    assert found.noise_db == {}


# Presets, downloads, rules ------------------------------------------------------------------------


def packed(found: Any) -> int:
    assert found.chosen.packed_bytes is not None
    return int(found.chosen.packed_bytes)


def test_smallest_goes_below_8_bits_and_keeps_the_drop(layers: tuple[Layer, ...]) -> None:
    plain = search(Bench(layers), layers, limits(layers))  # type: ignore[arg-type]
    bench = Bench(layers)
    found = search(bench, layers, limits(layers), goal=find_goal("smallest"))  # type: ignore[arg-type]
    assert found.chosen.drop <= 0.01 * SAFETY
    assert packed(found) < 0.8 * plain.chosen.size_bytes
    assert found.chosen in found.tried
    assert min(parse_choice(word).bits for word in choices(found)) < 8


def test_smallest_without_a_drop_is_bound_by_the_size(layers: tuple[Layer, ...]) -> None:
    """Nobody wants 0.5 bits a weight that nothing holds."""
    found = search(
        Bench(layers),  # type: ignore[arg-type]
        layers,
        limits(layers, None, share=0.3),
        goal=find_goal("smallest"),
        asked=True,
    )
    assert found.chosen.size_bytes <= limits(layers, None, share=0.3).size  # type: ignore[operator]
    assert found.chosen.drop < 0.01


@pytest.mark.parametrize("drop", [0.02, None])
def test_a_limit_on_the_download_is_kept(layers: tuple[Layer, ...], drop: float | None) -> None:
    most = round(0.2 * sum(layer.bytes for layer in layers))
    found = search(
        Bench(layers),  # type: ignore[arg-type]
        layers,
        limits(layers, drop),
        download=most,
        asked=True,
    )
    assert packed(found) <= most
    assert drop is None or found.chosen.drop <= drop * SAFETY
    if drop is None:  # as faithful as fits: the room is used
        assert packed(found) > 0.8 * most


def test_a_download_beyond_reach_gives_what_is_nearest(layers: tuple[Layer, ...]) -> None:
    found = search(
        Bench(layers),  # type: ignore[arg-type]
        layers,
        limits(layers, 1e-4),
        download=120,
        asked=True,
    )
    assert not found.chosen.failure and found.chosen.latency_ratio is not None


def test_lossless_rounds_nothing(layers: tuple[Layer, ...]) -> None:
    bench = Bench(layers)
    found = search(bench, layers, limits(layers, 0.0), goal=find_goal("lossless"))  # type: ignore[arg-type]
    assert set(choices(found)) == {"float32"}
    assert len(found.tried) == 1  # no weight of this network fits into 16 bits
    pinned = Rules((("b", "float16"),))
    found = search(bench, layers, limits(layers, 0.0), goal=find_goal("lossless"), rules=pinned)  # type: ignore[arg-type]
    assert choices(found) == ["float32", "float16", "float32", "float32"]


def test_without_samples_nothing_small_is_computed_in_integers(layers: tuple[Layer, ...]) -> None:
    bench = Bench(layers, generated=True)
    search(bench, layers, limits(layers), goal=find_goal("smallest"))  # type: ignore[arg-type]
    tried = {word for one in bench.tried for _, word in one.recipe.layers}
    assert all(parse_choice(word).compute != "static" for word in tried)
    assert not any(one.recipe.sequential for one in bench.tried)


@pytest.mark.parametrize("goal", ["balanced", "smallest"])
def test_rules_hold_in_every_recipe_that_is_tried(layers: tuple[Layer, ...], goal: str) -> None:
    rules = Rules((("b", "weights-int8"), ("d", "float32")), ("float16", "int4", "int8-dynamic"))
    bench = Bench(layers, sensitive={"a": 50.0})
    found = search(bench, layers, limits(layers), goal=find_goal(goal), rules=rules)  # type: ignore[arg-type]
    assert len(bench.tried) > 3 and found.chosen in bench.tried
    for one in bench.tried:
        assert one.recipe.choice("b") == "weights-int8", one.label
        assert one.recipe.choice("d") == "float32", one.label
        words = {word for _, word in one.recipe.layers}
        assert words.isdisjoint(rules.forbidden), one.label


def test_a_given_recipe_is_tried_first_with_its_pins(layers: tuple[Layer, ...]) -> None:
    """It may leave layers out; it competes with all others."""
    given = Recipe(
        layers=(("a", "int8"), ("c", "weights-int8")), pins=(("b", "weights-int8"),), seed=5
    )
    bench = Bench(layers)
    rules = Rules(given.pins)
    found = search(bench, layers, limits(layers), rules=rules, given=given)  # type: ignore[arg-type]
    first = bench.tried[0]
    assert first.label == "the given recipe, pinned"
    assert dict(first.recipe.layers) == {
        "a": "int8",
        "b": "weights-int8",
        "c": "weights-int8",
        "d": "float32",
    }
    assert first.recipe.pins == () and first.recipe.seed == 5
    assert choices(found) == ["int8", "weights-int8", "int8", "int8"]
