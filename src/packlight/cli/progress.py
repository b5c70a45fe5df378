"""What long work shows on stderr: a bar on a terminal, plain lines on a pipe."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from packlight.progress import Progress
from packlight.report.units import format_seconds
from packlight.report.visible import visible

_QUIET_S = 5.0


@contextlib.contextmanager
def show_progress(stream: TextIO) -> Iterator[Progress]:
    """A bar where `stream` is a terminal that can draw one, else at most a line every 5 seconds."""
    if stream.isatty() and os.environ.get("TERM", "") != "dumb":
        bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _TimeLeft(),
            _Detail(),
            console=Console(file=stream),
            transient=True,
        )
        with bars:
            shown = BarProgress(bars)
            yield shown
            shown.finish()
    else:
        yield PlainProgress(stream)


class PlainProgress:
    """One line for each stage, and one now and then for where it stands."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float = _QUIET_S,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._every = every
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._began = self._told = clock()

    def stage(self, name: str, total: int | None = None) -> None:
        """Prints that the stage begins."""
        self._name, self._total, self._done = visible(name), total, 0
        self._began = self._told = self._clock()
        self._print(
            f"{self._name} ({total} step{'' if total == 1 else 's'})" if total else self._name
        )

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Prints where the stage stands, where that was not told for some seconds."""
        self._done += advance
        now = self._clock()
        if now - self._told < self._every:
            return
        self._told = now
        parts = [f"{self._done}/{self._total}" if self._total else f"{self._done}"]
        if detail:
            parts.append(visible(detail, limit=120))
        left = estimate_left(now - self._began, self._done, self._total)
        if left is not None:
            parts.append(f"about {format_seconds(left)} left")
        self._print(f"  {self._name}: {', '.join(parts)}")

    def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
        """Nothing: the report shows what was tried."""

    def _print(self, line: str) -> None:
        # A closed stderr is no reason to lose the work.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()


class BarProgress:
    """One moving bar for the stage at work, and a line for each stage that is done."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: Task | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """Closes the bar of the last stage and starts one for this."""
        self.finish()
        key = self._bars.add_task(visible(name, limit=60), total=total, detail="")
        self._task = next(task for task in self._bars.tasks if task.id == key)

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Moves the bar and says what is being tried."""
        if self._task is None:
            self.stage("working")
        assert self._task is not None
        self._bars.update(self._task.id, advance=advance, detail=visible(detail, limit=120))

    def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
        """Nothing: the report shows what was tried."""

    def finish(self) -> None:
        """Replaces the bar by a line that says how long the stage took."""
        if self._task is None:
            return
        took = format_seconds(self._task.elapsed or 0.0)
        self._bars.remove_task(self._task.id)
        line = Text("✓ ", style="green").append(f"{self._task.description} ", style="default")
        self._bars.console.print(line.append(took, style="dim"))
        self._task = None


def estimate_left(elapsed_s: float, done: int, total: int | None) -> float | None:
    """Seconds left at the mean speed so far; None where that cannot be known."""
    if not total or done <= 0 or elapsed_s <= 0:
        return None
    return elapsed_s / done * max(0, total - done)


class _TimeLeft(ProgressColumn):
    """`34/120, about 12 s left`, or the time gone by where the end is not known."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        if not task.total:
            return Text(format_seconds(elapsed), style="dim")
        left = estimate_left(elapsed, int(task.completed), int(task.total))
        text = f"{int(task.completed)}/{int(task.total)}"
        if left is not None:
            text += f", about {format_seconds(left)} left"
        return Text(text, style="dim")


class _Detail(ProgressColumn):
    """What is being tried; cut where the line ends."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("detail", "")), no_wrap=True, overflow="ellipsis")
