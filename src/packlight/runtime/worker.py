"""The child program: holds onnxruntime sessions and answers requests about them.

It is started by `start.py` and imports nothing of packlight but the files of this
room that need only the standard library and NumPy. One request is read whole
before its answer is written, so neither side can wait for the other to read.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from packlight.runtime import refusal, trace, wire

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Loaded:
    """An onnxruntime session, and the types of its inputs and outputs by name."""

    session: Any
    inputs: dict[str, str]
    outputs: dict[str, str]


Sessions = dict[int, Loaded]

# Types that NumPy does not have, with their numbers in ONNX; they travel as the
# unsigned integer of their width.
UNTYPED: dict[str, tuple[int, np.dtype[Any]]] = {
    "tensor(bfloat16)": (16, np.dtype(np.uint16)),
    "tensor(float8e4m3fn)": (17, np.dtype(np.uint8)),
    "tensor(float8e4m3fnuz)": (18, np.dtype(np.uint8)),
    "tensor(float8e5m2)": (19, np.dtype(np.uint8)),
    "tensor(float8e5m2fnuz)": (20, np.dtype(np.uint8)),
}
_MESSAGE_LENGTH = 4000
# Address space beyond the memory limit: libraries, mapped weights, thread stacks and
# the allocator's reserves are mapped without being memory in use.
_ADDRESS_SPACE_SLACK = 8 << 30
_NO_LIMIT_BYTES = 1 << 62
_WARMUP_ROUNDS = 5
# Below six pairs no interval at 95 % exists for a median of ratios.
_LEAST_ROUNDS = 6


def serve(requests: int, answers: int, *, memory_bytes: int) -> None:
    """Answer requests until the other end of `requests` is closed.

    requests, answers: descriptors of pipes. memory_bytes: limit of private memory.
    """
    # The parent handles Ctrl-C and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources(memory_bytes)
    threading.Thread(target=_leave_with_parent, args=(requests, os.getppid()), daemon=True).start()
    onnxruntime.set_default_logger_severity(4)
    sessions: Sessions = {}
    while True:
        try:
            header, arrays = wire.receive(requests, limit_bytes=_NO_LIMIT_BYTES)
        except EOFError:
            return
        except MemoryError as error:
            wire.send(answers, {"error": "memory", "message": str(error)}, {})
            continue
        answer, results = _answer(sessions, header, arrays)
        del arrays
        try:
            wire.send(answers, answer, results)
        except BrokenPipeError:
            return


def _answer(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    try:
        return _REQUESTS[header["request"]](sessions, header, arrays)
    except Exception as error:  # onnxruntime raises many types, none of them ours
        message = str(error)[:_MESSAGE_LENGTH]
        memory = isinstance(error, MemoryError) or refusal.speaks_of_memory(message)
        return {"error": "memory" if memory else "refused", "message": message}, {}


def _load(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """A new session; answers with its inputs and outputs in onnxruntime's words."""
    options = _options(header["threads"])
    if not header["spinning"]:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not header["optimize"]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    loaded = _open(header["path"], options)
    sessions[header["session"]] = loaded
    session = loaded.session
    return {"inputs": _specs(session.get_inputs()), "outputs": _specs(session.get_outputs())}, {}


