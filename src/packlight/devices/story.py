"""Writes the chosen model for the target's own runtime, and measures that file in it.

The search measures files of onnxruntime; what is written here is made of the one that it chose,
so the layers are as the planner chose them, and it is held to the original on the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from packlight.devices.table import FORMATS, Format
from packlight.errors import RuntimeFailure
from packlight.graph.model import save_model
from packlight.measure.energy import measure_energy
from packlight.measure.evidence import EXIT_STATUS, DeviceFile, Evidence, Pair, Verdict
from packlight.measure.latency import measure_latency
from packlight.measure.size import size_of_files
from packlight.plan.answer import Answer, Question
from packlight.plan.judge import ROUNDS, Figures, judge
from packlight.progress import Progress
from packlight.runtime import Engine, convert_file, measure_peak_memory, runtime_name
from packlight.samples import BATCH

SAME_FILE = "the original written in the same way could not be timed"


def write_for_device(
    question: Question,
    answer: Answer,
    figures: Figures,
    indices: Sequence[int],
    folder: Path,
    progress: Progress,
) -> tuple[DeviceFile | None, tuple[Path, ...]]:
    """The chosen model in the format of the target's runtime, and its files in `folder`.

    figures: of model.onnx. indices: samples that nothing was chosen with. (None, ()) where the
    target has no format of its own; where the file cannot be written, that is said.
    """
    form = FORMATS.get(answer.bench.target.name)
    if form is None:
        return None, ()
    # Where model.onnx runs too, it is judged alone; elsewhere nothing runs without this file.
    unproven: Verdict | Literal[""] = "" if form.reads_onnx else "best-effort"
    missing = form.missing
    if missing:
        reason = _not_installed(form, missing)
        return DeviceFile(form.title, verdict=unproven, reason=reason), ()
    progress.stage(f"writing {form.title}")
    shapes = {name: array.shape for name, array in answer.bench.first_feeds().items()}
    try:
        paths = _write(form, answer.chosen.path, folder, shapes)
    except RuntimeFailure as error:
        reason = f"it could not be written, so model.onnx is what there is: {error}"
        return DeviceFile(form.title, verdict=unproven, reason=reason), ()
    names = tuple(path.name for path in paths)
    device = DeviceFile(form.title, names, size_of_files(paths))
    if form.engine is None:
        return replace(device, reason=f"not measured here: {form.elsewhere}"), paths
    progress.stage(f"measuring {form.title}", len(indices))
    try:
        device = _measured(device, form, form.engine, question, answer, paths[0], indices, progress)
    except RuntimeFailure as error:
        reason = f"it could not be measured: {error}"
        return replace(device, verdict=unproven, reason=reason), paths
    own = replace(
        figures,
        metric=device.metric,
        latency=device.latency_ms or figures.latency,
        size=Pair(figures.size.original, device.size_bytes),
    )
    verdict, reason = judge(own, answer.budget, generated=question.prepared.samples.generated)
    if device.latency_ms is None:
        reason = f"{reason}; {SAME_FILE}"
    return replace(device, verdict=verdict, reason=reason), paths


def with_device_file(evidence: Evidence, device: DeviceFile | None) -> Evidence:
    """The evidence with the device's file: where only that one runs there, it is judged too."""
    if device is None:
        return evidence
    evidence = replace(evidence, device_file=device)
    form = FORMATS[evidence.target]
    if form.reads_onnx or not device.verdict or not _worse(device.verdict, evidence.verdict):
        return evidence
    of = device.files[0] if device.files else device.title
    return replace(evidence, verdict=device.verdict, reason=f"{of}: {device.reason}")


def _worse(one: Verdict, other: Verdict) -> bool:
    return EXIT_STATUS[one] > EXIT_STATUS[other]


def _write(
    form: Format, source: Path, folder: Path, shapes: dict[str, tuple[int, ...]]
) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / name for name in form.files)
    convert_file(form.module, source, paths[0], shapes)
    return tuple(path for path in paths if path.is_file())


def _measured(
    device: DeviceFile,
    form: Format,
    engine: Engine,
    question: Question,
    answer: Answer,
    path: Path,
    indices: Sequence[int],
    progress: Progress,
) -> DeviceFile:
    """The device's file with what was measured of it in its own runtime."""
    bench, feeds = answer.bench, answer.bench.first_feeds()
    metric = None
    if indices and not question.prepared.samples.generated:
        metric = bench.quality(
            path,
            indices,
            engine=engine,
            batch=1 if form.one_shape else BATCH,
            on_batch=lambda rows: progress.step(advance=rows),
        )
    original = bench.folder / "device"
    source = original / "model.onnx"
    original.mkdir()
    save_model(question.simplified, source, durable=False)
    shapes = {name: array.shape for name, array in feeds.items()}
    try:
        written = _write(form, source, original, shapes)[0]
        latency = measure_latency(
            written, path, feeds, threads=1, rounds=ROUNDS, seed=bench.seed, engine=engine
        )
    except RuntimeFailure:
        latency = None
    return replace(
        device,
        runtime=runtime_name(engine),
        metric=metric,
        latency_ms=latency,
        peak_memory_bytes=measure_peak_memory(path, feeds, engine=engine),
        energy_mj=measure_energy(path, feeds, engine=engine),
    )


def _not_installed(form: Format, missing: Sequence[str]) -> str:
    return (
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here, so "
        f'only model.onnx was written: run `pip install "packlight[{form.extra}]"`'
    )
