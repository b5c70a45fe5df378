"""The queue: one job at a time in a child process, watched by whoever wants to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packlight.serve.errors import Refused
from packlight.serve.history import FINAL, GivenModel, History, Job, JobState, now
from packlight.serve.process import ask_child
from packlight.serve.state import State, check_id, make_id, remove, share_file
from packlight.serve.work import MODEL

_MOST_POINTS = 5000
_MOST_STAGES = 500
_NOTED_SECONDS = 1.0
_WATCHED_SECONDS = 0.25
_ALIVE_SECONDS = 15.0


@dataclass
class _Heard:
    """What a child told of its work. stages, points: as the page sees them."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    began: float = 0.0

    @property
    def progress(self) -> dict[str, Any]:
        """As it is kept in the history."""
        return {"stages": self.stages, "points": self.points}

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the child tells."""
        if "stage" in message:
            self.end_stage()
            del self.stages[:-_MOST_STAGES]
            stage = {"name": message["stage"], "total": message["total"], "done": 0}
            self.stages.append({**stage, "detail": "", "seconds": 0.0, "left_seconds": None})
            self.began = time.monotonic()
        elif "step" in message and self.stages:
            self.end_stage()
            stage = self.stages[-1]
            stage["done"] += message["step"]
            stage["detail"] = message["detail"]
            done, total = stage["done"], stage["total"]
            if total and done:
                stage["left_seconds"] = stage["seconds"] / done * max(total - done, 0)
        elif "tried" in message and len(self.points) < _MOST_POINTS:
            self.points.append(message["tried"])

    def end_stage(self) -> None:
        """Say how long the stage at work takes so far."""
        if self.stages:
            self.stages[-1]["seconds"] = time.monotonic() - self.began


@dataclass(frozen=True)
class _Running:
    """The job at work."""

    id: str
    task: asyncio.Task[None]
    heard: _Heard


class Jobs:
    """The queue of one server; used by its event loop alone."""

    def __init__(self, state: State, history: History) -> None:
        self._state, self._history = state, history
        self._running: _Running | None = None
        self._loop: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._closing = False

    def start(self) -> None:
        """Begin to work; what was running when the last server died is interrupted."""
        self._history.interrupt_running()
        self._loop = asyncio.create_task(self._work())
        self._wake.set()

    async def stop(self) -> None:
        """End the job at work, which is interrupted; the others wait for the next server."""
        self._closing = True
        self._wake.set()
        if self._running is not None:
            self._running.task.cancel()
        if self._loop is not None:
            await self._loop

    def add(
        self,
        model: GivenModel,
        settings: dict[str, Any],
        data: str | None,
        names: dict[str, str],
    ) -> Job:
        """Put a compression at the end of the queue. data: as `compress` gets it."""
        job = make_id()
        self._state.job(job).mkdir(mode=0o700)
        source = self._state.samples(model.id, model.samples["set"])
        if data is not None and Path(data).is_relative_to(source):
            # Whoever takes other samples for the model does not take them from this job.
            kept = self._state.job_samples(job)
            kept.mkdir(mode=0o700)
            for file in model.samples["files"]:
                (kept / file["file"]).parent.mkdir(exist_ok=True, mode=0o700)
                share_file(source / file["file"], kept / file["file"])
            data = data.replace(str(source), str(kept), 1)
            names = {path.replace(str(source), str(kept), 1): name for path, name in names.items()}
        made = Job(
            *(job, model.id, model.name, "queued", now(), settings),
            data={"path": data, "names": names},
            progress={"stages": [], "points": []},
        )
        self._history.add_job(made)
        self._wake.set()
        return made

    def find(self, text: object) -> Job:
        """A job by what a client calls its identifier. Raises Refused, 404."""
        found = self._history.job(check_id(text)) if isinstance(text, str) else None
        if found is None:
            raise Refused(404, "That job is not here: it was removed.")
        return found

    def list(self) -> list[Job]:
        """All jobs, the newest first."""
        return self._history.jobs()

    def show(self, job: Job, *, whole: bool = True) -> dict[str, Any]:
        """A job as the page sees it. whole: with stages and points."""
        outcome = job.outcome or {}
        shown: dict[str, Any] = {
            "id": job.id,
            "model": job.model,
            "name": job.name,
            "state": job.state,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "settings": job.settings,
            "samples": job.data["path"] is not None,
            "position": None,
            "verdict": outcome.get("verdict"),
            "sentence": outcome.get("sentence"),
            "reason": outcome.get("reason"),
            "figures": outcome.get("figures"),
            "error": job.error,
        }
        if job.state == "queued":
            shown["position"] = self._history.waiting().index(job.id) + 1
        if whole:
            here = self._running if self._running and self._running.id == job.id else None
            shown |= here.heard.progress if here else job.progress
        return shown

    async def watch(self, job: str) -> AsyncIterator[dict[str, Any] | None]:
        """A job as it is, again whenever it changed, until its end; None now and then.

        It also ends where the job is removed.
        """
        last: dict[str, Any] | None = None
        quiet = time.monotonic()
        while (found := self._history.job(job)) is not None:
            changed = self._changed
            shown = self.show(found)
            if shown != last:
                last, quiet = _copy(shown), time.monotonic()
                yield last
            elif time.monotonic() - quiet >= _ALIVE_SECONDS:
                quiet = time.monotonic()
                yield None
            if found.state in FINAL:
                return
            await asyncio.sleep(_WATCHED_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _ALIVE_SECONDS)

    async def cancel(self, job: Job) -> Job:
        """End a job that waits or runs. Raises Refused, 409, where it is over."""
        if job.state in FINAL:
            raise Refused(409, f"This job is over: it is {job.state}.")
        running = self._running
        if running is not None and running.id == job.id:
            running.task.cancel()
            await asyncio.wait([running.task])
        if self.find(job.id).state not in FINAL:
            self._end(job.id, "cancelled")
        return self.find(job.id)

    async def remove(self, job: Job) -> None:
        """Remove a job with all its files; one that waits or runs is ended first."""
        if job.state not in FINAL:
            await self.cancel(job)
        self._history.forget_job(job.id)
        await asyncio.to_thread(remove, self._state.job(job.id))
        self._tell()

    async def _work(self) -> None:
        while not self._closing:
            waiting = self._history.waiting()
            if not waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            job = self._history.job(waiting[0])
            assert job is not None
            heard = _Heard()
            self._running = _Running(job.id, asyncio.create_task(self._run(job, heard)), heard)
            await asyncio.wait([self._running.task])
            self._running = None
            self._tell()

    async def _run(self, job: Job, heard: _Heard) -> None:
        self._history.begin(job.id)
        self._tell()
        noted = 0.0
        folder = self._state.job(job.id)
        model = self._state.model(job.model) / MODEL
        request = {
            "do": "compress",
            "model": str(model),
            "name": job.name,
            "names": job.data["names"],
            "data": job.data["path"],
            "settings": job.settings,
            "work": str(folder / "work"),
            "out": str(self._state.result(job.id)),
        }

        def hear(message: dict[str, Any]) -> None:
            nonlocal noted
            heard.hear(message)
            if "tried" in message or time.monotonic() - noted >= _NOTED_SECONDS:
                noted = time.monotonic()
                self._history.note_progress(job.id, heard.progress)
            self._tell()

        state: JobState = "failed"
        outcome, error = None, None
        try:
            outcome = await ask_child(request, folder / "work", tell=hear)
            state = "done"
        except Refused as refused:
            error = refused.sentence
        except asyncio.CancelledError:
            remove(self._state.result(job.id))
            state = "interrupted" if self._closing else "cancelled"
        except Exception as fault:
            error = f"This is a fault in packlight ({type(fault).__name__}: {str(fault)[:300]})."
        heard.end_stage()
        self._history.note_progress(job.id, heard.progress)
        self._end(job.id, state, outcome=outcome, error=error)

    def _end(
        self,
        job: str,
        state: JobState,
        *,
        outcome: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        self._history.end(job, state, outcome=outcome, error=error)
        remove(self._state.job_samples(job))
        self._tell()

    def _tell(self) -> None:
        """Wake those who watch."""
        self._changed.set()
        self._changed = asyncio.Event()


def _copy(shown: dict[str, Any]) -> dict[str, Any]:
    """A copy that later steps do not change."""
    stages = [dict(stage) for stage in shown["stages"]]
    return {**shown, "stages": stages, "points": list(shown["points"])}
