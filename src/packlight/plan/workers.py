"""Many tasks at once: processes on this machine, or a Ray cluster, through joblib alike.

A task is a frozen value and its function a name in a module: both go to another process. What
comes back is in the order of the tasks, and depends on nothing but them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar
from urllib.parse import urlsplit

from packlight.errors import MissingExtra, PacklightError, RuntimeCrashed, WrongUsage
from packlight.progress import SILENT, Progress

Task = TypeVar("Task")
Result = TypeVar("Result")

_ANSWER_SECONDS = 5.0
"""A cluster that has not taken up the connection by then does not answer."""

_RAY_SETTINGS = {
    # No reports to its maker, and a cluster of our own is on the loopback interface alone.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Three attempts of 2 to 4 s instead of 5 to 30 s.
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "4",
}


class _WorkerLost(Exception):
    """A worker died; what it was doing is not known."""


_Outcome = tuple[int, Any, Exception | None]
_Pool = Callable[[Sequence[int]], Iterable[_Outcome]]


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | str = 1,
    retries: int = 2,
    progress: Progress = SILENT,
) -> list[Result]:
    """What `function` makes of each task, in their order.

    function: of the top level of a module; its errors come out as they are, that of the first
        task that failed. workers: 1 runs in this process; more are processes on this machine;
        "ray://host:port" is a Ray cluster, "ray" one of this machine's own.
    retries: a task whose worker died (a crash, no memory left) is tried so often again, alone.
    progress: gets a step for each task that is done.
    Raises RuntimeCrashed for a task whose worker died every time, WrongUsage for workers that
    do not exist or do not answer, MissingExtra for Ray where it is not installed.
    """
    if isinstance(workers, int) and workers < 1:
        raise WrongUsage(f"there must be 1 worker or more, not {workers}")
    if not tasks:
        return []
    if workers == 1:
        results = []
        for task in tasks:
            results.append(function(task))
            progress.step()
        return results
    with _open_pool(workers, function, tasks) as (pool, wave, started):
        found: dict[int, _Outcome] = {}
        gathered = _gather(pool, len(tasks), wave=wave, started=started, retries=retries)
        # Closed before the pool ends: what is left of its tasks must not be found by a collector.
        with contextlib.closing(gathered):
            for outcome in gathered:
                found[outcome[0]] = outcome
                progress.step()
                _raise_first(found)
    return [found[index][1] for index in range(len(tasks))]


def run_in_turn(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | str,
    held: int = 8,
) -> Iterator[Result]:
    """As `run_tasks`, one result after the other.

    held: tasks for each worker that are given out together, and whose results are held until all
    of them are there.
    """
    with keep_connected(workers) as count:
        wave = held * count
        for start in range(0, len(tasks), wave):
            yield from run_tasks(function, tasks[start : start + wave], workers=workers)


def parse_workers(text: str) -> int | str:
    """What the user says: a number, "auto" (the processor's cores), "ray" or "ray://host:port".

    Raises WrongUsage for anything else.
    """
    text = text.strip()
    if text == "auto":
        import joblib

        return max(1, int(joblib.cpu_count(only_physical_cores=True)))
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    if text == "ray" or text.startswith("ray://"):
        _parse_address(text)
        return text
    raise WrongUsage(
        f"workers are a number from 1, auto, ray or ray://host:port, not {text!r}: say --workers 4"
    )


def _gather(
    pool: _Pool, count: int, *, wave: int, started: int, retries: int
) -> Generator[_Outcome, None, None]:
    """The outcomes of all tasks as they come; suspects of a worker's death run alone, again.

    wave: tasks given to the pool at a time. started: how many of the first unfinished tasks may
    have been running when a worker died.
    """
    pending = list(range(count))
    while pending:
        suspects: list[int] = []
        given = pending[:wave]
        try:
            with _closed(pool(given)) as outcomes:
                for outcome in outcomes:
                    pending.remove(outcome[0])
                    yield outcome
        except _WorkerLost:
            # Workers take tasks in order, so that who was killed is among the first that are left.
            suspects = [index for index in given if index in pending][:started]
        for index in suspects:
            yield _try_alone(pool, index, retries)
            pending.remove(index)


@contextlib.contextmanager
def _closed(outcomes: Iterable[_Outcome]) -> Iterator[Iterable[_Outcome]]:
    """Outcomes that are given up when they are left, should they still be coming in."""
    try:
        yield outcomes
    finally:
        if isinstance(outcomes, Generator):
            outcomes.close()


def _try_alone(pool: _Pool, index: int, retries: int) -> _Outcome:
    """One task by itself, so that a worker's death is its own doing."""
    for _ in range(max(retries, 1)):
        try:
            with _closed(pool([index])) as outcomes:
                return next(iter(outcomes))
        except _WorkerLost:
            continue
    return (
        index,
        None,
        RuntimeCrashed(
            f"the worker process of task {index + 1} died each time ({max(retries, 1)} times alone)"
            ", for lack of memory perhaps: use fewer workers, or leave out what it was trying"
        ),
    )


def _raise_first(found: dict[int, _Outcome]) -> None:
    """Raise the error of the first task that failed, once all before it are done."""
    failed = [index for index, (_, _, error) in found.items() if error is not None]
    if failed and all(index in found for index in range(min(failed))):
        error = found[min(failed)][2]
        assert error is not None
        raise error


def _guarded(function: Callable[[Any], Any], index: int, task: object) -> _Outcome:
    """Runs in the worker: an error is a value, so that only a worker's death breaks the pool."""
    try:
        return index, function(task), None
    except Exception as error:
        return index, None, error


@contextlib.contextmanager
def _open_pool(
    workers: int | str, function: Callable[[Any], Any], tasks: Sequence[object]
) -> Iterator[tuple[_Pool, int, int]]:
    """The pool, how many tasks to give it at a time, and how many of them run at once."""
    if isinstance(workers, int):
        with _ended_when_interrupted():
            pool = functools.partial(_run_in_processes, workers, function, tasks)
            yield pool, len(tasks), workers
        return
    with connect_ray(workers) as cores:
        wave = 2 * cores
        yield functools.partial(_run_in_ray, cores, function, tasks), wave, wave


def _run_in_processes(
    workers: int, function: Callable[[Any], Any], tasks: Sequence[object], indices: Sequence[int]
) -> Iterator[_Outcome]:
    import joblib

    calls = (joblib.delayed(_guarded)(function, index, tasks[index]) for index in indices)
    with joblib.parallel_config(
        backend="loky", inner_max_num_threads=1, initializer=_leave_interrupts_to_parent
    ):
        # Two at least: joblib runs a single one in this process, which must not be what dies.
        run = joblib.Parallel(n_jobs=max(2, workers), batch_size=1, return_as="generator_unordered")
        try:
            outcomes = run(calls)
        except BrokenProcessPool:  # it died while the first tasks were being given out
            raise _WorkerLost from None
    try:
        # Not `yield from`, which would close them outside this room.
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    except BrokenProcessPool:
        raise _WorkerLost from None
    finally:
        with warnings.catch_warnings():
            # joblib's advice for those who leave early; here an error was the reason.
            warnings.simplefilter("ignore", UserWarning)
            outcomes.close()


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C goes to the whole group; the parent ends its workers, without their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _ended_when_interrupted() -> Iterator[None]:
    """Workers stay for the next tasks, but not when all ends in an error or an interrupt."""
    try:
        yield
    except BaseException:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise


def _run_in_ray(
    cores: int, function: Callable[[Any], Any], tasks: Sequence[object], indices: Sequence[int]
) -> list[_Outcome]:
    import joblib
    from ray.exceptions import RayError

    calls = [joblib.delayed(_guarded)(function, index, tasks[index]) for index in indices]
    try:
        # Ray's part of joblib gives results all together, so tasks come in waves.
        with joblib.parallel_config(backend="ray", n_jobs=max(2, min(cores, len(calls)))):
            return list(joblib.Parallel(batch_size=1, pre_dispatch="all")(calls))
    except RayError as error:
        # Only deaths of workers (RayActorError, WorkerCrashedError, OutOfMemoryError, ...) come
        # here: errors of the function are values.
        raise _WorkerLost from error


@contextlib.contextmanager
def keep_connected(workers: int | str) -> Iterator[int]:
    """Workers for many calls of `run_tasks`: as `connect_ray` for a cluster; yields how many."""
    if isinstance(workers, int):
        yield workers
        return
    with connect_ray(workers) as cores:
        yield cores


@contextlib.contextmanager
def connect_ray(address: str) -> Iterator[int]:
    """Connected to a Ray cluster within this block; yields the number of its cores.

    address: "ray://host:port", or "ray" for one of this machine's own, which is on the loopback
        interface alone and ends with the block. Within another such block the connection is
        shared: hold one around many calls of `run_tasks`.
    """
    host, port = _parse_address(address)
    if host:
        _knock(host, port)
    os.environ.update({key: os.environ.get(key, value) for key, value in _RAY_SETTINGS.items()})
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingExtra(
            "workers on Ray need the package ray, which is not installed: "
            'pip install "packlight[ray]"'
        ) from error
    ours = not ray.is_initialized()
    if ours:
        settings: dict[str, Any] = {"address": f"ray://{host}:{port}"}
        if not host:
            settings = {"log_to_driver": False, "include_dashboard": False}
            settings["configure_logging"] = False
        try:
            ray.init(**settings)
        except PacklightError:
            raise
        except Exception as error:
            raise WrongUsage(
                f"the Ray cluster at {address} cannot be used ({_first_line(error)}): check that "
                "it runs, has the same versions of Ray and Python, and takes this machine's token "
                "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
            ) from error
    register_ray()
    # It warns of an argument that joblib gives it, every time.
    logging.getLogger("ray.util.multiprocessing.pool").setLevel(logging.ERROR)
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


def _parse_address(address: str) -> tuple[str, int]:
    """Host and port; an empty host for a cluster of our own."""
    if address == "ray":
        return "", 0
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not address.startswith("ray://") or not host or not port:
        raise WrongUsage(f"a Ray cluster is ray://host:port (mostly port 10001), not {address!r}")
    return host, port


def _knock(host: str, port: int) -> None:
    """Raise WrongUsage where nobody listens, in seconds: Ray itself would try for a minute."""
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        reason = error.strerror or _first_line(error)
        reason = "it took too long" if isinstance(error, TimeoutError) else reason.lower()
        raise WrongUsage(
            f"the Ray cluster at ray://{host}:{port} does not answer ({reason}): check the "
            "address, and that ray start --head ran there"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
