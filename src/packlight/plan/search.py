"""Solve, apply, measure, correct: whole recipes first, then layer by layer under the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer
from packlight.graph.rewrite.store import holds_exactly
from packlight.plan.candidates import whole_recipes
from packlight.plan.exchange import Resource
from packlight.plan.goal import BALANCED, Goal, Wish, candidate_words
from packlight.plan.mixed import Proposal, keeps_drop, search_mixed
from packlight.plan.rules import FREE, Rules, distinct
from packlight.plan.sensitivity import measure_sensitivity
from packlight.plan.solve import (
    SLOWER,
    TIE_LATENCY,
    TIE_SIZE,
    Limits,
    Option,
    choose,
    violation,
)
from packlight.plan.speed import layer_times, slow_in_integers
from packlight.plan.table import build_table
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.progress import SILENT, Progress
from packlight.recipe import SEARCHED, Recipe, parse_choice

SAFETY = 0.8
"""Share of the allowed drop that the search samples may show: the proof has others."""

CLEARLY_DB = 0.5
"""Other ranges or corrections must be better by this: few samples tell no finer difference."""

FAITHFUL_DB = 30.0
"""Above this, balancing channels or smoothing has next to nothing left to gain."""

BALANCE = ("equalize", "rotate", "smooth")
"""Settings that change the graph a recipe starts from: each calibrates once more."""

INTEGER = ("int8", "int8-wide")

FINAL = 2
"""Proposals that are timed, and packed: the smallest of those that keep the drop."""

EXACT_DB = 80.0
"""Float arithmetic in another order leaves more than this."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    chosen: the best under the budget. tried: all that was measured, in order.
    noise_db: by layer, the output's signal-to-noise ratio when it alone is compressed.
    taken_back: layers that went back towards float, each with the reason.
    """

    chosen: Tried
    tried: tuple[Tried, ...]
    noise_db: dict[str, float] = field(default_factory=dict)
    taken_back: dict[str, str] = field(default_factory=dict)


def search(
    bench: Workbench,
    layers: Sequence[Layer],
    limits: Limits,
    *,
    goal: Goal = BALANCED,
    rules: Rules = FREE,
    given: Recipe | None = None,
    download: int | None = None,
    asked: bool = False,
    progress: Progress = SILENT,
) -> Found:
    """Find the fastest, then smallest, then most faithful recipe that keeps to the limits;
    without a limit on the drop the most faithful one.

    limits: drop absolute, size in bytes, latency as a ratio to the original's. download: bytes
    of the packed file, None for no limit. goal: what is wished for most; "smallest" and a limit
    on the download look at the packed file. rules: what the user pinned or forbade. given: a
    recipe of the user's to begin with.
    asked: the size or the latency is limited by the user.
    """
    wanted = replace(limits, drop=None if limits.drop is None else limits.drop * SAFETY)
    if goal.wish == "nothing":
        return _lossless(bench, layers, rules, progress)
    recipes = whole_recipes(
        layers, bench.target, generated=bench.samples.generated, seed=bench.seed
    )
    if given is not None:
        recipes.insert(0, ("the given recipe, pinned", replace(given, pins=(), forbid=())))
    recipes = distinct((label, rules.honour(recipe, layers)) for label, recipe in recipes)
    progress.stage("trying whole recipes", len(recipes))
    tried = bench.evaluate_many([(recipe, label) for label, recipe in recipes], progress=progress)
    static = next((one for one in tried if _uses(one.recipe, INTEGER)), None)
    if static is not None and not static.failure:
        tried += _variants(bench, static, layers, rules, progress)
    tried = _timed(bench, tried, progress)
    best = tried[_best(tried, wanted, goal)]
    taken: dict[str, str] = {}
    starts = _most_promising(tried, best, wanted)
    noise = _noise(bench, starts[0] if starts else best, layers, progress)
    if starts:
        rescued: list[Tried] = []
        origin: dict[Recipe, Tried] = {}
        for start in starts:
            back = _take_back(bench, start, layers, noise, wanted, rules, progress)
            origin |= {one.recipe: start for one in back if one.recipe not in origin}
            rescued += back
        better = tried + _timed(bench, rescued, progress)
        chosen = better[_best(better, wanted, goal)]
        if chosen.recipe == best.recipe:
            noise = _noise(bench, best, layers, progress)
        else:
            best = chosen
            start = origin.get(best.recipe, best)
            taken = {
                name: f"sensitive: {start.recipe.choice(name)} of it alone leaves "
                f"{noise[name]:.1f} dB at the output"
                for name, choice in best.recipe.layers
                if choice != start.recipe.choice(name) and name in noise
            }
    # Without any limit on its packed size, or on the drop, "smallest" has nothing to hold it.
    small = download is not None or (goal.wish == "download" and wanted.drop is not None)
    if small or (asked and (wanted.drop is None or violation(option_of(best), wanted))):
        limits = replace(wanted, size=download) if small else wanted
        most = wanted.size if small else None
        mixed = _mixed(bench, best, tried, layers, limits, small, most, rules, progress)
        if mixed is not None and mixed.recipe != best.recipe:
            best, taken = mixed, {}
            noise = _noise(bench, best, layers, progress)
    return Found(best, tuple(bench.tried), noise, taken)


def _mixed(
    bench: Workbench,
    best: Tried,
    tried: Sequence[Tried],
    layers: Sequence[Layer],
    limits: Limits,
    packed: bool,
    most_bytes: float | None,
    rules: Rules,
    progress: Progress,
) -> Tried | None:
    """The best recipe with a choice for each layer; None where there is nothing to start from.

    packed: sizes are those of the entropy-coded file. most_bytes: of the file itself then.
    """
    base = _base(best, tried, packed=packed)
    if base is None:
        return None
    wish: Wish = "download" if packed else "size"
    generated = bench.samples.generated
    words = [word for word in candidate_words(wish) if rules.allows(word)]
    if generated:  # nobody knows what range activations have
        words = [word for word in words if parse_choice(word).compute != "static"]
    late = limits.latency is not None and option_of(best).latency > limits.latency
    large = limits.size is not None and best.size_bytes > limits.size
    minimise: Resource = "ms" if late and not large and not packed else "bytes"
    examples = [one for one in tried if not one.failure and one is not base]
    table = build_table(
        bench,
        base,
        layers,
        words,
        packed=packed,
        pins=rules.pins,
        examples=examples,
        progress=progress,
    )
    proposals: list[Proposal] = []
    few = any(parse_choice(word).bits < 8 for words in table.words for word in words)
    for refit in (False, True) if few and not generated else (False,):
        proposals += search_mixed(
            bench,
            table,
            base,
            limits,
            minimise,
            packed=packed,
            refit=refit,
            known=tried,
            before=tuple(proposals),
            progress=progress,
        )
    final = _final(proposals, limits, minimise, packed=packed)
    found = [one for one in {o.recipe: o for o in (base, best, *final)}.values() if not one.failure]
    found = [one for one in found if most_bytes is None or one.size_bytes <= most_bytes] or [best]
    if packed:
        found = [bench.pack_trial(one) for one in found]
    timed = _timed(bench, found, progress)
    options = [option_of(one, packed=packed) for one in timed]
    return timed[choose(options, limits, smallest=packed and limits.drop is not None)]


def _base(best: Tried, tried: Sequence[Tried], *, packed: bool) -> Tried | None:
    """What to start from: the best, or what computes most in integers, where that is smaller.

    Of those as many layers in integers as can be, since what is measured of them tells what
    rounding activations costs; of equals the most faithful.
    """
    able = [one for one in tried if not one.failure and one.recipe.layers]
    compressed = any(word != "float32" for _, word in best.recipe.layers)
    if not best.failure and compressed and (not packed or _uses(best.recipe, INTEGER)):
        return best
    static = [one for one in able if _uses(one.recipe, INTEGER)]
    if static:
        return max(static, key=lambda one: (_count(one.recipe, INTEGER), one.noise_db))
    return best if compressed and not best.failure else next(iter(able), None)


def _final(
    proposals: Sequence[Proposal], limits: Limits, minimise: Resource, *, packed: bool
) -> list[Tried]:
    """The proposals worth timing and packing.

    Those that keep the drop, the least first; where none does those that are nearest to it.
    """
    able = [one for one in proposals if not one.tried.failure]
    kept = [one for one in able if keeps_drop(one.tried, limits)]
    most = math.inf if limits.size is None else limits.size

    def size(one: Proposal) -> float:
        return one.tried.packed_bytes or one.predicted_bytes if packed else one.tried.size_bytes

    if limits.drop is None:
        kept.sort(key=lambda one: (size(one) > most, -one.tried.noise_db))
    elif minimise == "bytes":
        kept.sort(key=size)
    nearest = sorted(able, key=lambda one: one.tried.drop)
    # Where none that keeps the drop is small enough, one that is may be nearer to the budget.
    small = [one for one in nearest if math.isfinite(most) and size(one) <= most]
    return [one.tried for one in (*(kept or nearest)[:FINAL], *small[:1])]


def _lossless(bench: Workbench, layers: Sequence[Layer], rules: Rules, progress: Progress) -> Found:
    """The smallest of what rounds nothing: the simplified graph, and halves that are exact."""
    exact = tuple(
        (layer.name, "float16" if holds_exactly(layer) and rules.allows("float16") else "float32")
        for layer in layers
    )
    plain = Recipe(target=bench.target.name, seed=bench.seed)
    pinned = Rules(rules.pins)
    same: tuple[tuple[str, str], ...] = tuple((name, "float32") for name, _ in exact)
    recipes = distinct(
        (label, pinned.honour(replace(plain, layers=chosen), layers))
        for label, chosen in (("simplified only", same), ("exact halves", exact))
    )
    progress.stage("trying what is exact", len(recipes))
    tried = bench.evaluate_many([(recipe, label) for label, recipe in recipes], progress=progress)
    runs = [bench.pack_trial(one) for one in _timed(bench, tried, progress) if not one.failure]
    kept = [one for one in runs if one.noise_db >= EXACT_DB or _silent(one)]
    best = min(
        kept or runs or tried, key=lambda one: (one.packed_bytes or one.size_bytes, one.size_bytes)
    )
    return Found(best, tuple(bench.tried))


def _noise(
    bench: Workbench, one: Tried, layers: Sequence[Layer], progress: Progress
) -> dict[str, float]:
    """Each compressed layer alone, the largest first, should time not do for all."""
    largest = sorted(layers, key=lambda layer: -layer.bytes)
    names = [layer.name for layer in largest if one.recipe.choice(layer.name) != "float32"]
    return measure_sensitivity(bench, one.recipe, names, progress=progress) if names else {}


def _variants(
    bench: Workbench,
    static: Tried,
    layers: Sequence[Layer],
    rules: Rules,
    progress: Progress,
) -> list[Tried]:
    """The static recipe with other settings: those that better it are kept and combined."""
    best = static
    found: list[Tried] = []
    progress.stage("finding ranges and corrections", 7)
    for label, change in (
        ("bias correction", {"bias_correction": True}),
        ("min-max ranges", {"ranges": "min-max"}),
        ("percentile ranges", {"ranges": "percentile"}),
        ("equalized channels", {"equalize": True}),
        ("rotated channels", {"rotate": True}),
        ("smoothed activations 0.5", {"smooth": 0.5}),
        ("smoothed activations, searched", {"smooth": SEARCHED}),
    ):
        recipe = replace(best.recipe, **change)
        if not change.keys().isdisjoint(BALANCE) and not _balances(bench, best, recipe):
            continue
        trial = bench.evaluate(recipe, f"{static.label}, {label}")
        progress.step(label)
        if trial.noise_db > best.noise_db + CLEARLY_DB:
            best = trial
    if best is not static:
        found.append(best)
    ends = [layer.name for layer in layers if best.recipe.choice(layer.name) in INTEGER]
    options = {
        "first layer float": tuple(ends[:1]),
        "first and last layer float": (*ends[:1], *ends[-1:]),
    }
    feeds = bench.first_feeds()
    plain = bench.make(Recipe(target=best.recipe.target, seed=bench.seed), "simplified only")
    known = list(options.values())
    slow = slow_in_integers(
        ends, layer_times(plain.path, layers, feeds), layer_times(best.path, layers, feeds)
    )
    options |= {label: names for label, names in slow.items() if names not in known}
    progress.stage("trying layers in float", len(options))
    for label, names in options.items():
        if names and len(names) < len(ends):
            recipe = rules.honour(best.recipe.with_choice(names, "float32"), layers)
            found.append(bench.evaluate(recipe, f"{best.label}, {label}"))
        progress.step(label)
    return found


def _balances(bench: Workbench, best: Tried, recipe: Recipe) -> bool:
    """Whether balancing channels is worth another calibration pass: it may gain, and can."""
    return best.noise_db <= FAITHFUL_DB and bench.differs(best.recipe, recipe)


def _timed(bench: Workbench, tried: Sequence[Tried], progress: Progress) -> list[Tried]:
    """The same candidates with their latencies; those that failed stay without."""
    runnable = [one for one in tried if not one.failure]
    progress.stage("timing candidates")
    timed = {one.recipe: one for one in bench.rank(runnable)} if runnable else {}
    progress.step()
    return [timed.get(one.recipe, one) for one in tried]


def option_of(one: Tried, *, packed: bool = False) -> Option:
    """A candidate as numbers; packed: its size is that of the entropy-coded file."""
    latency = one.latency_ratio if one.latency_ratio is not None else float("inf")
    if one.latency_interval_95 is not None:
        shown = one.latency_interval_95[0] > 1.0 and latency > SLOWER
        latency = latency if shown else min(latency, 1.0)
    size = one.packed_bytes or one.size_bytes if packed else one.size_bytes
    return Option(size, latency, one.drop, one.noise_db)


def _best(tried: Sequence[Tried], limits: Limits, goal: Goal) -> int:
    able = [i for i, one in enumerate(tried) if not one.failure] or list(range(len(tried)))
    tie = goal.tie_latency
    return able[choose([option_of(tried[i]) for i in able], limits, tie_latency=tie)]


def _most_promising(tried: Sequence[Tried], best: Tried, limits: Limits) -> list[Tried]:
    """Candidates that only their drop rules out, and that would be clearly better than `best`.

    Of several the fastest, and the one with the least drop: that needs the fewest layers back.
    """
    if limits.drop is None:
        return []
    free = replace(limits, drop=None)
    kept = option_of(best)
    hopeful = []
    for one in tried:
        option = option_of(one)
        allowed = one.metric is not None and violation(option, free) == 0
        faster = option.latency * (1 + TIE_LATENCY) < kept.latency
        smaller = option.size * (1 + TIE_SIZE) < kept.size
        smaller = smaller and option.latency <= kept.latency * (1 + TIE_LATENCY)
        if allowed and option.drop > limits.drop and (faster or smaller or violation(kept, limits)):
            hopeful.append(one)
    if not hopeful:
        return []
    fastest = min(hopeful, key=lambda one: (option_of(one).latency, one.drop))
    nearest = min(hopeful, key=lambda one: one.drop)
    return [fastest] if nearest is fastest else [fastest, nearest]


def _take_back(
    bench: Workbench,
    start: Tried,
    layers: Sequence[Layer],
    noise_db: dict[str, float],
    limits: Limits,
    rules: Rules,
    progress: Progress,
) -> list[Tried]:
    """Take the most sensitive layers back until the budget is met, as few as will do.

    Sensitive is what makes much noise for the bytes it saves: layers go back in the order of
    noise power per byte, to 8-bit weights computed in float or, where that is no better,
    to 16-bit floats. The number is found by bisection, since more in float is (nearly
    always) more faithful. A layer whose sensitivity was not measured goes back last.
    """
    sizes = {layer.name: max(layer.bytes, 1) for layer in layers}
    pinned = dict(rules.pins)
    order = [
        name
        for name in sizes
        if name not in pinned and start.recipe.choice(name) not in ("float32", "float16")
    ]
    power = {name: 10 ** (-noise_db.get(name, 300.0) / 10) for name in order}
    order.sort(key=lambda name: power[name] / sizes[name], reverse=True)
    progress.stage("taking sensitive layers back", 2 * max(len(order), 1).bit_length())
    found: list[Tried] = []
    for milder in filter(rules.allows, ("weights-int8", "float16")):
        able = {layer.name for layer in layers if not why_not(layer, milder)}
        back = [name for name in order if name in able and start.recipe.choice(name) != milder]
        low, high, good = 1, len(back), False
        while low <= high:
            middle = (low + high) // 2
            recipe = start.recipe.with_choice(back[:middle], milder)
            trial = bench.evaluate(recipe, f"{start.label}, {middle} layers as {milder}")
            found.append(trial)
            progress.step(trial.label)
            if limits.drop is not None and trial.drop <= limits.drop:
                good, high = True, middle - 1
            else:
                low = middle + 1
        if good:
            break
    return found


def _uses(recipe: Recipe, choices: Sequence[str]) -> bool:
    return _count(recipe, choices) > 0


def _count(recipe: Recipe, choices: Sequence[str]) -> int:
    return sum(choice in choices for _, choice in recipe.layers)


def _silent(one: Tried) -> bool:
    """Whether there is no output in floats that noise could be told of, and no drop either."""
    return one.metric is not None and one.metric.noise_db is None and one.drop <= 0
