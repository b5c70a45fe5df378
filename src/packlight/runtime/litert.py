"""LiteRT in a worker: opens .tflite files on the processor and prepares their runs.

Its default delegate, XNNPACK, computes what it can, as it does on phones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from packlight.runtime.loaded import Call, Loaded, Spec

_KINDS = {"float32": "float", "float64": "double", "bool": "bool"}


def version() -> str:
    """The version that runs here."""
    return str(ai_edge_litert.__version__)


def open_model(path: str, *, threads: int, optimize: bool, spinning: bool) -> Loaded:
    """The model at `path`, ready to run on `threads` threads.

    optimize, spinning: not asked of LiteRT.
    """
    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    # Names under which tensors are asked for; a tensor's own may be another.
    signatures = interpreter._get_full_signature_list()
    if len(signatures) != 1:
        raise RuntimeError(f"it has {len(signatures)} signatures where one is expected")
    ((_, signature),) = signatures.items()
    details = {one["index"]: one for one in interpreter.get_tensor_details()}
    inputs, outputs = (
        {name: details[index] for name, index in signature[side].items()}
        for side in ("inputs", "outputs")
    )
    return Loaded(
        [_spec(name, one) for name, one in inputs.items()],
        [_spec(name, one) for name, one in outputs.items()],
        partial(_prepare, interpreter, inputs, outputs),
    )


def _spec(name: str, detail: Mapping[str, Any]) -> Spec:
    kind = np.dtype(detail["dtype"]).name
    return name, f"tensor({_KINDS.get(kind, kind)})", [int(axis) for axis in detail["shape"]]


def _prepare(
    interpreter: Any,
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
    feeds: Mapping[str, NDArray[Any]],
    fetches: list[str] | None,
) -> Call:
    """A call that runs the model once, from putting the feeds in place to copying the outputs."""
    wanted = [outputs[name]["index"] for name in (outputs if fetches is None else fetches)]
    given = [(detail["index"], feeds[name]) for name, detail in inputs.items()]

    def call() -> list[Any]:
        for index, array in given:
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in wanted]

    return call
