"""Layer by layer under a budget, on a bench whose figures follow from a formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packlight.measure.evidence import MetricEvidence
from packlight.plan.knapsack import Cost
from packlight.plan.mixed import CLOSE, ROUNDS, Proposal, keeps_drop, search_mixed
from packlight.plan.solve import Limits
from packlight.plan.table import Table
from packlight.plan.tried import Tried
from packlight.recipe import Recipe

WORDS = ("float32", "int8", "int4")
REST = 500.0


def table(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]]) -> Table:
    """Layers l0, l1, ... with a loss and a size for each of `WORDS`; float32 takes the longest."""
    costs = tuple(
        tuple(Cost(loss, size, ms) for loss, size, ms in zip(*rows, (4.0, 2.0, 3.0), strict=True))
        for rows in zip(losses, sizes, strict=True)
    )
    names = tuple(f"l{i}" for i in range(len(costs)))
    return Table(names, (WORDS,) * len(costs), costs, ((False, True, True),) * len(costs))


def random_table(seed: int, layers: int = 3) -> Table:
    random = np.random.default_rng(seed)
    small = 10 ** random.uniform(-5, -3, layers)
    losses = [(0.0, float(e), float(e * random.uniform(20, 300))) for e in small]
    sizes = [(4 * n, n, 0.5 * n) for n in random.integers(200, 3000, layers).astype(float)]
    return table(losses, sizes)


@dataclass
class Bench:
    """A bench by formula: noise is what the table says times `louder`, bytes times `larger`."""

    table: Table
    louder: float = 1.0
    larger: float = 1.0
    later: float = 0.0
    fails: frozenset[tuple[str, str]] = frozenset()
    interval: float = 0.0
    better: float = 0.5
    made: list[Recipe] = field(default_factory=list)
    timed: int = 0
    packed: int = 0

    def sums(self, recipe: Recipe) -> tuple[float, float, float]:
        found = [0.0, REST, self.later]
        for name, words, costs in zip(
            self.table.names, self.table.words, self.table.costs, strict=True
        ):
            cost = costs[words.index(recipe.choice(name))]
            for i, value in enumerate((cost.loss, cost.bytes, cost.ms)):
                found[i] += value
        return found[0], found[1], found[2]

    def evaluate(self, recipe: Recipe, label: str) -> Tried:
        assert recipe not in self.made, "nothing is measured twice"
        self.made.append(recipe)
        return self.figures(recipe, label)

    def figures(self, recipe: Recipe, label: str) -> Tried:
        loss, size, _ = self.sums(recipe)
        noise = loss * self.louder * (self.better if recipe.sequential else 1.0)
        shown = replace(
            Tried(label, recipe, Path(label), (Path(label),), round(size * self.larger)),
            metric=MetricEvidence(
                "m",
                100,
                1.0,
                1 - noise,
                noise,
                (0.0, noise + self.interval),
                False,
                noise_db=-10 * math.log10(noise) if noise else 200.0,
            ),
        )
        if self.fails & set(recipe.layers):
            return replace(shown, metric=None, failure="it was refused")
        return shown

    def pack_trial(self, one: Tried) -> Tried:
        self.packed += 1
        return replace(one, packed_bytes=one.size_bytes // 2)

    def rank(self, candidates: Sequence[Tried], *, seconds: float = 8.0) -> list[Tried]:
        self.timed += 1
        whole = sum(costs[0].ms for costs in self.table.costs)
        found = []
        for one in candidates:
            late = self.later if one.label != "base" else 0.0
            ms = self.sums(one.recipe)[2] - self.later + late
            found.append(replace(one, latency_ms=ms, latency_ratio=ms / whole))
        return found

    def base(self) -> Tried:
        recipe = Recipe(layers=tuple((name, "int8") for name in self.table.names))
        return self.rank([self.figures(recipe, "base")])[0]


def run(bench: Bench, limits: Limits, minimise: str = "bytes", **options: Any) -> list[Proposal]:
    base = bench.base()
    bench.timed = 0
    return search_mixed(bench, bench.table, base, limits, minimise, **options)  # type: ignore[arg-type]


def all_of(bench: Bench) -> list[Tried]:
    """Every assignment there is."""
    return [
        bench.figures(Recipe(layers=tuple(zip(bench.table.names, words, strict=True))), "any")
        for words in itertools.product(WORDS, repeat=len(bench.table.names))
    ]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("louder", [1.0, 0.2, 6.0])
def test_the_smallest_that_keeps_the_drop_by_brute_force(seed: int, louder: float) -> None:
    """Within what two noise powers may be apart that are not told apart."""
    bench = Bench(random_table(seed), louder=louder)
    drop = 0.01
    found = run(bench, Limits(drop=drop))
    kept = [one.tried for one in found if one.tried.drop <= drop]
    assert kept and len(found) <= ROUNDS
    sizes = [one.size_bytes for one in all_of(bench) if one.drop <= drop / CLOSE**2]
    assert min(one.size_bytes for one in kept) <= min(sizes)


@pytest.mark.parametrize("larger", [1.0, 1.15, 0.9])
def test_a_size_is_met_after_correction_and_used_up(larger: float) -> None:
    """Without a limit on the drop the most faithful that fits, however wrong the prediction is."""
    for seed in range(6):
        bench = Bench(random_table(seed, layers=8), larger=larger)
        every = bench.table.costs
        size = larger * (REST + sum(0.9 * c[1].bytes + 0.1 * c[2].bytes for c in every))
        found = run(bench, Limits(size=size))
        fitting = [one.tried for one in found if one.tried.size_bytes <= size]
        assert fitting, seed
        assert max(one.size_bytes for one in fitting) > 0.9 * size
        assert len(found) <= 6


def test_the_most_faithful_within_a_size_by_brute_force() -> None:
    for seed in range(6):
        bench = Bench(random_table(seed))
        size = 0.5 * bench.sums(Recipe())[1]
        found = run(bench, Limits(size=size))
        best = max(one.noise_db for one in all_of(bench) if one.size_bytes <= size)
        seen = max(one.tried.noise_db for one in found if one.tried.size_bytes <= size)
        assert seen == pytest.approx(best, abs=0.01)


def test_what_was_proposed_again_does_not_end_the_search() -> None:
    """One step leads far: between two assignments the aims differ by a factor of 1000."""
    losses = [(0.0, 1e-5, 1e-2), (0.0, 1e-5, 1.2e-2), (0.0, 1e-5, 5e-2)]
    bench = Bench(table(losses, [(4000, 1000, 500)] * 3))
    found = run(bench, Limits(drop=0.023))
    best = min(
        (one.tried for one in found if one.tried.drop <= 0.023), key=lambda one: one.size_bytes
    )
    assert sorted(word for _, word in best.recipe.layers) == ["int4", "int4", "int8"]
    assert best.recipe.choice("l2") == "int8"


def test_the_drop_is_kept_or_what_is_nearest_is_there() -> None:
    bench = Bench(random_table(1), louder=1e4)
    found = run(bench, Limits(drop=1e-12))
    assert [one.tried.drop for one in found].count(0.0) == 1  # all of it in float32
    only = Bench(table([(0.5, 0.6, 0.7)] * 2, [(40, 10, 5)] * 2))
    found = run(only, Limits(drop=0.01))
    assert all(one.tried.drop > 0.01 for one in found)
    assert min(one.tried.drop for one in found) == pytest.approx(1.0)


def test_a_size_beyond_reach_gives_both_ends() -> None:
    """The smallest that keeps the drop, and the most faithful of those that are small enough."""
    bench = Bench(random_table(3))
    least = bench.sums(Recipe(layers=tuple((n, "int4") for n in bench.table.names)))[1]
    found = [one.tried for one in run(bench, Limits(drop=2e-4, size=1.05 * least))]
    kept = [one for one in found if one.drop <= 2e-4]
    small = [one for one in found if one.size_bytes <= 1.05 * least]
    assert kept and small
    able = [one for one in all_of(bench) if one.size_bytes <= 1.05 * least]
    assert max(o.noise_db for o in small) == pytest.approx(max(o.noise_db for o in able))


def test_files_that_fail_are_not_proposed_again() -> None:
    bench = Bench(random_table(2), fails=frozenset({("l1", "int4")}))
    found = run(bench, Limits(drop=0.5))
    good = [one.tried for one in found if not one.tried.failure]
    assert any(one.tried.failure for one in found)
    # The table does not know why it failed; other assignments are tried all the same.
    assert good and all(one.drop <= 0.5 for one in good)
    every = Bench(random_table(2), fails=frozenset((f"l{i}", w) for i in range(3) for w in WORDS))
    assert len(run(every, Limits(drop=0.5))) == 3


def test_latency_is_kept_where_the_clock_disagrees() -> None:
    """Half of the original's time; files are half a millisecond slower than their layers."""
    bench = Bench(random_table(4, layers=6), later=1.0)
    for minimise in ("bytes", "ms"):
        bench.made.clear()
        found = run(bench, Limits(drop=0.05, latency=0.7), minimise)
        assert bench.timed == len(found)
        kept = [one.tried for one in found if one.tried.drop <= 0.05]
        assert kept
        assert any((one.latency_ratio or 9) <= 0.7 for one in kept), minimise


