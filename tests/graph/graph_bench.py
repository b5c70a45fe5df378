"""A bench that builds small models, compresses them and runs them in the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.apply import apply_recipe, why_not
from packlight.graph.layers import find_layers
from packlight.graph.model import Model, load_model, save_model
from packlight.graph.observe import Observations, observe
from packlight.graph.rewrite.blocks import BlockForm
from packlight.graph.rewrite.quantize import tensors_to_observe
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import open_samples

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session")
def process() -> Iterator[Process]:
    """One runtime for all tests of a session."""
    with Process() as one:
        yield one


@pytest.fixture
def bench(tmp_path: Path, process: Process) -> Bench:
    """A bench in a folder of the test's own."""
    return Bench(tmp_path, process)


def build_model(path: Path, text: str, weights: Arrays, *, opset: int = 17) -> Model:
    """A model from its text, written to `path`; its weights are float32 where they are float64."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    proto = onnx.parser.parse_model(head + text)
    for name, array in weights.items():
        narrow = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(narrow, name))
    onnx.save(proto, path)
    return load_model(path)


def gemm_weights(random: np.random.Generator, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Weights w0, w1, ... [inputs, outputs] and biases b0, b1, ... of a chain of Gemm."""
    weights = {f"w{i}": random.standard_normal(s) / s[0] ** 0.5 for i, s in enumerate(sizes)}
    return weights | {f"b{i}": random.standard_normal(s[1]) / 4 for i, s in enumerate(sizes)}


@dataclass(frozen=True)
class Bench:
    """Everything is written into `folder`; `process` serves all tests of a session."""

    folder: Path
    process: Process

    def model(self, text: str, *, opset: int = 17, **weights: NDArray[Any]) -> Model:
        path = self.folder / f"model{len(list(self.folder.iterdir()))}.onnx"
        return build_model(path, text, weights, opset=opset)

    def observe(
        self, model: Model, data: Arrays, layers: Sequence[str] | None = None
    ) -> Observations:
        found = [
            layer
            for layer in find_layers(model.ir)
            if not why_not(layer, "int8") and (layers is None or layer.name in layers)
        ]
        samples = open_samples(dict(data), model.inputs)
        return observe(
            model.ir,
            samples,
            range(len(samples)),
            model.inputs,
            tensors=tensors_to_observe(model.ir, found),
            layers=found,
            process=self.process,
        )

    def apply(
        self,
        model: Model,
        choices: str | Mapping[str, str],
        data: Arrays | None = None,
        *,
        observations: Observations | None = None,
        accuracy_level: int = 4,
        block_form: BlockForm = "MatMulNBits",
        **settings: Any,
    ) -> Path:
        """The compressed file; one choice for all layers that can have it, or one a layer."""
        if isinstance(choices, str):
            choices = {
                layer.name: choices
                for layer in find_layers(model.ir)
                if not why_not(layer, choices)
            }
        recipe = Recipe(layers=tuple(choices.items()), **settings)
        if observations is None:
            observations = Observations() if data is None else self.observe(model, data)
        compressed, _ = apply_recipe(
            model.ir, recipe, observations, accuracy_level=accuracy_level, block_form=block_form
        )
        return self.save(compressed)

    def save(self, graph: Any) -> Path:
        path = self.folder / f"model{len(list(self.folder.iterdir()))}.onnx"
        save_model(graph, path)
        onnx.checker.check_model(path)
        return path

    def run(
        self, path: Path | Model, feeds: Arrays, *, optimize: bool = True
    ) -> list[NDArray[Any]]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        name = str(path.source if isinstance(path, Model) else path)
        session = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
        outputs: list[NDArray[Any]] = session.run(None, dict(feeds))
        return outputs

    def operators(self, path: Path) -> list[str]:
        """What the runtime really runs."""
        out = self.folder / f"optimized{len(list(self.folder.iterdir()))}.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(out)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(out).graph.node]


def snr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal-to-noise ratio in decibels."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    assert a.shape == b.shape
    noise = float(np.square(a - b).sum())
    return 10 * float(np.log10(max(float(np.square(a).sum()), 1e-300) / max(noise, 1e-300)))
