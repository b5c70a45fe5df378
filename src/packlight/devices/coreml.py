"""Writes an ONNX file as a Core ML package, zipped; runs in a child process.

A package is a folder: zipped it is one file, which a Mac unpacks when it is opened. Float layers
stay 32-bit floats, since what 16 bits do to them cannot be measured here.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import coremltools

from packlight.devices.exported import export_graph
from packlight.graph.model import load_model

_WHEN = "com.github.apple.coremltools.conversion_date"
_LEFT_OUT = frozenset({"executorch_debug_handle_mapping.json"})
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of all files in the package: the same model gives the same bytes."""


def convert(path: str, out: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write the ONNX file at `path` as `out`, for inputs of these shapes."""
    model = load_model(path)
    program = export_graph(model.ir, shapes).run_decompositions({})
    given, wanted = ([spec.name for spec in side] for side in (model.inputs, model.outputs))
    plain = plain_names([*given, *wanted])
    inputs = [coremltools.TensorType(name=plain[name], shape=tuple(shapes[name])) for name in given]
    outputs = [coremltools.TensorType(name=plain[name]) for name in wanted]
    made = coremltools.convert(
        program,
        inputs=inputs,
        outputs=outputs,
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS17,
        skip_model_load=True,
    )
    del made.user_defined_metadata[_WHEN]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.mlpackage"
        made.save(str(package))
        _settle(package)
        _zip(package, Path(out))


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """Names as Core ML wants them, of letters, digits and underscores, each once; by ONNX's."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"\W|^(?=\d)", "_", name, flags=re.ASCII) or "_"
        while plain in found.values():
            plain += "_"
        found[name] = plain
    return found


def _settle(package: Path) -> None:
    """Let a package be the same bytes every time: numbers drawn at random become 0, 1, ..."""
    manifest = package / "Manifest.json"
    text = manifest.read_text(encoding="utf-8")
    entries = json.loads(text)["itemInfoEntries"]
    for number, drawn in enumerate(sorted(entries, key=lambda key: str(entries[key]["path"]))):
        text = text.replace(drawn, str(uuid.UUID(int=number)).upper())
    manifest.write_text(json.dumps(json.loads(text), indent=2, sort_keys=True), encoding="utf-8")
    for file in package.rglob("*.mlmodel"):
        spec = coremltools.proto.Model_pb2.Model()
        spec.ParseFromString(file.read_bytes())
        file.write_bytes(spec.SerializeToString(deterministic=True))


def _zip(package: Path, out: Path) -> None:
    """Put the package into one file, without what only helps to look for faults."""
    files = [path for path in package.rglob("*") if path.is_file() and path.name not in _LEFT_OUT]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(files):
            name = file.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, date_time=_DATE), file.read_bytes())