def test_a_latency_beyond_reach_still_makes_small_files() -> None:
    bench = Bench(random_table(5, layers=4))
    base = bench.base()
    found = run(bench, Limits(drop=0.5, latency=0.1))
    assert min(one.tried.size_bytes for one in found) <= base.size_bytes


def test_packed_sizes_are_measured_where_they_are_limited() -> None:
    bench = Bench(random_table(6))
    run(bench, Limits(drop=0.01), packed=True)
    assert bench.packed == 1  # the base's, for what is no layer's
    size = 0.3 * bench.sums(Recipe())[1]
    bench.made.clear()
    found = run(bench, Limits(size=size), packed=True)
    assert any((one.tried.packed_bytes or 1e9) <= size for one in found)


def test_refitting_goes_on_where_the_first_phase_ended() -> None:
    bench = Bench(random_table(7, layers=12))
    limits = Limits(drop=0.02)
    first = run(bench, limits)
    ends = max(one.predicted_loss for one in first if one.tried.drop <= 0.02)
    second = run(bench, limits, refit=True, before=first)
    assert 0.7 * 2 * ends < second[0].predicted_loss <= 2 * ends
    assert all(one.tried.recipe.sequential for one in second)
    assert all(one.tried.label.endswith("refitted in sequence") for one in second)
    assert min(o.tried.size_bytes for o in second if o.tried.drop <= 0.02) <= min(
        o.tried.size_bytes for o in first if o.tried.drop <= 0.02
    )


