"""The verdict: the final file against the original, on samples that nothing was chosen with."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from packlight.errors import RuntimeFailure
from packlight.graph.layers import Layer, find_layers, find_unquantizable
from packlight.graph.model import save_model
from packlight.graph.rewrite.factorize import part_names
from packlight.graph.sizes import stored_bytes
from packlight.measure.evidence import (
    Budget,
    LatencyEvidence,
    LayerEvidence,
    MetricEvidence,
    Pair,
    Skipped,
    Verdict,
)
from packlight.measure.latency import measure_latency
from packlight.measure.memory import measure_memory
from packlight.plan.candidates import reason_kept
from packlight.plan.search import Found
from packlight.plan.solve import SLOWER
from packlight.plan.speed import layer_times
from packlight.plan.trials import GIVEN, Workbench
from packlight.plan.tried import Tried
from packlight.progress import SILENT, Progress
from packlight.runtime import cpu_features
from packlight.version import __version__

ROUNDS = 200
"""Interleaved runs of both files for the report's latencies."""


@dataclass(frozen=True)
class Figures:
    """What was measured of the final file against the original."""

    metric: MetricEvidence | None
    latency: LatencyEvidence
    latency_all_threads: LatencyEvidence | None
    memory: Pair | None
    size: Pair
    notes: tuple[str, ...]
    packed_bytes: int | None = None


def measure_figures(
    bench: Workbench,
    path: Path,
    size_bytes: int,
    *,
    indices: Sequence[int],
    progress: Progress = SILENT,
) -> Figures:
    """Quality on `indices`, latency with one and all threads, memory and size of both files."""
    device = bench.device
    notes: list[str] = [device.note] if device.note else []
    feeds = bench.first_feeds()
    progress.stage("proving on samples held back", len(indices))
    metric = None
    if indices:
        metric = bench.quality(
            path,
            indices,
            on_note=notes.append,
            on_batch=lambda rows: progress.step(advance=rows),
        )
    progress.stage("measuring latency and memory", 3)
    source = bench.model.source
    progress.step("one thread", advance=0)
    one = measure_latency(
        source, path, feeds, threads=1, rounds=ROUNDS, seed=bench.seed, engine=device.latency
    )
    progress.step("all threads")
    many = None
    cores = cpu_features().cores
    if cores > 1 and device.most_threads is None:
        many = measure_latency(
            source,
            path,
            feeds,
            threads=cores,
            rounds=ROUNDS,
            seed=bench.seed,
            engine=device.latency,
        )
    progress.step("memory")
    memory = None
    try:
        memory = measure_memory(source, path, feeds, engine=device.engine)
    except RuntimeFailure as error:
        notes.append(f"memory could not be measured: {error}")
    progress.step()
    size = Pair(bench.model.size_bytes, size_bytes)
    return Figures(metric, one, many, memory, size, tuple(notes))


def judge(
    figures: Figures, budget: Budget, *, generated: bool, packed: bool = False
) -> tuple[Verdict, str]:
    """The verdict, and its reason in one sentence.

    packed: the packed file was wished for, and must be smaller than the original.

    met: the budget is kept on the proof samples. best-effort: it is not, or could not be
    measured. not-worth-it: the file is slower, or not smaller, than the original.
    """
    size, latency, metric = figures.size, figures.latency, figures.metric
    download = figures.packed_bytes
    smaller = size.compressed < size.original
    if packed and download is not None:
        smaller = download < size.original
    if not smaller:
        return "not-worth-it", (
            f"the best file found is not smaller ({size.compressed} bytes, the original has "
            f"{size.original}): keep the original"
        )
    if latency.ratio_interval_95[0] > 1.0 and latency.ratio > SLOWER:
        return "not-worth-it", (
            f"the best file found is slower: {latency.ratio:.2f} times the original's time, though "
            f"{size.original / size.compressed:.1f} times smaller"
        )
    unmet = []
    if budget.max_size_bytes is not None and size.compressed > budget.max_size_bytes:
        unmet.append(f"size is {size.compressed} bytes of {budget.max_size_bytes} allowed")
    if budget.max_download_bytes is not None and (download or math.inf) > budget.max_download_bytes:
        unmet.append(f"the packed file has {download} bytes of {budget.max_download_bytes} allowed")
    if budget.max_latency_ms is not None and latency.compressed > budget.max_latency_ms:
        unmet.append(
            f"latency is {latency.compressed:.3g} ms of {budget.max_latency_ms:.3g} allowed"
        )
    if generated or metric is None:
        unmet.insert(0, "accuracy could not be measured: no samples were given")
    elif budget.max_drop is not None and not metric.drop <= budget.max_drop:
        unmet.append(
            f"{metric.name} drops by {metric.drop:.4g} on the proof samples, "
            f"{budget.max_drop:.4g} are allowed"
        )
    if unmet:
        return "best-effort", "; ".join(unmet)
    assert metric is not None
    if budget.max_drop is None:
        return "met", (
            f"the budget is kept; no limit was set for {metric.name}, which went from "
            f"{metric.original:.4g} to {metric.compressed:.4g}"
        )
    if not metric.proven:
        more = metric.samples_needed
        hint = f"; about {more} samples would prove it" if more else ""
        return "met", f"the budget is kept, though {metric.samples} samples do not prove it{hint}"
    return "met", "the budget is kept, proven at 95 % on samples that nothing was chosen with"


