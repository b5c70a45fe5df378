"""A folder with a proof, made without compressing anything: a small classifier, rounded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.model import load_model
from packlight.proof.make import Proof, make_proof
from packlight.report.folder import write_folder
from packlight.samples import open_samples

REPORT: dict[str, Any] = {
    "verdict": "met",
    "reason": "the budget is kept",
    "model": "net.onnx",
    "target": "laptop",
    "metric": {"name": "top-1 agreement", "original": 1.0, "compressed": 1.0},
    "size_bytes": {"original": 3000, "compressed": 2000},
    "latency_ms": {"original": 0.4, "compressed": 0.2},
    "peak_memory_bytes": {"original": 5000, "compressed": 4000},
    "environment": {"packlight": "0.2.0", "processor": "a processor from elsewhere"},
}


def round_weights(source: Path, target: Path, *, step: float = 2.0**-7) -> Path:
    """The same model with weights on a grid: it stands for the compressed one."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        rounded = np.round(numpy_helper.to_array(tensor) / step) * step
        tensor.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32), tensor.name))
    onnx.save(model, target)
    return target


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, write_mlp: Callable[..., Path]) -> Path:
    return write_mlp(tmp_path_factory.mktemp("original") / "net.onnx", hidden=32)


@pytest.fixture(scope="session")
def make_folder(
    tmp_path_factory: pytest.TempPathFactory, original: Path, rows: NDArray[np.float32]
) -> Callable[..., Path]:
    """Writes a folder with its proof: `make_folder(golden=False)`."""

    def make(*, golden: bool = True) -> Path:
        scratch = tmp_path_factory.mktemp("proof")
        model = round_weights(original, scratch / "model.onnx")
        inputs = load_model(original).inputs
        proof = make_proof(
            original,
            model,
            open_samples({"x": rows}, inputs),
            range(100, 200),
            inputs,
            scratch,
            golden=golden,
            size_bytes=original.stat().st_size,
        )
        return put(proof, scratch / "packed", model)

    return make


def put(proof: Proof, folder: Path, model: Path, **report: Any) -> Path:
    return write_folder(
        folder,
        files=(model, *proof.files),
        texts={"recipe.yaml": "schema: 1\n", "report.json": "{}\n", **proof.texts},
        seal=lambda made: proof.seal(made, model.name, {**REPORT, **report}),
    )


@pytest.fixture(scope="session")
def whole(make_folder: Callable[..., Path]) -> Path:
    """A folder as it was written; tests don't change it."""
    return make_folder()


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(whole, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture(scope="session")
def seal() -> Callable[[Any], bytes]:
    """Gives the bytes of a manifest of any content, sealed as it should be."""

    def write(value: Any) -> bytes:
        text = json.dumps({key: item for key, item in value.items() if key != "sha256"}, indent=2)
        head = text.removesuffix("\n}") + ",\n"
        digest = hashlib.sha256(head.encode()).hexdigest()
        return f'{head}  "sha256": "{digest}"\n}}\n'.encode()

    return write


@pytest.fixture
def reseal(seal: Callable[[Any], bytes]) -> Callable[..., None]:
    """Changes the manifest of a folder and seals it: hashes are those of the files as they are."""

    def change(folder: Path, **changes: Any) -> None:
        value = json.loads((folder / "manifest.json").read_bytes())
        value["files"] = [
            {
                "name": entry["name"],
                "size_bytes": (folder / entry["name"]).stat().st_size,
                "sha256": hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest(),
            }
            for entry in value["files"]
        ]
        (folder / "manifest.json").write_bytes(seal({**value, **changes}))

    return change
