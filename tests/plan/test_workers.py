from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packlight.errors import RuntimeCrashed, UnusableModel, WrongUsage
from packlight.plan import workers as room
from packlight.plan.workers import connect_ray, parse_workers, run_tasks

# Workers import functions by name, and test files are not on their path: the standard library is.
HERE = Path(__file__).parent


def square(number: int) -> int:
    """Later tasks are done first."""
    time.sleep(0.02 * (5 - number % 5))
    return number * number


def refuse_odd(number: int) -> int:
    if number % 2:
        raise UnusableModel(f"task {number} is odd")
    return number


def die_once(task: tuple[str, int]) -> int:
    """Kills its process the first time, unless the number is even."""
    folder, number = task
    marker = Path(folder) / f"{number}"
    if number % 2 and not marker.exists():
        marker.touch()
        os._exit(7)
    return -number


def die_always(number: int) -> int:
    if number == 2:
        os._exit(7)
    return number


class Counted:
    def __init__(self) -> None:
        self.steps = 0

    def stage(self, name: str, total: int | None = None) -> None:
        raise AssertionError("the caller names the stage")

    def step(self, detail: str = "", advance: int = 1) -> None:
        self.steps += advance

    def tried(self, choice: str, **figures: object) -> None:
        raise AssertionError("a task is no candidate")


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Functions of this file travel whole, since it is no module that a worker could import."""
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_the_order_of_the_tasks(workers: int) -> None:
    progress = Counted()
    found = run_tasks(square, list(range(12)), workers=workers, progress=progress)
    assert found == [number * number for number in range(12)]
    assert progress.steps == 12


def test_a_task_whose_worker_died_is_tried_again(tmp_path: Path) -> None:
    tasks = [(str(tmp_path), number) for number in range(6)]
    progress = Counted()
    assert run_tasks(die_once, tasks, workers=2, progress=progress) == [0, -1, -2, -3, -4, -5]
    assert progress.steps == 6
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3", "5"}


def test_a_task_that_kills_every_worker_is_one_clear_error() -> None:
    with pytest.raises(RuntimeCrashed, match="task 3 died each time"):
        run_tasks(die_always, list(range(5)), workers=2, retries=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_that_of_the_first_task_that_failed(workers: int) -> None:
    with pytest.raises(UnusableModel, match="task 1 is odd"):
        run_tasks(refuse_odd, list(range(8)), workers=workers)


def test_no_tasks_need_no_workers() -> None:
    assert run_tasks(square, [], workers="ray://nowhere.invalid:10001") == []


def test_an_interrupt_ends_all_and_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, sys, time
        from packlight.plan.workers import run_tasks

        def linger(task):
            pathlib.Path(task, str(os.getpid())).touch()
            time.sleep(60)

        if __name__ == "__main__":
            run_tasks(linger, [sys.argv[1]] * 4, workers=2)
        """)
    )
    folder = tmp_path / "pids"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, folder], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == 2
    assert said.count(b"KeyboardInterrupt") == 1, said.decode()
    assert not [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("4", 4), (" 1 ", 1), ("ray", "ray"), ("ray://10.0.0.1:10001", "ray://10.0.0.1:10001")],
)
def test_what_a_user_says(text: str, meant: int | str) -> None:
    assert parse_workers(text) == meant


def test_auto_is_the_number_of_cores() -> None:
    found = parse_workers("auto")
    assert isinstance(found, int)
    assert 1 <= found <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    "text", ["0", "-1", "many", "", "4.5", "ray://", "ray://host", "ray://:10001", "ray://h:x", "²"]
)
def test_what_makes_no_workers_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage, match=r"ray://host:port"):
        parse_workers(text)


def test_fewer_than_one_worker_is_refused() -> None:
    with pytest.raises(WrongUsage, match="not 0"):
        run_tasks(square, [1], workers=0)


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(WrongUsage, match=f"ray://127.0.0.1:{port} does not answer") as caught:
            run_tasks(square, [1], workers=f"ray://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_silent_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        waiting = []
        for _ in range(8):  # until its queue is full, so that a connection is not taken up
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        try:
            with pytest.raises(WrongUsage, match="does not answer"):
                run_tasks(square, [1], workers=f"ray://127.0.0.1:{port}")
        finally:
            for one in waiting:
                one.close()


def test_on_ray_as_in_one_process(tmp_path: Path) -> None:
    """A cluster of two workers, on the loopback interface alone."""
    pytest.importorskip("ray")
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, subprocess, sys
        from packlight.plan.workers import connect_ray, run_tasks

        def die_once(task):
            folder, number = task
            marker = pathlib.Path(folder, str(number))
            if number == 3 and not marker.exists():
                marker.touch()
                os._exit(7)
            return -number

        if __name__ == "__main__":
            tasks = [(sys.argv[1], number) for number in range(9)]
            with connect_ray("ray"):
                assert run_tasks(die_once, tasks, workers="ray") == [-n for n in range(9)]
                import ray
                nodes = [node["NodeManagerAddress"] for node in ray.nodes()]
                assert nodes == ["127.0.0.1"], nodes
            assert not ray.is_initialized()
            print("all well")
        """)
    )
    (tmp_path / "marks").mkdir()
    run = subprocess.run(
        [sys.executable, script, tmp_path / "marks"], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip().endswith("all well"), run.stderr[-3000:]
    assert (tmp_path / "marks" / "3").exists()


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from packlight.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"packlight\[ray\]"), connect_ray("ray"):
        pass
