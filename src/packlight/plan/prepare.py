"""Opens what the user gave: samples that fit the model, split so that no sample serves twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import PacklightError, RuntimeRefused, UnusableModel, WrongUsage
from packlight.graph.model import Graph, Model, save_model
from packlight.graph.rewrite.simplify import SimplifyStep, simplify
from packlight.graph.tokens import token_limits
from packlight.graph.torch.enter import from_torch, is_torch_module
from packlight.measure.outputs import equal_outputs
from packlight.runtime import Process
from packlight.samples import (
    PREPROCESS_CANDIDATES,
    Samples,
    Split,
    alternative_axes,
    batches_of,
    class_names_of,
    generate_samples,
    open_samples,
    split_samples,
)
from packlight.tensors import TensorSpec

TRIED_FOR_PREPROCESS = 64
MADE_UP = 512
"""Samples that are made up to train with."""

CHECKED = 4
"""Samples on which a simplified graph must give what the original gives."""


@dataclass(frozen=True)
class Prepared:
    """Samples and their split. notes: what was assumed, for the report."""

    samples: Samples
    split: Split
    notes: tuple[str, ...]


def bring_in(source: object, example_inputs: object, folder: Path) -> Path:
    """The ONNX file of what a user calls a model: a path, or a PyTorch module or .pt2 file.

    The latter are exported into `folder`, under their own name, and held to the same outputs.
    Raises WrongUsage for anything else, and for a module without example inputs.
    """
    if isinstance(source, str | Path) and Path(source).suffix != ".pt2":
        return Path(source)
    if isinstance(source, str | Path):
        path = folder / f"{Path(source).stem}.onnx"
    elif is_torch_module(source):
        path = folder / f"{type(source).__name__.lower()}.onnx"
        if example_inputs is None and not type(source).__name__ == "ExportedProgram":
            raise WrongUsage(
                "A PyTorch module needs example_inputs, a tensor or a tuple of what its forward "
                "takes: packlight.compress(module, example_inputs=torch.zeros(1, 3, 224, 224))."
            )
    else:
        raise WrongUsage(
            f"A model is a path to an .onnx or .pt2 file, or a PyTorch module, not a "
            f"{type(source).__name__}."
        )
    return from_torch(source, example_inputs, path).source


def prepare_samples(
    model: Model,
    data: object,
    *,
    preprocess: str | None = None,
    seed: int = 0,
    training: bool = False,
) -> Prepared:
    """Open the user's samples, or make some up where there are none, and check that one runs.

    training: most of them are to train with (see `split_samples`).
    Raises UnusableSamples where they do not fit, UnusableModel where the runtime refuses the
    model on every kind of made-up sample.
    """
    with Process() as process:
        session = process.load(model.source)
        if data is None:
            samples = _generated(model, session.run, seed, MADE_UP if training else 64)
            split = split_samples(samples, seed=seed, training=training)
            return Prepared(samples, split, samples.notes)
        samples = open_samples(data, model.inputs, preprocess=preprocess, seed=seed)
        split = split_samples(samples, seed=seed, training=training)
        notes: tuple[str, ...] = ()
        if preprocess is None and samples.labels is not None and class_names_of(samples):
            chosen, scores = _best_preprocess(model, data, split, session.run, seed)
            if chosen is not None:
                samples = open_samples(data, model.inputs, preprocess=chosen, seed=seed)
                shown = ", ".join(f"{name} {score:.1%}" for name, score in scores.items())
                notes = (
                    f"--preprocess {chosen} was chosen: of the known ways it gave the most right "
                    f"answers on {min(len(split.calibration), TRIED_FOR_PREPROCESS)} samples "
                    f"({shown})",
                )
        run = next(iter(batches_of(samples, split.calibration[:1], model.inputs)))
        session.run(run.feeds)
        return Prepared(samples, split, (*samples.notes, *notes))


def simplify_checked(
    model: Model, samples: Samples, indices: Sequence[int], folder: Path
) -> tuple[Graph, tuple[SimplifyStep, ...]]:
    """Simplify, running every step's result: what changes the outputs is undone."""
    with Process() as process:
        original = process.load(model.source)
        runs = list(batches_of(samples, indices[:CHECKED], model.inputs, batch=CHECKED))
        expected = [original.run(run.feeds) for run in runs]

        def check(candidate: Graph) -> bool:
            path = folder / "simplified.onnx"
            save_model(candidate, path, durable=False)
            session = process.load(path)
            try:
                return all(
                    equal_outputs(wanted, session.run(run.feeds))
                    for wanted, run in zip(expected, runs, strict=True)
                )
            finally:
                session.close()

        return simplify(model.ir, check=check)


