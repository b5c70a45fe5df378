"""Solve, apply, measure, correct: whole recipes first, then layer by layer under the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from packlight.graph.layers import Layer
from packlight.plan.candidates import whole_recipes
from packlight.plan.sensitivity import measure_sensitivity
from packlight.plan.solve import Limits, Option, choose, violation
from packlight.plan.trials import Tried, Workbench
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe

SAFETY = 0.8
"""Share of the allowed drop that the search samples may show: the proof has others."""

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
    """Find the fastest, then smallest, then most faithful recipe that keeps to the limits.

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
    noise: dict[str, float] = {}
    compressed = [layer for layer in layers if best.recipe.choice(layer.name) != "float32"]
    compressed.sort(key=lambda layer: -layer.bytes)
    if compressed:
        names = [layer.name for layer in compressed]
        noise = measure_sensitivity(bench, best.recipe, names, progress=progress)
    taken: dict[str, str] = {}
    if wanted.drop is not None:
        fast = _most_promising(tried, wanted)
        if fast is not None and fast is not best:
            names = [layer.name for layer in layers if fast.recipe.choice(layer.name) != "float32"]
            missing = [name for name in names if name not in noise or fast is not best]
            alone = measure_sensitivity(bench, fast.recipe, missing, progress=progress)
            rescued, taken = _take_back(bench, fast, layers, alone, wanted, progress)
            tried += _timed(bench, rescued, progress)
            better = tried[_best(tried, wanted)]
            if better.recipe == best.recipe:
                taken = {}
            else:
                best, noise = better, alone
    return Found(best, tuple(bench.tried), noise, taken)


def _variants(
    bench: Workbench, static: Tried, layers: Sequence[Layer], progress: Progress
) -> list[Tried]:
    """The static recipe with other settings: those that better it are kept and combined."""
    best = static
    found: list[Tried] = []
    progress.stage("finding ranges and corrections", 3)
    for label, change in (
        ("bias correction", {"bias_correction": True}),
        ("min-max ranges", {"ranges": "min-max"}),
        ("percentile ranges", {"ranges": "percentile"}),
    ):
        trial = bench.evaluate(replace(best.recipe, **change), f"{static.label}, {label}")  # type: ignore[arg-type]
        progress.step(label)
        if trial.noise_db > best.noise_db:
            best = trial
    if best is not static:
        found.append(best)
    ends = [layer.name for layer in layers if best.recipe.choice(layer.name) in INTEGER]
    depthwise = [
        layer.name
        for layer in layers
        if layer.groups > 1 and best.recipe.choice(layer.name) in INTEGER
    ]
    options = {
        "first layer float": ends[:1],
        "first and last layer float": [*ends[:1], *ends[-1:]],
        "depthwise float": depthwise,
    }
    progress.stage("trying layers in float", len(options))
    for label, names in options.items():
        if names and len(names) < len(ends):
            recipe = best.recipe.with_choice(names, "float32")
            found.append(bench.evaluate(recipe, f"{best.label}, {label}"))
        progress.step(label)
    return found


def _timed(bench: Workbench, tried: Sequence[Tried], progress: Progress) -> list[Tried]:
    """The same candidates with their latencies; those that failed stay without."""
    runnable = [one for one in tried if not one.failure]
    progress.stage("timing candidates")
    timed = {one.recipe: one for one in bench.rank(runnable)} if runnable else {}
    progress.step()
    return [timed.get(one.recipe, one) for one in tried]


def _option(one: Tried) -> Option:
    latency = one.latency_ratio if one.latency_ratio is not None else float("inf")
    if one.latency_interval_95 is not None and one.latency_interval_95[0] <= 1.0 <= latency:
        latency = 1.0  # not shown to be slower
    return Option(one.size_bytes, latency, one.drop, one.noise_db)


def _best(tried: Sequence[Tried], limits: Limits) -> int:
    return choose([_option(one) for one in tried], limits)


def _most_promising(tried: Sequence[Tried], limits: Limits) -> Tried | None:
    """The best candidate if accuracy were free, where it is better than what keeps to it."""
    free = replace(limits, drop=None)
    runnable = [one for one in tried if not one.failure and one.metric is not None]
    if not runnable:
        return None
    promising = runnable[_best(runnable, free)]
    return promising if violation(_option(promising), limits) > 0 else None


def _take_back(
    bench: Workbench,
    start: Tried,
    layers: Sequence[Layer],
    noise_db: dict[str, float],
    limits: Limits,
    progress: Progress,
) -> tuple[list[Tried], dict[str, str]]:
    """Take the most sensitive layers back until the budget is met, as few as will do.

    Sensitive is what makes much noise for the bytes it saves: layers go back in the order of
    noise power per byte. The number is found by bisection, since more in float is (nearly
    always) more faithful.
    """
    sizes = {layer.name: max(layer.bytes, 1) for layer in layers}
    power = {name: 10 ** (-db / 10) for name, db in noise_db.items()}
    order = sorted(power, key=lambda name: power[name] / sizes[name], reverse=True)
    progress.stage("taking sensitive layers back", max(len(order), 1).bit_length())
    found: list[Tried] = []
    good: tuple[int, Tried] | None = None
    low, high = 1, len(order)
    while low <= high:
        middle = (low + high) // 2
        recipe = _back(start.recipe, order[:middle])
        trial = bench.evaluate(recipe, f"{start.label}, {middle} layers taken back")
        found.append(trial)
        progress.step(trial.label)
        if violation(replace(_option(trial), latency=0, size=0), limits) == 0:
            good, high = (middle, trial), middle - 1
        else:
            low = middle + 1
    if good is None:
        return found, {}
    reasons = {
        name: f"sensitive: alone it leaves {noise_db[name]:.1f} dB at the output"
        for name in order[: good[0]]
    }
    return found, reasons


def _back(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """Integer layers go back to 8-bit weights computed in float, weight-only ones to float32."""
    changed = recipe
    for name in names:
        choice = recipe.choice(name)
        milder = "weights-int8" if choice not in ("weights-int8", "float16") else "float32"
        changed = changed.with_choice([name], milder)
    return changed


def _uses(recipe: Recipe, choices: Sequence[str]) -> bool:
    return any(choice in choices for _, choice in recipe.layers)
