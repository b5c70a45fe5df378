"""The child program: holds models in an engine and answers requests about them.

It is started by `start.py` and imports nothing of packlight but the files of this
room that need only the standard library and NumPy; an engine is imported with its
first model, so that its memory counts only where it runs. One request is read whole
before its answer is written, so neither side can wait for the other to read.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.runtime import refusal, wire

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

Sessions = dict[int, Any]
"""What is loaded, by number: `Loaded`, or what an engine with requests of its own keeps."""

# The file of this room that speaks to each engine.
_ENGINES = {
    "onnxruntime": "ort",
    "onnxruntime decoder": "ort_text",
    "openvino": "openvino",
    "litert": "litert",
    "executorch": "executorch",
    "llama.cpp": "llamacpp_engine",
    "transformers": "transformers_engine",
}
_MESSAGE_LENGTH = 4000
# Address space beyond the memory limit: libraries, mapped weights, thread stacks and
# the allocator's reserves are mapped without being memory in use.
_ADDRESS_SPACE_SLACK = 8 << 30
_NO_LIMIT_BYTES = 1 << 62
_WARMUP_ROUNDS = 5
# Below six pairs no interval at 95 % exists for a median of ratios.
_LEAST_ROUNDS = 6


def serve(requests: int, answers: int, *, memory_bytes: int, mapped_bytes: int = 0) -> None:
    """Answer requests until the other end of `requests` is closed.

    requests, answers: descriptors of pipes. memory_bytes: limit of private memory.
    mapped_bytes: of files that will be mapped besides.
    """
    # The parent handles Ctrl-C and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources(memory_bytes, mapped_bytes)
    threading.Thread(target=_leave_with_parent, args=(requests, os.getppid()), daemon=True).start()
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
        name = header["request"]
        # Text is asked of a language model in other words than arrays are of a graph.
        answer = _REQUESTS.get(name) or _engine(header["engine"]).REQUESTS[name]
        found: tuple[Header, Arrays] = answer(sessions, header, arrays)
        return found
    except Exception as error:  # engines raise many types, none of them ours
        message = str(error)[:_MESSAGE_LENGTH]
        memory = isinstance(error, MemoryError) or refusal.speaks_of_memory(message)
        return {"error": "memory" if memory else "refused", "message": message}, {}


def _engine(name: str) -> Any:
    return importlib.import_module(f"packlight.runtime.{_ENGINES[name]}")


def _load(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """A new session; answers with its inputs and outputs in onnxruntime's words."""
    loaded = _engine(header["engine"]).open_model(
        header["path"],
        threads=header["threads"],
        optimize=header["optimize"],
        spinning=header["spinning"],
    )
    sessions[header["session"]] = loaded
    return {"inputs": loaded.inputs, "outputs": loaded.outputs}, {}


def _run(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    fetches = header["fetches"]
    results = sessions[header["session"]].prepare(arrays, fetches)()
    return {}, dict(zip(fetches, results, strict=True))


def _time(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    calls = [
        sessions[number].prepare(_feeds_of_group(arrays, group), None)
        for number, group in header["sessions"]
    ]
    seconds = header["seconds"]
    table = time_rounds(calls, rounds=header["rounds"], seconds=seconds)
    return {}, {"milliseconds": table}


def _profile(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    rows = _engine("onnxruntime").profile(
        header["path"],
        arrays,
        folder=header["folder"],
        threads=header["threads"],
        level=header["level"],
        runs=header["runs"],
        warmup=header["warmup"],
    )
    milliseconds = np.array([row[2] for row in rows], np.float64)
    return {"operators": [row[:2] for row in rows]}, {"milliseconds": milliseconds}


def _optimize(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    _engine("onnxruntime").write_optimized(header["path"], header["out"], level=header["level"])
    return {}, {}


def _convert(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    importlib.import_module(header["module"]).convert(
        header["path"], header["out"], header["shapes"]
    )
    return {}, {}


def _close(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    sessions.pop(header["session"], None)
    return {}, {}


def _peak_memory(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    return {"bytes": peak_memory_bytes()}, {}


def _hello(sessions: Sessions, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    return {"version": _engine(header["engine"]).version()}, {}


_REQUESTS: dict[str, Callable[[Sessions, Header, Arrays], tuple[Header, Arrays]]] = {
    "hello": _hello,
    "load": _load,
    "run": _run,
    "time": _time,
    "profile": _profile,
    "optimize": _optimize,
    "convert": _convert,
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


def _feeds_of_group(arrays: Arrays, group: int) -> Arrays:
    """The feeds sent as "GROUP:name", under their names."""
    prefix = f"{group}:"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _limit_resources(memory_bytes: int, mapped_bytes: int) -> None:
    space = memory_bytes + mapped_bytes + _ADDRESS_SPACE_SLACK
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
