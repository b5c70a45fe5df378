"""ExecuTorch in a worker: opens .pte files on the processor and prepares their runs."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import executorch.kernels.quantized  # noqa: F401 (codes outside of XNNPACK's parts)
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime
from numpy.typing import NDArray

from packlight.runtime.loaded import Call, Loaded, Spec

_NAMES = "packlight_names"  # see packlight.devices.executorch, which writes it
# ExecuTorch's numbers of element types, in onnxruntime's words.
_KINDS = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16"}
_KINDS |= {6: "float", 7: "double", 11: "bool"}


def version() -> str:
    """The version that runs here."""
    return importlib.metadata.version("executorch")


def open_model(path: str, *, threads: int, optimize: bool, spinning: bool) -> Loaded:
    """The program at `path`, ready to run on `threads` threads, which all of them share.

    optimize, spinning: not asked of ExecuTorch.
    """
    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    forward = program.load_method("forward")
    if forward is None:
        raise RuntimeError("it has no method 'forward'")
    meta = forward.metadata
    inputs = [meta.input_tensor_meta(place) for place in range(meta.num_inputs())]
    outputs = [meta.output_tensor_meta(place) for place in range(meta.num_outputs())]
    names = [f"input {place}" for place in range(len(inputs))]
    results = [f"output {place}" for place in range(len(outputs))]
    if _NAMES in program.method_names:
        named = program.load_method(_NAMES)
        assert named is not None
        names, results = json.loads(named.execute([])[0])
    return Loaded(
        [_spec(name, one) for name, one in zip(names, inputs, strict=True)],
        [_spec(name, one) for name, one in zip(results, outputs, strict=True)],
        partial(_prepare, forward, names, results),
    )


def _spec(name: str, meta: Any) -> Spec:
    kind = _KINDS.get(meta.dtype(), str(meta.dtype()))
    return name, f"tensor({kind})", [int(axis) for axis in meta.sizes()]


def _prepare(
    forward: Any,
    inputs: list[str],
    outputs: list[str],
    feeds: Mapping[str, NDArray[Any]],
    fetches: list[str] | None,
) -> Call:
    """A call that runs the program once."""
    places = {name: place for place, name in enumerate(outputs)}
    wanted = [places[name] for name in (outputs if fetches is None else fetches)]
    given = [torch.from_numpy(feeds[name]) for name in inputs]

    def call() -> list[Any]:
        results = forward.execute(given)
        return [results[place].numpy().copy() for place in wanted]

    return call
