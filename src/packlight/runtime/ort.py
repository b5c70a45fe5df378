"""onnxruntime in a worker: opens models, prepares their runs, and profiles them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from packlight.runtime import trace
from packlight.runtime.loaded import Call, Loaded, Spec

# Types that NumPy does not have, with their numbers in ONNX; they travel as the
# unsigned integer of their width.
UNTYPED: dict[str, tuple[int, np.dtype[Any]]] = {
    "tensor(bfloat16)": (16, np.dtype(np.uint16)),
    "tensor(float8e4m3fn)": (17, np.dtype(np.uint8)),
    "tensor(float8e4m3fnuz)": (18, np.dtype(np.uint8)),
    "tensor(float8e5m2)": (19, np.dtype(np.uint8)),
    "tensor(float8e5m2fnuz)": (20, np.dtype(np.uint8)),
}

onnxruntime.set_default_logger_severity(4)


def version() -> str:
    """The version that runs here."""
    return str(onnxruntime.__version__)


def open_model(path: str, *, threads: int, optimize: bool, spinning: bool) -> Loaded:
    """The model at `path`, ready to run on `threads` threads."""
    options = _options(threads)
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(path, options)
    inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())
    return Loaded(inputs, outputs, partial(_prepare, session, _types(inputs), _types(outputs)))


def profile(
    path: str,
    feeds: Mapping[str, NDArray[Any]],
    *,
    folder: str,
    threads: int,
    level: str,
    runs: int,
    warmup: int,
) -> list[tuple[str, str, float]]:
    """(node, operator, mean milliseconds) of all that runs; `folder` takes the trace."""
    options = _options(threads)
    options.graph_optimization_level = _level(level)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "profile")
    session = _open(path, options)
    types = (_types(_specs(session.get_inputs())), _types(_specs(session.get_outputs())))
    call = _prepare(session, *types, feeds, None)
    for _ in range(warmup + runs):
        call()
    with Path(session.end_profiling()).open(encoding="utf-8", errors="replace") as lines:
        return trace.operator_times(trace.read_events(lines), warmup=warmup)


def write_optimized(path: str, out: str, *, level: str) -> None:
    """Write what becomes of the model at `path` before it runs."""
    options = _options(1)
    options.graph_optimization_level = _level(level)
    options.optimized_model_filepath = out
    _open(path, options)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _level(name: str) -> Any:
    return getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{name.upper()}")


def _open(path: str, options: Any) -> Any:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _specs(arguments: Sequence[Any]) -> list[Spec]:
    return [(value.name, value.type, [*value.shape]) for value in arguments]


def _types(specs: Sequence[Spec]) -> dict[str, str]:
    return {name: kind for name, kind, _ in specs}


def _prepare(
    session: Any,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    feeds: Mapping[str, NDArray[Any]],
    fetches: list[str] | None,
) -> Call:
    """A call that runs the session once; types unknown to NumPy go by another door."""
    kinds = [*inputs.values(), *(outputs[name] for name in fetches or outputs)]
    if not any(kind in UNTYPED for kind in kinds):
        return lambda: list(session.run(fetches, feeds))
    values = {name: _to_value(array, inputs[name]) for name, array in feeds.items()}
    return lambda: [_to_array(value) for value in session.run_with_ort_values(fetches, values)]


def _to_value(array: NDArray[Any], kind: str) -> Any:
    if kind not in UNTYPED:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, UNTYPED[kind][0])


def _to_array(value: Any) -> Any:
    if value.data_type() not in UNTYPED:
        return value.numpy()
    array = np.empty(value.shape(), UNTYPED[value.data_type()][1])
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array
