"""The state folder: what was uploaded, what came of it, and the history.

    lock                        held by the one server that uses the folder
    history.sqlite
    models/ID/model.onnx        with the external data that it names
    models/ID/samples/SET/      uploaded samples, by number
    jobs/ID/samples/            those of a job that is not over: the uploaded ones may go
    jobs/ID/result/             what `Result.save` wrote
    jobs/ID/work/               temporary files of its process

Every path is made of identifiers from here and of names that are written in this file; nothing
that a client sends becomes a part of one. No link is followed in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from packlight.errors import UnusableOutput
from packlight.serve.errors import Refused

_ID = re.compile("[0-9a-f]{32}")
_ROOMS = ("models", "jobs")


def make_id() -> str:
    """A new random identifier."""
    return secrets.token_hex(16)


def check_id(text: str) -> str:
    """The same text, if it is an identifier. Raises Refused, 404."""
    if not _ID.fullmatch(text):
        raise Refused(404, "There is no such thing here: reload the page.")
    return text


def default_folder() -> Path:
    """Where state lies by the XDG base directory specification."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path is to be ignored.
    root = Path(base) if Path(base).is_absolute() else Path("~/.local/state").expanduser()
    return root / "packlight" / "serve"


@dataclass(frozen=True)
class State:
    """A state folder in use. lock: the descriptor that holds it."""

    folder: Path
    lock: int

    @property
    def history(self) -> Path:
        """The file of the history."""
        return self.folder / "history.sqlite"

    def model(self, model: str) -> Path:
        """The folder of a model."""
        return self.folder / "models" / check_id(model)

    def samples(self, model: str, samples: str) -> Path:
        """The folder of a set of samples that was uploaded for a model."""
        return self.model(model) / "samples" / check_id(samples)

    def job(self, job: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / check_id(job)

    def job_samples(self, job: str) -> Path:
        """The folder of the uploaded samples of a job that is not over."""
        return self.job(job) / "samples"

    def result(self, job: str) -> Path:
        """The folder that a job wrote."""
        return self.job(job) / "result"

    def close(self) -> None:
        """Let another server use the folder."""
        os.close(self.lock)


def open_state(folder: Path) -> State:
    """Use a state folder, made where it is missing, for its owner alone.

    Raises UnusableOutput where it is a link, holds links, belongs to somebody else, or is in use.
    """
    try:
        if folder.is_symlink():
            raise UnusableOutput(
                f"The state folder {folder} is a link: give the folder that it points to with "
                "--state."
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        _check_own(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UnusableOutput(
                f"Another packlight serve uses the state folder {folder}: open its page, end it, "
                "or give another folder with --state."
            ) from None
        for room in _ROOMS:
            (folder / room).mkdir(exist_ok=True, mode=0o700)
        refuse_links(folder)
    except OSError as error:
        raise UnusableOutput(
            f"The state folder {folder} cannot be used ({error.strerror or error}): give another "
            "with --state."
        ) from None
    return State(folder, lock)


def _check_own(folder: Path) -> None:
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnusableOutput(
            f"The state folder {folder} is a file or belongs to somebody else: give a folder of "
            "your own with --state."
        )
    # Models and samples are their owner's business.
    folder.chmod(0o700)


def refuse_links(folder: Path) -> None:
    """Raises UnusableOutput where a link lies in a folder, at any depth."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                raise UnusableOutput(
                    f"{path} is a link, which packlight does not make: remove it, or give another "
                    "folder with --state."
                )


def plain_file(path: Path, folder: Path) -> Path:
    """The same path, if it is a plain file below `folder` with no link on its way.

    Raises Refused, 404.
    """
    steps = [path, *path.parents]
    inside = steps[: steps.index(folder)] if folder in steps else []
    if not inside or not path.is_file() or any(step.is_symlink() for step in inside):
        raise Refused(404, "That file is not there: it was removed, or never made.")
    return path


def share_file(file: Path, other: Path) -> None:
    """Give a file a second name, or a copy where the file system knows no such thing."""
    try:
        os.link(file, other, follow_symlinks=False)
    except OSError:
        shutil.copyfile(file, other, follow_symlinks=False)


def remove(folder: Path) -> None:
    """Remove a folder with all that lies in it; one that is not there is no error."""
    shutil.rmtree(folder, ignore_errors=True)
