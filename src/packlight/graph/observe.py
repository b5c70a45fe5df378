"""One calibration pass: streaming statistics of activations, by the runtime itself.

Memory grows with one batch's activations and the layers' [in, in] moments, never with
the number of samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.errors import UnusableSamples
from packlight.graph.layers import Layer
from packlight.graph.model import copy_model, save_model
from packlight.graph.patches import rows_reaching
from packlight.maths.histograms import Histogram, add_to_histogram, empty_histogram
from packlight.maths.moments import Moments, add_to_moments, empty_moments
from packlight.progress import SILENT, Progress
from packlight.runtime import Process, cpu_features
from packlight.samples import Samples, batches_of
from packlight.tensors import TensorSpec

BATCH_BYTES = 128 << 20
"""Activations of one run that are held at a time."""

MOMENT_SAMPLES = 128
"""Second moments settle much sooner than ranges: so many samples are enough."""

MOMENT_ROWS = 32768
"""Rows that go into one layer's second moments, all samples together."""

MOMENT_INPUTS = 4608
"""Layers with more inputs get no second moments: [in, in] would not fit the memory."""


@dataclass(frozen=True)
class Observations:
    """What calibration saw.

    histograms: by tensor. moments: by layer, [in, in] in kernel order.
    samples: how many were run.
    """

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    samples: int = 0


def observe(
    model: ir.Model,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    *,
    tensors: Sequence[str],
    layers: Sequence[Layer],
    process: Process,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Observations:
    """Run the samples through the model and gather statistics.

    tensors: names of float tensors of the main graph whose histograms are wanted.
    layers: those whose inputs' second moments are wanted (ungrouped Conv, Gemm, MatMul).
    Raises UnusableSamples where an activation is NaN or infinite.
    """
    layers = [layer for layer in layers if wants_moments(layer)]
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(str(layer.node.inputs[0].name), []).append(layer)  # type: ignore[union-attr]
    wanted = list(dict.fromkeys([*tensors, *readers]))
    fed = {spec.name for spec in inputs} & set(wanted)
    inner = [name for name in wanted if name not in fed]
    histograms = {name: empty_histogram() for name in tensors}
    moments = {layer.name: empty_moments(_inputs(layer)) for layer in layers}
    generator = np.random.default_rng(seed)
    moment_samples = min(len(indices), MOMENT_SAMPLES)
    rows = max(1, MOMENT_ROWS // max(moment_samples, 1))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        path = Path(folder) / "observed.onnx"
        save_model(with_outputs(model, inner), path)
        session = process.load(path, threads=cpu_features().cores)
        progress.stage("calibrating", len(indices))
        first = next(iter(batches_of(samples, indices[:1], inputs)))
        sizes = {k: v.nbytes for k, v in session.run(first.feeds, inner).items()}
        batch = int(np.clip(BATCH_BYTES // max(sum(sizes.values()), 1), 1, 32))
        groups = list(_groups(sizes, BATCH_BYTES))
        seen = 0
        for run in batches_of(samples, indices, inputs, batch=batch):
            for group in [None, *groups]:
                arrays = session.run(run.feeds, group) if group else run.feeds
                for name in group or fed:
                    array = run.trim(arrays[name])
                    if name in histograms:
                        histograms[name] = _add(histograms[name], array, name, run.indices)
                    if seen < moment_samples:
                        for layer in readers.get(name, ()):
                            drawn = rows_reaching(layer, array, rows * run.rows, generator)
                            moments[layer.name] = add_to_moments(moments[layer.name], drawn)
            seen += run.rows
            progress.step(advance=run.rows)
        session.close()
    return Observations(histograms, moments, len(indices))


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model that gives out inner tensors of its main graph, and only those."""
    copy = copy_model(model)
    graph = copy.graph
    values = {output.name: output for node in graph for output in node.outputs}
    graph.outputs.clear()
    for name in names:
        value = values[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    return copy


def wants_moments(layer: Layer) -> bool:
    """Whether second moments are gathered for this layer."""
    return (
        layer.kind in ("Conv", "Gemm", "MatMul")
        and not layer.graph_path
        and layer.groups == 1
        and _inputs(layer) <= MOMENT_INPUTS
    )


def _inputs(layer: Layer) -> int:
    if layer.kind == "Conv":
        return int(np.prod(layer.weight_shape[1:]))
    return layer.weight_shape[1 - layer.out_axis]


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _add(
    histogram: Histogram, array: NDArray[Any], name: str, indices: Sequence[int]
) -> Histogram:
    try:
        return add_to_histogram(histogram, array)
    except ValueError as error:
        raise UnusableSamples(
            f"In calibration, tensor '{name}' of the model came out broken ({error}) for samples "
            f"{indices[0]} to {indices[-1]}: check these samples, or the model's weights."
        ) from error

