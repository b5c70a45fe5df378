"""One calibration pass: streaming statistics of activations, by the runtime itself.

Memory grows with one batch's activations and the layers' [in, in] moments, never with
the number of samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from packlight.graph.walk import constant_of
from packlight.maths.histograms import Histogram, add_to_histogram, empty_histogram
from packlight.maths.moments import Moments, add_to_moments, empty_moments
from packlight.progress import SILENT, Progress
from packlight.runtime import Process, cpu_features
from packlight.samples import Batch, Samples, batches_of
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
    Raises UnusableSamples where there are no samples, or an activation is NaN or infinite.
    """
    if not indices:
        raise UnusableSamples("There are no samples to calibrate with: give at least one.")
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        if wants_moments(layer) and layer.node.inputs[0] is not None:
            readers.setdefault(str(layer.node.inputs[0].name), []).append(layer)
    wanted = list(dict.fromkeys([*tensors, *readers]))
    fed = [name for name in wanted if name in {spec.name for spec in inputs}]
    inner = [name for name in wanted if name not in fed]
    histograms = {name: empty_histogram() for name in tensors}
    moments = {one.name: empty_moments(_inputs(one)) for group in readers.values() for one in group}
    generator = np.random.default_rng(seed)
    moment_samples = min(len(indices), MOMENT_SAMPLES)
    rows = max(1, MOMENT_ROWS // moment_samples)
    seen = 0
    progress.stage("calibrating", len(indices))
    for run, name, array in _activations(model, samples, indices, inputs, fed, inner, process):
        if name is None:
            seen += run.rows
            progress.step(advance=run.rows)
            continue
        try:
            if name in histograms:
                histograms[name] = add_to_histogram(histograms[name], array)
            if seen < moment_samples and name in readers:
                _check_finite(array)
                for layer in readers[name]:
                    drawn = rows_reaching(layer, array, rows * run.rows, generator)
                    moments[layer.name] = add_to_moments(moments[layer.name], drawn)
        except ValueError as error:
            raise UnusableSamples(
                f"In calibration, tensor '{name}' of the model came out broken ({error}) for "
                f"samples {run.indices[0]} to {run.indices[-1]}: check these samples, or the "
                "model's weights."
            ) from error
    return Observations(histograms, moments, len(indices))


def _activations(
    model: ir.Model,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    fed: Sequence[str],
    inner: Sequence[str],
    process: Process,
) -> Iterator[tuple[Batch, str | None, NDArray[Any]]]:
    """Each batch's wanted inputs and inner tensors, then (batch, None, nothing) at its end.

    Where one batch's inner tensors are too large together, they are computed group by group.
    """
    groups: list[list[str]] = []
    batch = 32
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, ExitStack() as stack:
        if inner:
            path = Path(folder) / "observed.onnx"
            save_model(with_outputs(model, inner), path, durable=False)
            session = process.load(path, threads=cpu_features().cores, spinning=False)
            stack.callback(session.close)
            first = next(iter(batches_of(samples, indices[:1], inputs)))
            sizes = {name: a.nbytes for name, a in session.run(first.feeds, inner).items()}
            batch = int(np.clip(BATCH_BYTES // max(sum(sizes.values()), 1), 1, batch))
            groups = list(_groups(sizes, BATCH_BYTES))
        for run in batches_of(samples, indices, inputs, batch=batch):
            for name in fed:
                yield run, name, run.trim(run.feeds[name])
            for group in groups:
                for name, array in session.run(run.feeds, group).items():
                    yield run, name, run.trim(array)
            yield run, None, np.empty(0)


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
    source = layer.node.inputs[0]
    return (
        layer.kind in ("Conv", "Gemm", "MatMul")
        and not layer.graph_path
        and layer.groups == 1
        and _inputs(layer) <= MOMENT_INPUTS
        and source is not None
        and constant_of(source) is None
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


def _check_finite(array: NDArray[Any]) -> None:
    broken = array.size - int(np.count_nonzero(np.isfinite(array)))
    if broken:
        raise ValueError(f"{broken} of {array.size} values are NaN or infinite")
