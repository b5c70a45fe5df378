"""What every candidate of every layer costs: loss of fidelity, bytes and milliseconds.

The loss is noise power at the model's worst output, as a share of the output's own power, with
the layer alone compressed. Measuring that for every candidate would take too long. A layer's
rounding error e = tr((W - V) H (W - V)^T) reaches the output times a gain g that is the same
for all roundings (second order: small errors add up, and g is the output's sensitivity), and
8-bit activations add a share a of their own:

    loss = a [activations in integers] + g e

Two measurements a layer give g and a: one with its choice in the base recipe, one with few bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packlight.graph.apply import why_not
from packlight.graph.layers import Layer
from packlight.graph.sizes import stored_bytes
from packlight.graph.solutions import Solution, find_solutions
from packlight.plan.goal import runs_on
from packlight.plan.knapsack import Border, Cost
from packlight.plan.sensitivity import SAMPLES
from packlight.plan.speed import border_times, layer_times
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe, parse_choice

SECONDS = 90.0
"""Layers are measured alone for so long; those that time leaves out get the median gain."""

_PROBE_BITS = 3.5
"""A probe with about so many bits makes more noise than activations do, and no ruin."""

_FLOOR = 1e-12
"""Noise power below which nothing is measured: 120 dB."""


@dataclass(frozen=True)
class Table:
    """Candidates by layer: words, what they cost, and which compute in integers.

    names: the layers. costs, integer: like words, a number for each of a layer's candidates.
    borders: where converting between integers and floats takes time.
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    costs: tuple[tuple[Cost, ...], ...]
    integer: tuple[tuple[bool, ...], ...]
    borders: tuple[Border, ...] = ()

    def recipe(self, base: Recipe, choices: Sequence[int]) -> Recipe:
        """The base recipe with the candidates of those numbers."""
        chosen = {
            name: words[number]
            for name, words, number in zip(self.names, self.words, choices, strict=True)
        }
        layers = tuple((name, chosen.get(name, word)) for name, word in base.layers)
        return replace(base, layers=layers)


def build_table(
    bench: Workbench,
    base: Tried,
    layers: Sequence[Layer],
    words: Sequence[str],
    *,
    packed: bool,
    pins: Sequence[tuple[str, str]] = (),
    examples: Sequence[Tried] = (),
    progress: Progress = SILENT,
) -> Table:
    """Measure and estimate what the candidates `words` cost on each layer of a base recipe.

    packed: bytes are those of an entropy-coded file, not of the file as it is. pins: layers that
    keep the base's choice. examples: whole recipes whose files show how long layers take in
    other ways than the base's.
    """
    pinned = dict(pins)
    able = {}
    for layer in layers:
        own = base.recipe.choice(layer.name)
        wanted = (own,) if layer.name in pinned else tuple(dict.fromkeys((own, *words)))
        able[layer.name] = tuple(
            word
            for word in wanted
            if word == own or (runs_on(layer, word, bench.target) and not why_not(layer, word))
        )
    form = bench.forms.of(replace(base.recipe, sequential=False), bench.process)
    progress.stage("rounding every candidate", 1)
    solutions = find_solutions(form.graph, able, base.recipe, form.observations, form.weights)
    progress.step()
    losses = _losses(bench, base, layers, able, solutions, progress)
    times = _times(bench, base, layers, examples)
    names = tuple(layer.name for layer in layers)
    costs = tuple(
        tuple(
            Cost(
                losses[layer.name, word],
                solutions[layer.name, word].bits / 8 if packed else stored_bytes(layer, word),
                times.get((layer.name, _way(word)), 0.0),
            )
            for word in able[layer.name]
        )
        for layer in layers
    )
    integer = tuple(tuple(_way(word) == "static" for word in able[name]) for name in names)
    borders = border_times(layers, base.path, bench.first_feeds(), form.observations)
    return Table(names, tuple(able[name] for name in names), costs, integer, borders)


