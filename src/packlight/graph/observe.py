"""One calibration pass: streaming statistics of activations, by the runtime itself.

Memory grows with one batch's activations and the layers' [in, in] moments, never with
the number of samples. Moments beyond `MOMENT_BYTES` are gathered in several passes and
kept in files, mapped into memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from packlight.errors import UnusableSamples
from packlight.graph.layers import Layer
from packlight.graph.model import copy_model, save_model
from packlight.graph.patches import rows_reaching
from packlight.graph.rewrite.quiet import quiet
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
"""Second moments settle much sooner than ranges: so many samples are enough where each gives
many rows. Where it gives few, as to dense layers, more are taken: see `ROWS_AN_INPUT`."""

ROWS_AN_INPUT = 16
"""With fewer rows for each input, second moments are still mostly chance."""

MOMENT_ROWS = 32768
"""Rows that go into one layer's second moments, all samples together."""

MOMENT_INPUTS = 4608
"""Layers with more inputs get no second moments: [in, in] would not fit the memory.
Those with groups get them where they take no more than that."""

MOMENT_BYTES = 1 << 30
"""Second moments that are gathered in one pass; the others wait for the next one."""


@dataclass(frozen=True)
class Observations:
    """What calibration saw.

    histograms: by tensor. moments: by layer, [in, in] in kernel order ([groups, in, in] for a
    Conv with groups).
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
    folder: Path | None = None,
    moment_bytes: int = MOMENT_BYTES,
    progress: Progress = SILENT,
) -> Observations:
    """Run the samples through the model and gather statistics.

    tensors: names of float tensors of the main graph whose histograms are wanted.
    layers: those whose inputs' second moments are wanted (Conv, Gemm, MatMul).
    folder: where moments lie that do not fit `moment_bytes` together; it must outlive them.
    Without it they are all held in memory.
    Raises UnusableSamples where there are no samples, or an activation is NaN or infinite.
    """
    if not indices:
        raise UnusableSamples("There are no samples to calibrate with: give at least one.")
    groups = list(_moment_groups([one for one in layers if wants_moments(one)], moment_bytes))
    histograms: Mapping[str, Histogram] = {}
    moments: dict[str, Moments] = {}
    for number, group in enumerate(groups or [[]]):
        # Ranges need all samples, but one pass; the other passes gather moments only.
        first = number == 0
        found = _observe_once(
            model,
            samples,
            indices,
            inputs,
            tensors if first else (),
            group,
            process=process,
            seed=seed,
            progress=progress,
        )
        histograms = found.histograms if first else histograms
        held = dict(found.moments)
        if folder is not None and len(groups) > 1:
            held = {name: _mapped(one, folder) for name, one in held.items()}
        moments |= held
    return Observations(histograms, moments, len(indices))


def _observe_once(
    model: ir.Model,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    tensors: Sequence[str],
    layers: Sequence[Layer],
    *,
    process: Process,
    seed: int,
    progress: Progress,
) -> Observations:
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(_source(layer), []).append(layer)
    wanted = list(dict.fromkeys([*tensors, *readers]))
    fed = [name for name in wanted if name in {spec.name for spec in inputs}]
    inner = [name for name in wanted if name not in fed]
    histograms = {name: empty_histogram() for name in tensors}
    moments = {
        layer.name: empty_moments(
            count_inputs(layer), groups=layer.groups if layer.groups > 1 else None
        )
        for layer in layers
    }
    moment_samples = min(len(indices), MOMENT_SAMPLES)
    rows = max(1, MOMENT_ROWS // moment_samples)
    seen = 0

    def lacks_rows(layer: Layer) -> bool:
        return moments[layer.name].count < ROWS_AN_INPUT * count_inputs(layer)

    progress.stage("calibrating", len(indices))
    for run, name, array in _activations(model, samples, indices, inputs, fed, inner, process):
        if name is None:
            seen += run.rows
            progress.step(advance=run.rows)
            if not tensors and seen >= moment_samples and not any(map(lacks_rows, layers)):
                break
            continue
        try:
            if name in histograms:
                histograms[name] = add_to_histogram(histograms[name], array)
            wanting = [
                layer
                for layer in readers.get(name, ())
                if seen < moment_samples or lacks_rows(layer)
            ]
            if wanting:
                _check_finite(array)
                for layer in wanting:
                    # By run, so that the rows do not depend on what else is observed with it.
                    generator = np.random.default_rng((seed, seen))
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
            batch = batch_within(sum(sizes.values()))
            groups = list(_groups(sizes, BATCH_BYTES))
        for run in batches_of(samples, indices, inputs, batch=batch):
            for name in fed:
                yield run, name, run.trim(run.feeds[name])
            for group in groups:
                for name, array in session.run(run.feeds, group).items():
                    yield run, name, run.trim(array)
            yield run, None, np.empty(0)


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model that gives out inner tensors of its main graph, and only those.

    What they do not need is left out: the runtime would compute it all the same.
    """
    copy = copy_model(model)
    graph = copy.graph
    values = {output.name: output for node in graph for output in node.outputs}
    graph.outputs.clear()
    for name in names:
        value = values[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    with quiet():
        passes.RemoveUnusedNodesPass()(copy)
    return copy


def split_stages(layers: Sequence[Layer], stages: int) -> Iterator[list[Layer]]:
    """Layers in order, in at most so many stages of nearly equal numbers."""
    count = min(stages, len(layers))
    for number in range(count):
        start, stop = (len(layers) * (number + k) // count for k in (0, 1))
        yield list(layers[start:stop])


def wants_moments(layer: Layer) -> bool:
    """Whether second moments are gathered for this layer."""
    source = layer.node.inputs[0]
    return (
        layer.kind in ("Conv", "Gemm", "MatMul")
        and not layer.graph_path
        and layer.groups * count_inputs(layer) ** 2 <= MOMENT_INPUTS**2
        and source is not None
        and constant_of(source) is None
    )


def batch_within(size_bytes: int) -> int:
    """Samples that are run at a time where one has so many bytes of activations: 1 to 32."""
    return int(np.clip(BATCH_BYTES // max(size_bytes, 1), 1, 32))


def count_inputs(layer: Layer) -> int:
    """Columns of the weight matrix of a Conv (inputs of one group), Gemm or MatMul."""
    if layer.kind == "Conv":
        return int(np.prod(layer.weight_shape[1:]))
    return layer.weight_shape[1 - layer.out_axis]


def _source(layer: Layer) -> str:
    source = layer.node.inputs[0]
    assert source is not None
    return str(source.name)


def _moment_groups(layers: Sequence[Layer], limit: int) -> Iterator[list[Layer]]:
    """Layers whose second moments fit `limit` bytes together, in order."""
    group: list[Layer] = []
    total = 0
    for layer in layers:
        size = 8 * layer.groups * count_inputs(layer) ** 2
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(layer)
        total += size
    if group:
        yield group


def _mapped(moments: Moments, folder: Path) -> Moments:
    """The same moments with their products in a file, read when they are used."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npy", delete=False) as file:
        np.save(file, moments.products)
    return replace(moments, products=np.load(file.name, mmap_mode="r"))


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