def common_inputs(one: Model, other: Model) -> tuple[TensorSpec, ...]:
    """What both models can be fed with: an axis that is open in one is as the other has it.

    Raises WrongUsage where the two are no forms of the same model.
    """
    theirs = {spec.name: spec for spec in other.inputs}
    fitting = {spec.name for spec in one.inputs} == theirs.keys()
    merged = []
    for spec in one.inputs if fitting else ():
        axes = _common_axes(spec.shape, theirs[spec.name].shape)
        if axes is None or spec.dtype != theirs[spec.name].dtype:
            fitting = False
            break
        merged.append(replace(spec, shape=axes))
    if not fitting:
        raise WrongUsage(
            f"{one.source} and {other.source} have different inputs "
            f"({'; '.join(map(str, one.inputs))} against {'; '.join(map(str, other.inputs))}): "
            "compare two forms of the same model."
        )
    names, others = ({spec.name for spec in model.outputs} for model in (one, other))
    if names != others:
        raise WrongUsage(
            f"{one.source} and {other.source} have different outputs ({', '.join(sorted(names))} "
            f"against {', '.join(sorted(others))}): compare two forms of the same model."
        )
    return tuple(merged)


def _common_axes(
    one: Sequence[int | str | None], other: Sequence[int | str | None]
) -> tuple[int | str | None, ...] | None:
    """The tighter of two shapes, axis by axis; None where they exclude each other."""
    if len(one) != len(other):
        return None
    merged: list[int | str | None] = []
    for a, b in zip(one, other, strict=True):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            return None
        merged.append(a if isinstance(a, int) else b if isinstance(b, int) else a)
    return tuple(merged)


def _generated(
    model: Model,
    run: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
    seed: int,
    count: int,
) -> Samples:
    refusal: PacklightError | None = None
    limits = token_limits(model.ir)
    for axes in alternative_axes(model.inputs):
        samples = generate_samples(model.inputs, count=count, seed=seed, axes=axes, limits=limits)
        batch = next(iter(batches_of(samples, (0,), model.inputs)))
        try:
            run(batch.feeds)
        except RuntimeRefused as error:
            refusal = refusal or error
            continue
        return samples
    raise UnusableModel(
        f"{model.source} refused every made-up input ({refusal}): give samples of your own with "
        "--data."
    ) from refusal


def _best_preprocess(
    model: Model,
    data: object,
    split: Split,
    run: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
    seed: int,
) -> tuple[str | None, dict[str, float]]:
    """The preparation of pictures under which the original gives the most right answers."""
    scores: dict[str, float] = {}
    indices = split.calibration[:TRIED_FOR_PREPROCESS]
    for name in PREPROCESS_CANDIDATES:
        samples = open_samples(data, model.inputs, preprocess=name, seed=seed)
        assert samples.labels is not None
        right = 0
        for batch in batches_of(samples, indices, model.inputs):
            outputs = next(iter(run(batch.feeds).values()))
            outputs = batch.trim(outputs)
            if outputs.ndim != 2 or len(outputs) != batch.rows:
                return None, {}
            labels = samples.labels[list(batch.indices)]
            right += int(np.count_nonzero(outputs.argmax(axis=1) == labels))
        scores[name] = right / max(len(indices), 1)
    # Earlier candidates are the more common ones: they win ties.
    best = max(scores, key=lambda name: scores[name])
    return best, scores