def _losses(
    bench: Workbench,
    base: Tried,
    layers: Sequence[Layer],
    able: Mapping[str, Sequence[str]],
    solutions: Mapping[tuple[str, str], Solution],
    progress: Progress,
) -> dict[tuple[str, str], float]:
    """Noise power at the output of each (layer, choice), alone."""
    probes = {name: _probe(words, base.recipe.choice(name)) for name, words in able.items()}
    largest = sorted(layers, key=lambda layer: -layer.bytes)
    noise: dict[tuple[str, str], float] = {}
    indices = bench.search_indices()[:SAMPLES]
    wanted = [
        (layer.name, word)
        for layer in largest
        for word in dict.fromkeys((base.recipe.choice(layer.name), probes[layer.name]))
        if word != "float32"
    ]
    progress.stage("measuring each layer alone", len(wanted))
    begun = time.monotonic()
    for start in range(0, len(wanted), 8):
        if time.monotonic() - begun > SECONDS:
            break
        some = wanted[start : start + 8]
        trials = [
            (replace(base.recipe, layers=((name, word),), sequential=False), f"{name} alone")
            for name, word in some
        ]
        for pair, tried in zip(
            some, bench.evaluate_many(trials, indices=indices, progress=progress), strict=True
        ):
            if tried.metric is not None and tried.metric.noise_db is not None:
                noise[pair] = max(10 ** (-tried.metric.noise_db / 10), _FLOOR)
            elif tried.metric is not None:
                noise[pair] = _FLOOR
    fitted = {
        name: _fit(name, base.recipe.choice(name), probes[name], noise, solutions) for name in able
    }
    gains = sorted(gain for found in fitted.values() if found and (gain := found[0]) > 0)
    shares = sorted(own for found in fitted.values() if found and (own := found[1]) > 0)
    usual = gains[len(gains) // 2] if gains else 1.0
    usual_own = shares[len(shares) // 2] if shares else 0.0
    losses = {}
    for name, words in able.items():
        gain, own = fitted[name] or (usual, usual_own)
        for word in words:
            known = noise.get((name, word))
            estimate = gain * solutions[name, word].error
            estimate += own if parse_choice(word).activation_bits < 32 else 0.0
            losses[name, word] = 0.0 if word == "float32" else known or max(estimate, _FLOOR)
    return losses


def _probe(words: Sequence[str], base: str) -> str:
    """The candidate that tells most of a layer's gain besides its choice in the base."""
    few = [word for word in words if parse_choice(word).bits < 7]
    if not few:
        return base
    return min(few, key=lambda word: abs(parse_choice(word).bits - _PROBE_BITS))


def _fit(
    name: str,
    base: str,
    probe: str,
    noise: Mapping[tuple[str, str], float],
    solutions: Mapping[tuple[str, str], Solution],
) -> tuple[float, float] | None:
    """Gain g and activation noise a of a layer, from its two measurements; None without any."""
    points = []
    for word in dict.fromkeys((base, probe)):
        if (name, word) in noise and solutions[name, word].error > 0:
            static = parse_choice(word).activation_bits < 32
            points.append((noise[name, word], solutions[name, word].error, static))
    if not points:
        return None
    if len(points) == 1:
        power, error, _ = points[0]
        return power / error, 0.0
    (low, small, first), (high, large, second) = points
    if first == second and large > small:
        gain = max(high - low, 0.0) / (large - small) or high / large
    elif second and not first and low > 100 * _FLOOR:
        return low / small, max(high - low / small * large, 0.0)
    else:
        gain = high / large
    return gain, max(low - gain * small, 0.0) if first else 0.0


def _times(
    bench: Workbench, base: Tried, layers: Sequence[Layer], examples: Sequence[Tried]
) -> dict[tuple[str, str], float]:
    """Milliseconds of (layer, way of computing it), by the runtime's profile of whole files."""
    feeds = bench.first_feeds()
    found: dict[tuple[str, str], float] = {}
    for one in (base, *examples):
        if one.failure:
            continue
        times = layer_times(one.path, layers, feeds)
        for layer in layers:
            key = (layer.name, _way(one.recipe.choice(layer.name)))
            if layer.name in times:
                found.setdefault(key, times[layer.name])
    for layer in layers:
        own = [found[layer.name, way] for way in _WAYS if (layer.name, way) in found]
        for way in _WAYS:
            # What no file shows is taken to be as slow as the slowest that one does.
            found.setdefault((layer.name, way), max(own, default=0.0))
    return found


_WAYS = ("float", "static", "dynamic", "blocks")


def _way(word: str) -> str:
    choice = parse_choice(word)
    return "float" if choice.activation_bits == 4 else choice.compute


def decibels(power: float) -> float:
    """Signal-to-noise ratio of a noise power."""
    return -10 * math.log10(max(power, _FLOOR))