def layer_evidence(
    bench: Workbench,
    found: Found,
    layers: Sequence[Layer],
    feeds: Mapping[str, NDArray[Any]],
    notes: Mapping[str, str],
) -> tuple[tuple[LayerEvidence, ...], tuple[Skipped, ...]]:
    """What became of every layer; with those left alone, the accounting adds up."""
    chosen = found.chosen
    # The file's own nodes may have no names to tell them by.
    named = bench.folder / "original.onnx"
    save_model(bench.model.ir, named)
    originals = find_layers(bench.model.ir)
    bytes_before = _bytes_before(originals, layers)
    before = layer_times(named, originals, feeds)
    after = layer_times(chosen.path, layers, feeds)
    evidence, skipped = [], []
    for layer in layers:
        choice = chosen.recipe.choice(layer.name)
        reason = found.taken_back.get(layer.name, notes.get(layer.name, ""))
        if choice == "float32":
            reason = reason or reason_kept(layer, bench.target) or _reason_not_worth(chosen)
            skipped.append(Skipped(layer.name, reason))
        evidence.append(
            LayerEvidence(
                name=layer.name,
                op=layer.op,
                choice=choice,
                error_db=found.noise_db.get(layer.name),
                reason=reason,
                bytes_original=bytes_before[layer.name],
                bytes_compressed=stored_bytes(layer, choice),
                ms_original=before.get(layer.name),
                ms_compressed=after.get(layer.name),
            )
        )
    for other in find_unquantizable(bench.simplified):
        skipped.append(Skipped(other.name, other.reason))
        if "no weights" not in other.reason:
            evidence.append(LayerEvidence(other.name, other.op, "float32", reason=other.reason))
    return tuple(evidence), tuple(skipped)


def _bytes_before(originals: Sequence[Layer], layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes of each layer in the original; of one that was taken apart each part has its share."""
    known = {layer.name: layer.bytes for layer in originals}
    now = {layer.name: layer.bytes for layer in layers}
    found = {name: known.get(name, size) for name, size in now.items()}
    for name, size in known.items():
        first, second = part_names(name)
        if name not in now and {first, second} <= now.keys() - known.keys():
            found[first] = size * now[first] // max(now[first] + now[second], 1)
            found[second] = size - found[first]
    return found


def environment(runtime: str | None) -> dict[str, str]:
    """The machine and the versions that the figures were measured with.

    runtime: its name; None where nothing was run.
    """
    cpu = cpu_features()
    import numpy as np

    return {
        "packlight": __version__,
        **({"runtime": runtime} if runtime else {}),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{cpu.model}, {cpu.cores} cores, "
        + ("with" if cpu.vnni else "without")
        + " VNNI",
    }


def _reason_not_worth(chosen: Tried) -> str:
    if chosen.label == GIVEN:
        return "the recipe leaves it as it is"
    if "float" in chosen.label:
        return "measured: in float it is more faithful, or faster, at next to no bytes"
    return "measured: compressing it was not worth it under the budget"
