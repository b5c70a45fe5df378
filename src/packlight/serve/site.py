"""What the routes share: the state folder, its history, the jobs, and the server's options."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from packlight.serve.errors import Refused
from packlight.serve.history import GivenModel, History
from packlight.serve.jobs import Jobs
from packlight.serve.process import ask_child
from packlight.serve.state import State, check_id, make_id

_AT_ONCE = 2
"""Questions that are answered at the same time, beside the job at work."""


@dataclass
class Site:
    """A server's own. upload_limit: bytes of one upload, and of all samples of a model.

    paths: whether files of this machine may be named: only where it listens on the loopback.
    """

    state: State
    history: History
    jobs: Jobs
    upload_limit: int
    paths: bool = True
    questions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have a child answer a short question."""
        async with self.questions:
            return await ask_child(request, self.state.folder / "jobs" / f"work-{make_id()}")

    def given_model(self, request: Request) -> GivenModel:
        """The model that a path names. Raises Refused, 404."""
        return self.known_model(request.path_params["id"])

    def known_model(self, text: object) -> GivenModel:
        """A model by what a client calls its identifier. Raises Refused, 404."""
        found = self.history.model(check_id(text)) if isinstance(text, str) else None
        if found is None:
            raise Refused(404, "That model is not here: give it again.", field="model")
        return found

    def check_path(self, path: object, field: str) -> Path:
        """The path of a file or folder that the user typed. Raises Refused."""
        if not self.paths:
            raise Refused(
                403,
                "This server can be reached from other machines, so it opens no paths of this one: "
                "choose the file itself.",
                field=field,
            )
        if not isinstance(path, str) or not path.strip() or "\0" in path or len(path) > 4096:
            raise Refused(422, "Give the path of a file on this machine.", field=field)
        try:
            found = Path(path.strip()).expanduser()
            there = found.exists()
        except (OSError, RuntimeError) as error:  # no such user, or nobody may look there
            why = getattr(error, "strerror", None) or error
            raise Refused(422, f"{path[:200]} cannot be read: {why}.", field=field) from None
        if not found.is_absolute():
            raise Refused(422, f"{path[:200]} is relative: give the whole path.", field=field)
        if not there:
            raise Refused(422, f"There is no {path[:200]}: check the path.", field=field)
        return found


def site_of(request: Request) -> Site:
    """The site that a request came to."""
    site: Site = request.app.state.site
    return site