def _run(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    fetches = header["fetches"]
    results = _prepare(sessions[header["session"]], arrays, fetches)()
    return {}, dict(zip(fetches, results, strict=True))


def _time(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    calls = [
        _prepare(sessions[number], _feeds_of_group(arrays, group), None)
        for number, group in header["sessions"]
    ]
    seconds = header["seconds"]
    table = time_rounds(calls, rounds=header["rounds"], seconds=seconds)
    return {}, {"milliseconds": table}


def _profile(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    options = _options(header["threads"])
    options.graph_optimization_level = _level(header["level"])
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(header["folder"]) / "profile")
    loaded = _open(header["path"], options)
    call = _prepare(loaded, arrays, None)
    for _ in range(header["warmup"] + header["runs"]):
        call()
    path = Path(loaded.session.end_profiling())
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = trace.operator_times(trace.read_events(lines), warmup=header["warmup"])
    milliseconds = np.array([row[2] for row in rows], np.float64)
    return {"operators": [row[:2] for row in rows]}, {"milliseconds": milliseconds}


def _optimize(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    options = _options(1)
    options.graph_optimization_level = _level(header["level"])
    options.optimized_model_filepath = header["out"]
    _open(header["path"], options)
    return {}, {}


def _close(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    sessions.pop(header["session"], None)
    return {}, {}


def _peak_memory(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    return {"bytes": peak_memory_bytes()}, {}


def _hello(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    return {"version": str(onnxruntime.__version__)}, {}


_REQUESTS: dict[str, Callable[[Sessions, Header, Arrays], tuple[Header, Arrays]]] = {
    "hello": _hello,
    "load": _load,
    "run": _run,
    "time": _time,
    "profile": _profile,
    "optimize": _optimize,
    "close": _close,
    "peak_memory": _peak_memory,
}


def time_rounds(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float | None,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Milliseconds of each call in each round: [calls, rounds done].

    Every round runs each call once, and each round begins with another one, so that
    neither drift of the machine nor what the neighbour left in the cache favours a
    call. Warm-up rounds come first and are not counted. After `seconds` no round begins, but
    never before six are done.
    """
    count = len(calls)
    began = clock()
    for _ in range(_WARMUP_ROUNDS):
        for call in calls:
            call()
        # A slow model is warm after one run, and each run is dear.
        if seconds is not None and clock() - began > seconds / 10:
            break
    table = np.empty((count, rounds), np.float64)
    collecting = gc.isenabled()
    gc.disable()
    done = 0
    try:
        began = clock()
        for done in range(1, rounds + 1):
            for turn in range(count):
                which = (turn + done) % count
                start = clock()
                calls[which]()
                table[which, done - 1] = clock() - start
            if seconds is not None and done >= _LEAST_ROUNDS and clock() - began > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return table[:, :done] * 1000.0


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # ru_maxrss would include what the parent held when this process was forked from it.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _level(name: str) -> Any:
    return getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{name.upper()}")


def _open(path: str, options: Any) -> Loaded:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Loaded(
        session,
        {value.name: value.type for value in session.get_inputs()},
        {value.name: value.type for value in session.get_outputs()},
    )


def _specs(arguments: Sequence[Any]) -> list[tuple[str, str, list[int | str | None]]]:
    return [(value.name, value.type, [*value.shape]) for value in arguments]


def _feeds_of_group(arrays: Arrays, group: int) -> Arrays:
    """The feeds sent as "GROUP:name", under their names."""
    prefix = f"{group}:"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _prepare(
    loaded: Loaded, feeds: Mapping[str, NDArray[Any]], fetches: list[str] | None
) -> Callable[[], list[Any]]:
    """A call that runs the session once; types unknown to NumPy go by another door."""
    session, inputs, outputs = loaded.session, loaded.inputs, loaded.outputs
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


def _limit_resources(memory_bytes: int) -> None:
    space = memory_bytes + _ADDRESS_SPACE_SLACK
    limits = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_AS, space),
    )
    for kind, soft in limits:
        _, hard = resource.getrlimit(kind)
        wanted = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        # Not every system has every limit; the limit on time holds everywhere.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (wanted, wanted))


def _leave_with_parent(requests: int, parent: int) -> None:
    """End this process when the parent closes the pipe or dies, even amid a long run."""
    poller = select.poll()
    poller.register(requests, 0)  # only the hang-up is of interest
    while not poller.poll(1000):
        # A copy of the pipe's end may live on in another child of the parent.
        if os.getppid() != parent:
            break
    os._exit(0)
