"""OpenVINO in a worker: opens models on the processor and prepares their runs.

It reads the same ONNX files as onnxruntime, and files of its own (.xml with .bin). On processors
that have it OpenVINO would compute in bfloat16 by itself: it is told to keep to float32, so that
a difference in quality is the file's and not the processor's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from packlight.runtime import refusal
from packlight.runtime.loaded import Call, Loaded, Spec

# `import openvino` reports to its maker, and leaves an identifier in the user's home, by way of
# its conversion tools: it is let to find neither, which it takes as not installed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402

# OpenVINO's names of element types, in onnxruntime's words. What is not here cannot be fed or
# fetched, and is named in OpenVINO's words.
_KINDS = {
    "f32": "tensor(float)",
    "f64": "tensor(double)",
    "f16": "tensor(float16)",
    "boolean": "tensor(bool)",
    **{f"i{bits}": f"tensor(int{bits})" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"tensor(uint{bits})" for bits in (8, 16, 32, 64)},
}


def version() -> str:
    """The version that runs here: "2026.4.1"."""
    return str(openvino.__version__).partition("-")[0]


def open_model(path: str, *, threads: int, optimize: bool, spinning: bool) -> Loaded:
    """The model at `path`, compiled for the processor with one stream of `threads` threads.

    optimize, spinning: OpenVINO always optimizes and never spins.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # A thread bound to a core cannot leave it when somebody else comes to it.
        "ENABLE_CPU_PINNING": False,
    }
    with _plain_words():
        compiled = openvino.Core().compile_model(_read(path), "CPU", settings)
        inputs = [_spec(port) for port in compiled.inputs]
        outputs = [_spec(port) for port in compiled.outputs]
    return Loaded(inputs, outputs, partial(_prepare, compiled, inputs, outputs))


def convert(path: str, out: str, shapes: Mapping[str, list[int]]) -> None:
    """Write the ONNX file at `path` as `out`, an .xml, with its weights in the .bin beside it.

    Weights keep their types: OpenVINO would store floats in 16 bits by itself. shapes: not
    needed, since axes may stay open.
    """
    with _plain_words():
        openvino.save_model(_read(path), out, compress_to_fp16=False)


def _read(path: str) -> Any:
    """The graph in a file, by the reader of its format alone."""
    # Otherwise a file is offered to the readers of all formats.
    reader = FrontEndManager().load_by_framework("ir" if path.endswith(".xml") else "onnx")
    return reader.convert(reader.load(path))


@contextlib.contextmanager
def _plain_words() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise RuntimeError(refusal.words_of_openvino(str(error))) from error


def _spec(port: Any) -> Spec:
    kind = port.get_element_type().get_type_name()
    shape = port.get_partial_shape()
    axes: list[int | str | None] = []
    if shape.rank.is_static:
        axes = [axis.get_length() if axis.is_static else None for axis in shape]
    return _name(port), _KINDS.get(kind, kind), axes


def _name(port: Any) -> str:
    """The name in the file: a tensor may have several, and its node tells which is meant."""
    node = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return str(node if node in port.get_names() else port.get_any_name())


def _prepare(
    compiled: Any,
    inputs: list[Spec],
    outputs: list[Spec],
    feeds: Mapping[str, NDArray[Any]],
    fetches: list[str] | None,
) -> Call:
    """A call that runs the model once; the feeds are bound without a copy."""
    places = {name: place for place, (name, _, _) in enumerate(outputs)}
    wanted = [places[name] for name in (places if fetches is None else fetches)]
    with _plain_words():
        request = compiled.create_infer_request()
        tensors = [openvino.Tensor(feeds[name], shared_memory=True) for name, _, _ in inputs]
        for place, tensor in enumerate(tensors):
            request.set_input_tensor(place, tensor)

    first = True

    def call() -> list[Any]:
        nonlocal first
        with _plain_words():
            if first:
                # With one thread `infer` loses errors, and gives empty outputs (2026.4). It is
                # what a user calls, though, and needs no other thread: so it is what is timed.
                request.start_async()
                request.wait()
                first = False
            else:
                request.infer()
            # The next run writes into the same memory.
            return [request.get_output_tensor(place).data.copy() for place in wanted]

    return call
