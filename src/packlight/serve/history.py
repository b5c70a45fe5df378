"""The history in SQLite: models that were given, and jobs with what came of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from packlight.errors import UnusableOutput

SCHEMA = 1

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
FINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled", "interrupted"})

_TABLES = """
CREATE TABLE models (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL,
    about TEXT NOT NULL, samples TEXT NOT NULL
) STRICT;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL,
    name TEXT NOT NULL, state TEXT NOT NULL, created TEXT NOT NULL, started TEXT, ended TEXT,
    settings TEXT NOT NULL, data TEXT NOT NULL, progress TEXT NOT NULL, outcome TEXT, error TEXT
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class GivenModel:
    """A model that was given. about: what `inspect` says of it, {} until it is whole.

    samples: {"set": id, "files": [{name, file, bytes}], "path": what the user typed, or None}.
    """

    id: str
    name: str
    created: str
    about: dict[str, Any]
    samples: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One compression.

    data: {"path": of its samples or None, "names": {path: what people know it by}}.
    progress: {"stages": [...], "points": [...]}. outcome: verdict, sentence and figures.
    """

    id: str
    model: str
    name: str
    state: JobState
    created: str
    settings: dict[str, Any]
    data: dict[str, Any]
    started: str | None = None
    ended: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] | None = None
    error: str | None = None


_JOB = "id, model, name, state, created, settings, data, started, ended, progress, outcome, error"


class History:
    """The history of one state folder; used by one thread."""

    def __init__(self, path: Path) -> None:
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._open(path)
        except sqlite3.Error as error:
            raise UnusableOutput(
                f"The history {path} cannot be used ({error}): give another folder with --state, "
                "or move the file away."
            ) from None

    def _open(self, path: Path) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.executescript(
                f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        elif version != SCHEMA:
            self._database.close()
            raise UnusableOutput(
                f"The history {path} is of schema {version}, but this packlight reads schema "
                f"{SCHEMA}: use the packlight that wrote it, or give another folder with --state."
            )

    def close(self) -> None:
        """Write all to the file and let go of it."""
        self._database.close()

    def add_model(self, model: GivenModel) -> None:
        """Remember a model."""
        self._database.execute(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?)",
            (model.id, model.name, model.created, _text(model.about), _text(model.samples)),
        )

    def model(self, model: str) -> GivenModel | None:
        """A model by its identifier."""
        row = self._database.execute("SELECT * FROM models WHERE id = ?", (model,)).fetchone()
        return None if row is None else GivenModel(*row[:3], *map(json.loads, row[3:]))

    def describe_model(self, model: str, about: Mapping[str, Any]) -> None:
        """Remember what was found out about a model."""
        self._database.execute("UPDATE models SET about = ? WHERE id = ?", (_text(about), model))

    def give_samples(self, model: str, samples: Mapping[str, Any]) -> None:
        """Remember which samples a model has."""
        self._database.execute(
            "UPDATE models SET samples = ? WHERE id = ?", (_text(samples), model)
        )

    def unused_models(self) -> list[str]:
        """Models that no job is about."""
        rows = self._database.execute(
            "SELECT id FROM models WHERE id NOT IN (SELECT model FROM jobs)"
        )
        return [row[0] for row in rows]

    def forget_model(self, model: str) -> None:
        """Remove a model from the history."""
        self._database.execute("DELETE FROM models WHERE id = ?", (model,))

    def add_job(self, job: Job) -> None:
        """Remember a job that waits."""
        self._database.execute(
            "INSERT INTO jobs (id, model, name, state, created, settings, data, progress) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, job.model, job.name, job.state, job.created),
                *map(_text, (job.settings, job.data, job.progress)),
            ),
        )

    def job(self, job: str) -> Job | None:
        """A job by its identifier."""
        row = self._database.execute(f"SELECT {_JOB} FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if row is None else _job(row)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        rows = self._database.execute(f"SELECT {_JOB} FROM jobs ORDER BY number DESC")
        return [_job(row) for row in rows]

    def waiting(self) -> list[str]:
        """The jobs that wait, the next one first."""
        rows = self._database.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY number")
        return [row[0] for row in rows]

    def begin(self, job: str) -> None:
        """A job begins."""
        self._database.execute(
            "UPDATE jobs SET state = 'running', started = ? WHERE id = ?", (now(), job)
        )

    def note_progress(self, job: str, progress: Mapping[str, Any]) -> None:
        """Remember how far a job is."""
        self._database.execute("UPDATE jobs SET progress = ? WHERE id = ?", (_text(progress), job))

    def end(
        self,
        job: str,
        state: JobState,
        *,
        outcome: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """A job ended."""
        self._database.execute(
            "UPDATE jobs SET state = ?, ended = ?, outcome = ?, error = ? WHERE id = ?",
            (state, now(), None if outcome is None else _text(outcome), error, job),
        )

    def interrupt_running(self) -> None:
        """What ran when the last server died does not run any more."""
        self._database.execute(
            "UPDATE jobs SET state = 'interrupted', ended = ? WHERE state = 'running'", (now(),)
        )

    def forget_job(self, job: str) -> None:
        """Remove a job from the history."""
        self._database.execute("DELETE FROM jobs WHERE id = ?", (job,))


def now() -> str:
    """The time as it is written in the history: ISO 8601, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _job(row: tuple[Any, ...]) -> Job:
    job, model, name, state, created, settings, data, started, ended, progress, outcome, error = row
    return Job(
        *(job, model, name, state, created, json.loads(settings), json.loads(data)),
        started=started,
        ended=ended,
        progress=json.loads(progress),
        outcome=None if outcome is None else json.loads(outcome),
        error=error,
    )
