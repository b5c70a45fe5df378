"""The formats, as data: which target gets which, what writes it and what runs it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from packlight.runtime import Engine


@dataclass(frozen=True)
class Format:
    """A file format of another runtime.

    title: for people. files: their names in the output folder, the one that is opened first.
    engine: what runs it here; None where nothing does, and `elsewhere` says where it runs.
    module: what writes it, by `convert(path, out, shapes)`; needs: packages that it imports.
    extra: of packlight, which brings them. one_shape: its inputs have the shape of one sample.
    reads_onnx: the runtime reads model.onnx as well.
    """

    title: str
    files: tuple[str, ...]
    engine: Engine | None
    module: str
    needs: tuple[str, ...]
    extra: str
    one_shape: bool = True
    reads_onnx: bool = False
    elsewhere: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed here."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


FORMATS: dict[str, Format] = {
    "openvino": Format(
        title="OpenVINO IR",
        files=("model.xml", "model.bin"),
        engine="openvino",
        module="packlight.runtime.openvino",
        needs=("openvino",),
        extra="openvino",
        one_shape=False,
        reads_onnx=True,
    ),
    "litert": Format(
        title="LiteRT",
        files=("model.tflite",),
        engine="litert",
        module="packlight.devices.litert.convert",
        needs=("ai_edge_litert",),
        extra="litert",
    ),
    "executorch": Format(
        title="ExecuTorch",
        files=("model.pte",),
        engine="executorch",
        module="packlight.devices.executorch",
        needs=("executorch", "torch"),
        extra="executorch",
    ),
    "coreml": Format(
        title="Core ML",
        files=("model.mlpackage.zip",),
        engine=None,
        module="packlight.devices.coreml",
        needs=("coremltools", "torch"),
        extra="coreml",
        elsewhere="Core ML runs on Apple's devices only; unzip it there",
    ),
}
"""By target."""
