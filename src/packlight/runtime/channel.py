"""One worker process and the pipes to it: a request, its answer, or a typed error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from packlight.errors import (
    RuntimeCrashed,
    RuntimeFailure,
    RuntimeOutOfMemory,
    RuntimeRefused,
    RuntimeTimedOut,
)
from packlight.runtime import refusal, wire
from packlight.runtime.limits import Limits, memory_limit_bytes

_START = Path(__file__).with_name("start.py")
_PIPE_BYTES = 1 << 20
_LAST_WORDS_BYTES = 1 << 14
_START_SECONDS = 60.0
_F_SETPIPE_SZ = 1031  # Linux only, and not in every build of Python's fcntl


class Channel:
    """A running worker that answers requests one at a time.

    It ends with the first failure other than a refusal, since nothing is known of the
    state of a process that crashed, hung, or was interrupted. It is always reaped.
    mapped_bytes: of files that the worker will map, which is no memory in use.
    """

    def __init__(self, limits: Limits, *, mapped_bytes: int = 0) -> None:
        self._limits = limits
        self._memory_bytes = memory_limit_bytes(limits)
        self._lock = threading.Lock()
        self._ended = ""
        self._greeted = False
        self._last_words = bytearray()
        self._listening = True
        self._process, self._requests, self._answers, self._errors = _spawn(
            self._memory_bytes, mapped_bytes
        )
        descriptors = (self._requests, self._answers, self._errors)
        # Also reaps a worker whose owner forgot to close it.
        self._end = weakref.finalize(self, _end_process, self._process, descriptors)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the worker is gone."""
        return bool(self._ended)

    def request(
        self,
        name: str,
        header: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        doing: str,
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send one request and wait for its answer: header and arrays.

        doing: what it is for, as in "running model.onnx".
        Raises RuntimeRefused, RuntimeCrashed, RuntimeTimedOut or RuntimeOutOfMemory.
        """
        seconds = self._limits.seconds
        with self._lock:
            if self._ended:
                raise RuntimeCrashed(
                    f"The process of the runtime is gone ({self._ended}), so {doing} is not "
                    "possible in it; start a new one."
                )
            try:
                if not self._greeted:
                    # Starting must not eat the time of the first request, and its engine is
                    # part of that.
                    hello = {"request": "hello", "engine": header.get("engine", "onnxruntime")}
                    self._exchange(hello, {}, max(_START_SECONDS, seconds))
                    self._greeted = True
                answer, results = self._exchange({"request": name, **header}, arrays or {}, seconds)
            except TimeoutError:
                self._stop("it was stopped after its time limit")
                raise RuntimeTimedOut(
                    f"The runtime took longer than {seconds:g} s for {doing} and was "
                    "stopped; allow more time, or use a smaller model or input."
                ) from None
            except wire.Malformed as error:
                self._stop("its answer broke the protocol")
                raise RuntimeCrashed(
                    f"The runtime's process answered with {error} while {doing}, which it never "
                    "does when it is sound; do not trust this file."
                ) from None
            except (EOFError, BrokenPipeError):
                raise self._died(doing) from None
            except BaseException:
                # The answer is still under way: the next one would be mistaken for it.
                self._stop("it was interrupted")
                raise
        if "error" in answer:
            raise self._refusal(answer, doing)
        return answer, results

    def close(self) -> None:
        """End the worker; nothing is left of it. Closing twice does nothing."""
        with self._lock:
            self._stop("it was closed")

    def _exchange(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], seconds: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        deadline = time.monotonic() + seconds
        wire.send(
            self._requests,
            header,
            arrays,
            lambda: self._wait(self._requests, select.POLLOUT, deadline),
        )
        return wire.receive(
            self._answers,
            limit_bytes=self._memory_bytes,
            wait=lambda: self._wait(self._answers, select.POLLIN, deadline),
        )

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Return when `descriptor` is ready, keeping the worker's error output flowing."""
        poller = select.poll()
        poller.register(descriptor, event)
        if self._listening:
            poller.register(self._errors, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = {found for found, _ in poller.poll(math.ceil(min(left, 3600.0) * 1000))}
            if self._errors in ready:
                self._listen()
                if not self._listening:
                    poller.unregister(self._errors)
            if descriptor in ready:
                return

    def _listen(self) -> None:
        """Read what the worker printed as errors, and keep the end of it."""
        while self._listening:
            try:
                part = os.read(self._errors, 1 << 16)
            except BlockingIOError:
                return
            self._listening = bool(part)
            self._last_words += part
            del self._last_words[:-_LAST_WORDS_BYTES]

    def _died(self, doing: str) -> RuntimeFailure:
        """The error for a worker that closed its pipes; the worker is reaped."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        status = self._process.poll()
        self._listen()
        self._stop("it crashed")
        words = self._last_words.decode("utf-8", "replace")
        if refusal.speaks_of_memory(words):
            return self._out_of_memory(doing)
        last = next((line for line in reversed(words.splitlines()) if line.strip()), "")
        said = f" Its last words: {refusal.first_sentence(last[-400:])}" if last else ""
        return RuntimeCrashed(
            f"The runtime's process died while {doing} ({_describe_status(status)}).{said}"
        )

    def _refusal(self, answer: Mapping[str, Any], doing: str) -> RuntimeFailure:
        if answer["error"] == "memory":
            return self._out_of_memory(doing)
        return RuntimeRefused(
            f"The runtime refused {doing}: {refusal.first_sentence(str(answer.get('message')))}"
        )

    def _out_of_memory(self, doing: str) -> RuntimeOutOfMemory:
        return RuntimeOutOfMemory(
            f"The runtime needed more memory for {doing} than its limit of "
            f"{self._memory_bytes / 2**20:.0f} MiB; allow more, or use a smaller model or input."
        )

    def _stop(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._end()


class Owner:
    """What asks a worker of its own through `_channel`; used in a `with` statement."""

    _channel: Channel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._channel.pid

    def close(self) -> None:
        """End the child, and with it all that it holds. Closing twice does nothing."""
        self._channel.close()


def _spawn(memory_bytes: int, mapped_bytes: int) -> tuple[subprocess.Popen[bytes], int, int, int]:
    """A worker, and this side's descriptors: requests out, answers in, its error output."""
    if not sys.executable:
        raise RuntimeCrashed(
            "Python does not know the path of its own program (sys.executable is empty), so no "
            "process can be started for the runtime; run packlight with an ordinary Python."
        )
    settings = json.dumps(
        {
            "memory_bytes": memory_bytes,
            "mapped_bytes": mapped_bytes,
            # The worker finds the same packages; a relative entry would depend on its folder.
            "path": [entry for entry in sys.path if Path(entry).is_absolute()],
        }
    )
    environment = {
        **os.environ,
        # NumPy's own threads have nothing to do there and would only take memory.
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        # onnxruntime 1.29 and later report what is run to Microsoft, and leave an identifier of
        # the machine in the user's cache, unless this is set before it is loaded.
        "ORT_DISABLE_TELEMETRY": "1",
    }
    with contextlib.ExitStack() as undo:
        theirs_in, requests = _pipe(undo)
        answers, theirs_out = _pipe(undo)
        errors, theirs_errors = _pipe(undo)
        process = subprocess.Popen(
            [sys.executable, "-I", str(_START), str(theirs_in), str(theirs_out), settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs_errors,
            pass_fds=(theirs_in, theirs_out),
            env=environment,
            # Ctrl-C in a terminal goes to a whole group: the worker is not for it to end.
            process_group=0,
        )
        undo.pop_all()
    for descriptor in (theirs_in, theirs_out, theirs_errors):
        os.close(descriptor)
    for descriptor in (requests, answers, errors):
        os.set_blocking(descriptor, False)
    return process, requests, answers, errors


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    undo.callback(os.close, reading)
    undo.callback(os.close, writing)
    if sys.platform == "linux":
        import fcntl

        # A larger pipe means fewer turns; a user with many pipes may not have one.
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _end_process(process: subprocess.Popen[bytes], descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    # It holds nothing that needs saving.
    process.kill()
    process.wait()


def _describe_status(status: int | None) -> str:
    if status is None:
        return "it closed its pipes"
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return f"{name}: something stopped it, perhaps the system for lack of memory"
    return name
