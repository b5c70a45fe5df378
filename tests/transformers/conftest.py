"""Each model is exported once, and simplified once: what every test here begins with."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import transformer_zoo

from packlight.graph.model import Graph, Model, load_model
from packlight.graph.rewrite.simplify import SimplifyStep
from packlight.plan.prepare import prepare_samples, simplify_checked
from packlight.runtime import Process
from packlight.samples import Samples, Split

SAMPLES = 64

TRACED = frozenset({"whisper_past", "marian_encoder", "marian_decoder"})
"""Exported by tracing, as most files out there were: torch.export takes much longer."""


@dataclass(frozen=True)
class Subject:
    """A model as a user has it, its samples, and what simplifying made of it."""

    name: str
    model: Model
    samples: Samples
    split: Split
    graph: Graph
    steps: tuple[SimplifyStep, ...]


@pytest.fixture(scope="session")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`exported(name)`: the file of a model; `dynamo=False` for the exporter that traces.

    Exporting takes seconds a model: files are kept between runs in pytest's cache.
    """
    versions = []
    for package in ("torch", "transformers"):
        try:
            versions.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: pip install packlight[models]")
    source = Path(transformer_zoo.__file__).read_bytes()
    digest = hashlib.sha256(source + " ".join(versions).encode()).hexdigest()[:16]
    store = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("zoo") if store is None else store.mkdir(f"zoo-{digest}")

    def find(name: str, *, dynamo: bool | None = None) -> Path:
        dynamo = name not in TRACED if dynamo is None else dynamo
        path = Path(folder) / f"{name}{'' if dynamo else '-traced'}.onnx"
        if not path.exists():
            # Another run may write the same at this moment: it appears whole.
            part = tmp_path_factory.mktemp("export") / path.name
            transformer_zoo.export(name, part, dynamo=dynamo)
            whole = path.with_suffix(f".{os.getpid()}.part")
            whole.write_bytes(part.read_bytes())
            whole.replace(path)
        return path

    return find


@pytest.fixture(scope="session")
def subject(exported: Callable[..., Path]) -> Callable[..., Subject]:
    """`subject(name)`: a model with samples, simplified; made once a session."""

    @cache
    def make(name: str, dynamo: bool | None = None) -> Subject:
        model = load_model(exported(name, dynamo=dynamo))
        samples = transformer_zoo.samples(name, SAMPLES)
        prepared = prepare_samples(model, samples)
        with tempfile.TemporaryDirectory() as folder:
            graph, steps = simplify_checked(
                model, prepared.samples, prepared.split.calibration, Path(folder)
            )
        return Subject(name, model, prepared.samples, prepared.split, graph, steps)

    return make


@pytest.fixture(scope="session")
def process() -> Iterator[Process]:
    with Process() as one:
        yield one
