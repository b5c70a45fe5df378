"""Solve, apply, measure, correct: whole recipes first, then layer by layer under the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer
from packlight.plan.candidates import whole_recipes
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
from packlight.plan.trials import Tried, Workbench
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe

SAFETY = 0.8
"""Share of the allowed drop that the search samples may show: the proof has others."""

CLEARLY_DB = 0.5
"""Other ranges or corrections must be better by this: few samples tell no finer difference."""

FAITHFUL_DB = 30.0
"""Above this, balancing channels has next to nothing left to gain."""

INTEGER = ("int8", "int8-wide")


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
    progress: Progress = SILENT,
) -> Found:
    """Find the fastest, then smallest, then most faithful recipe that keeps to the limits;
    without a limit on the drop the most faithful one.

    limits: drop absolute, size in bytes, latency as a ratio to the original's.
    """
    wanted = replace(limits, drop=None if limits.drop is None else limits.drop * SAFETY)
    recipes = whole_recipes(
        layers, bench.target, generated=bench.samples.generated, seed=bench.seed
    )
    progress.stage("trying whole recipes", len(recipes))
    tried = []
    for label, recipe in recipes:
        tried.append(bench.evaluate(recipe, label))
        progress.step(label)
    static = next((one for one in tried if _uses(one.recipe, INTEGER)), None)
    if static is not None and not static.failure:
        tried += _variants(bench, static, layers, progress)
    tried = _timed(bench, tried, progress)
    best = tried[_best(tried, wanted)]
    taken: dict[str, str] = {}
    starts = _most_promising(tried, best, wanted)
    noise = _noise(bench, starts[0] if starts else best, layers, progress)
    if starts:
        rescued: list[Tried] = []
        origin: dict[Recipe, Tried] = {}
        for start in starts:
            back = _take_back(bench, start, layers, noise, wanted, progress)
            origin |= {one.recipe: start for one in back if one.recipe not in origin}
            rescued += back
        better = tried + _timed(bench, rescued, progress)
        chosen = better[_best(better, wanted)]
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
    return Found(best, tuple(bench.tried), noise, taken)


def _noise(
    bench: Workbench, one: Tried, layers: Sequence[Layer], progress: Progress
) -> dict[str, float]:
    """Each compressed layer alone, the largest first, should time not do for all."""
    largest = sorted(layers, key=lambda layer: -layer.bytes)
    names = [layer.name for layer in largest if one.recipe.choice(layer.name) != "float32"]
    return measure_sensitivity(bench, one.recipe, names, progress=progress) if names else {}


def _variants(
    bench: Workbench, static: Tried, layers: Sequence[Layer], progress: Progress
) -> list[Tried]:
    """The static recipe with other settings: those that better it are kept and combined."""
    best = static
    found: list[Tried] = []
    progress.stage("finding ranges and corrections", 4)
    for label, change in (
        ("bias correction", {"bias_correction": True}),
        ("min-max ranges", {"ranges": "min-max"}),
        ("percentile ranges", {"ranges": "percentile"}),
        ("equalized channels", {"equalize": True}),
    ):
        if label == "equalized channels" and not _balances(bench, best):
            continue
        trial = bench.evaluate(replace(best.recipe, **change), f"{static.label}, {label}")
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
            recipe = best.recipe.with_choice(names, "float32")
            found.append(bench.evaluate(recipe, f"{best.label}, {label}"))
        progress.step(label)
    return found


def _balances(bench: Workbench, best: Tried) -> bool:
    """Whether balancing channels is worth another calibration pass: it may gain, and can."""
    if best.noise_db > FAITHFUL_DB:
        return False
    return bench.form(equalized=True) is not bench.form(equalized=False)


def _timed(bench: Workbench, tried: Sequence[Tried], progress: Progress) -> list[Tried]:
    """The same candidates with their latencies; those that failed stay without."""
    runnable = [one for one in tried if not one.failure]
    progress.stage("timing candidates")
    timed = {one.recipe: one for one in bench.rank(runnable)} if runnable else {}
    progress.step()
    return [timed.get(one.recipe, one) for one in tried]


def _option(one: Tried) -> Option:
    latency = one.latency_ratio if one.latency_ratio is not None else float("inf")
    if one.latency_interval_95 is not None:
        shown = one.latency_interval_95[0] > 1.0 and latency > SLOWER
        latency = latency if shown else min(latency, 1.0)
    return Option(one.size_bytes, latency, one.drop, one.noise_db)


def _best(tried: Sequence[Tried], limits: Limits) -> int:
    able = [i for i, one in enumerate(tried) if not one.failure] or list(range(len(tried)))
    return able[choose([_option(tried[i]) for i in able], limits)]


def _most_promising(tried: Sequence[Tried], best: Tried, limits: Limits) -> list[Tried]:
    """Candidates that only their drop rules out, and that would be clearly better than `best`.

    Of several the fastest, and the one with the least drop: that needs the fewest layers back.
    """
    if limits.drop is None:
        return []
    free = replace(limits, drop=None)
    kept = _option(best)
    hopeful = []
    for one in tried:
        option = _option(one)
        allowed = one.metric is not None and violation(option, free) == 0
        faster = option.latency * (1 + TIE_LATENCY) < kept.latency
        smaller = option.size * (1 + TIE_SIZE) < kept.size
        smaller = smaller and option.latency <= kept.latency * (1 + TIE_LATENCY)
        if allowed and option.drop > limits.drop and (faster or smaller or violation(kept, limits)):
            hopeful.append(one)
    if not hopeful:
        return []
    fastest = min(hopeful, key=lambda one: (_option(one).latency, one.drop))
    nearest = min(hopeful, key=lambda one: one.drop)
    return [fastest] if nearest is fastest else [fastest, nearest]


def _take_back(
    bench: Workbench,
    start: Tried,
    layers: Sequence[Layer],
    noise_db: dict[str, float],
    limits: Limits,
    progress: Progress,
) -> list[Tried]:
    """Take the most sensitive layers back until the budget is met, as few as will do.

    Sensitive is what makes much noise for the bytes it saves: layers go back in the order of
    noise power per byte, to 8-bit weights computed in float or, where that is no better,
    to 16-bit floats. The number is found by bisection, since more in float is (nearly
    always) more faithful. A layer whose sensitivity was not measured goes back last.
    """
    sizes = {layer.name: max(layer.bytes, 1) for layer in layers}
    order = [name for name in sizes if start.recipe.choice(name) not in ("float32", "float16")]
    power = {name: 10 ** (-noise_db.get(name, 300.0) / 10) for name in order}
    order.sort(key=lambda name: power[name] / sizes[name], reverse=True)
    progress.stage("taking sensitive layers back", 2 * max(len(order), 1).bit_length())
    found: list[Tried] = []
    for milder in ("weights-int8", "float16"):
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
    return any(choice in choices for _, choice in recipe.layers)
