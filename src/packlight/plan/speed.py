"""Which layers are slower in integers than in float, by the runtime's own profile.

Conversions at the borders of an integer region cost time too, which no layer's own time
shows. So whole stretches are offered, from the model's start and from its end, and the
planner times the whole files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.errors import RuntimeFailure
from packlight.graph.layers import Layer
from packlight.graph.observe import Observations
from packlight.plan.exchange import Border
from packlight.runtime import OperatorTime, profile_operators

FUSED = 3
"""Nodes after a layer that runtimes fuse with it: BatchNorm, Add, an activation."""

Feeds = Mapping[str, NDArray[Any]]


def layer_times(path: Path, layers: Sequence[Layer], feeds: Feeds) -> dict[str, float]:
    """Milliseconds of each layer's node in a run of the file, as the runtime fused it.

    Runtimes rename what they fuse: onnxruntime calls a float convolution after its output
    tensor, and adds a number to an integer one's name. What is not found is missing.
    """
    try:
        times = profile_operators(path, feeds, level="all")
    except RuntimeFailure:
        return {}
    found: dict[str, float] = {}
    by_name = {_plain(time): time.ms for time in times}
    for layer in layers:
        names = (layer.name, f"{layer.name}_dynamic", f"{layer.name}_blocks", *_results(layer))
        known = [by_name[name] for name in names if name in by_name]
        if known:
            found[layer.name] = known[0]
    return found


def border_times(
    layers: Sequence[Layer], path: Path, feeds: Feeds, observations: Observations
) -> tuple[Border, ...]:
    """What converting costs between two layers in a row of which one computes in integers.

    path: a file with quantized layers; the runtime's profile of it tells how long the
    conversions of an element take. Layers follow each other where one reads, perhaps through
    an activation, what the other gives.
    """
    try:
        times = profile_operators(path, feeds, level="all")
    except RuntimeFailure:
        return ()
    sizes = {
        name: histogram.count / max(observations.samples, 1)
        for name, histogram in observations.histograms.items()
    }
    spent = elements = 0.0
    for one in times:
        for ending in ("_q", "_dq"):
            tensor = one.name.removesuffix(ending)
            if one.op in ("QuantizeLinear", "DequantizeLinear") and tensor in sizes:
                spent, elements = spent + one.ms, elements + sizes[tensor]
    if not elements:
        return ()
    sources = [layer.node.inputs[0] for layer in layers]
    known = ["" if source is None else str(source.name) for source in sources]
    makers = {name: i for i, layer in enumerate(layers) for name in _results(layer)}
    return tuple(
        Border(makers[name], i, 2 * spent / elements * sizes[name])
        for i, name in enumerate(known)
        if name in makers and name in sizes and makers[name] != i
    )


def slow_in_integers(
    names: Sequence[str], float_ms: Mapping[str, float], integer_ms: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """Sets of layers, labelled, that should be tried in float.

    names: of the integer layers, in graph order. A stretch from an end is as long as adds up
    to the largest gain; a layer of unknown time counts as equal.
    """
    gains = [
        integer_ms[name] - float_ms[name] if name in integer_ms and name in float_ms else 0.0
        for name in names
    ]
    options: dict[str, tuple[str, ...]] = {}
    head = _longest(gains)
    tail = _longest(gains[::-1])
    slower = tuple(name for name, gain in zip(names, gains, strict=True) if gain > 0)
    if head > 1:
        options[f"first {head} layers float"] = tuple(names[:head])
    if tail > 1:
        options[f"last {tail} layers float"] = tuple(names[len(names) - tail :])
    if head and tail and head + tail < len(names):
        ends = (*names[:head], *names[len(names) - tail :])
        options[f"first {head} and last {tail} layers float"] = ends
    if slower:
        options["layers that are slower in integers float"] = slower
    return {label: kept for label, kept in options.items() if 0 < len(kept) < len(names)}


def _results(layer: Layer) -> list[str]:
    """The layer's output, and those of the next nodes that a runtime may have fused with it."""
    value = layer.node.outputs[0]
    names = [str(value.name)]
    for _ in range(FUSED):
        readers = value.consumers()
        if len(readers) != 1 or len(readers[0].outputs) != 1:
            break
        value = readers[0].outputs[0]
        names.append(str(value.name))
    return names


def _longest(gains: Sequence[float]) -> int:
    """How many from the start add up to the largest gain; 0 where none gains."""
    sums = list(accumulate(gains))
    best = max(sums, default=0.0)
    return sums.index(best) + 1 if best > 0 else 0


def _plain(time: OperatorTime) -> str:
    """A node's name without what the runtime added to it."""
    name = time.name.removeprefix("fused ").removesuffix("_nchwc").removesuffix("_quant")
    stem, _, number = name.rpartition("_token_")
    return stem if stem and number.isdigit() else name