def test_predictions_are_kept_with_what_was_measured() -> None:
    bench = Bench(random_table(8))
    for one in run(bench, Limits(drop=0.01)):
        loss, size, _ = bench.sums(one.tried.recipe)
        assert one.predicted_loss == pytest.approx(loss)
        assert one.predicted_bytes == pytest.approx(size)


def test_no_time_leaves_one_proposal() -> None:
    assert len(run(Bench(random_table(9)), Limits(drop=0.01), seconds=0.0)) == 1


def test_few_samples_are_believed_where_they_show_no_drop() -> None:
    def shown(drop: float, upper: float) -> Tried:
        metric = MetricEvidence("m", 50, 1.0, 1 - drop, drop, (-0.1, upper), False)
        return replace(Tried("x", Recipe(), Path("x"), (), 1), metric=metric)

    limits = Limits(drop=0.01)
    assert keeps_drop(shown(0.0, 0.07), limits) and keeps_drop(shown(-0.02, 0.07), limits)
    assert not keeps_drop(shown(0.005, 0.02), limits)
    assert keeps_drop(shown(0.005, 0.014), limits)
    assert not keeps_drop(shown(0.011, 0.012), limits)
    assert not keeps_drop(Tried("x", Recipe(), Path("x"), (), 1), limits)
    assert keeps_drop(shown(0.5, 0.6), Limits())
